"""A run's best model loaded again, and measured."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from sj_ottt import zoo
from sj_ottt.data import EventFolder, ImageSet, Preprocessing, ReadOptions, collate_for
from sj_ottt.data.loading import BatchLoader, Pass, to_device
from sj_ottt.errors import InputError
from sj_ottt.learning import predict
from sj_ottt.run.checkpoint import ModelInfo, read_model
from sj_ottt.run.group import ALONE, Group, joined, started_by_torchrun

SEED = 0  # of all that is drawn for a trained model, which must give the same answer each time


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; of "auto", the GPU where there is one, also Apple's (MPS).

    Raises:
        InputError: If the device cannot be used.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        # Of several processes on one machine, each has a GPU of its own.
        place = started_by_torchrun()
        if place is not None and place[1] > 1:
            return torch.device("cuda", place[2] % torch.cuda.device_count())
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used ({reason}); try cpu or auto") from error
    return device


@contextmanager
def fixed_seed(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers each time, and leave the generators as they were.

    LTC neurons start at random, and an encoding may draw; a trained model must give the same
    answer each time.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        yield


def batches_to_measure(
    dataset: Dataset, batch_size: int, workers: int, device: torch.device, group: Group = ALONE
) -> Pass:
    """Return the batches that `measure` takes: in order, and the same whoever loads them.

    An encoding draws for each sample by itself, so that neither the processes that load nor those
    that measure change what is measured.

    Args:
        dataset: As in `BatchLoader`.
        batch_size: Of all processes together.
        workers: Processes that load.
        device: Where the model runs.
        group: The processes that measure, each on its part of the samples.
    """
    pin = device.type == "cuda"
    loader = BatchLoader(dataset, batch_size=batch_size, workers=workers, part=group.part, pin=pin)
    return loader.one_pass(seed=SEED)


def count_right(logits: torch.Tensor, target: torch.Tensor) -> int:
    """Count the right answers.

    Args:
        logits: [N, classes].
        target: Classes [N]; or, of mixed samples, their shares [N, classes], of which the largest
            is right.
    """
    classes = target if target.dim() == 1 else target.argmax(1)
    return int((logits.argmax(1) == classes).sum())


def measure(
    model: nn.Module,
    loader: Pass,
    steps: int | None,
    device: torch.device,
    group: Group = ALONE,
    chunk: int | str = 1,
) -> tuple[float, float]:
    """Return the accuracy (0 to 1) and the model's time for a sample in seconds, without loading.

    In several processes, both are of all their samples together. Neurons that start at random (LTC)
    draw for a batch, or for a process's part of it, as a whole.

    Args:
        model: On `device`.
        loader: In order, of seed `SEED`, as from `batches_to_measure`.
        steps: As in `predict`: T for still images, None for sequences.
        device: Where the model runs.
        group: The processes that measure the model, each on its part of the samples.
        chunk: As in `predict`.
    """
    correct, total, seconds = 0, 0, 0.0
    with fixed_seed(device):
        for x_seq, target in loader:
            if not len(target):
                continue
            x_seq, target = to_device((x_seq, target), device)
            start = time.perf_counter()
            # Counting the right answers waits for the device, so the time is the whole time.
            correct += count_right(predict(model, x_seq, steps, chunk=chunk), target)
            seconds += time.perf_counter() - start
            total += len(target)
    right, n, spent = group.added_up((correct, total, seconds), device)
    return right / n, spent / n


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A run's best model and what it was trained on.

    Attributes:
        path: Its file.
        model: In training mode, on `device`.
        info: What its file says of it.
        device: Where it runs.
    """

    path: Path
    model: nn.Module
    info: ModelInfo
    device: torch.device

    @property
    def preprocessing(self) -> Preprocessing:
        """From events, or an image, to what the model learned on."""
        return self.info.preprocessing()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return self.info.classes

    def dataset(
        self, data: str | None, split: str, steps: int, reading: ReadOptions | None = None
    ) -> EventFolder | ImageSet:
        """Open a data set as the model sees it.

        Args:
            data: The data set; None takes that of the run.
            split: "train" or "test".
            steps: T, time steps of a sample.
            reading: How recordings are read; what it leaves open is as it was in the run.

        Raises:
            InputError: Bad data, classes other than the model's, or steps that the encoding does
                not make.
        """
        source = data or self.info.data
        given = {k: v for k, v in dataclasses.asdict(reading or ReadOptions()).items() if v}
        reading = dataclasses.replace(self.info.reading, **given)
        dataset = self.preprocessing.with_steps(steps).open(source, split, reading)
        if tuple(dataset.classes) != self.classes:
            raise InputError(
                f"{source} has the classes {', '.join(dataset.classes)}, but {self.path} "
                f"was trained on {', '.join(self.classes)}; give matching --data"
            )
        made = steps if dataset.still else len(dataset[0][0])
        if made != steps:
            raise InputError(
                f"steps={steps}: encoding={self.info.frames.encoding} makes {made} of an "
                f"image of {source}; leave steps out"
            )
        return dataset


def load_trained(checkpoint: str | Path, device: str = "auto") -> TrainedModel:
    """Load the best model of a run.

    Args:
        checkpoint: The folder of the run.
        device: As in `TrainConfig`.

    Raises:
        InputError: A missing or changed checkpoint, or a device that cannot be used.
    """
    path = Path(checkpoint) / "best.safetensors"
    tensors, info = read_model(path)
    used_device = resolve_device(device)
    if not any(tensor.shape[:1] == (len(info.classes),) for tensor in tensors.values()):
        raise InputError(
            f"{path} names another number of classes than it has weights of; train again"
        )
    model = zoo.create(
        info.model,
        len(info.classes),
        in_chans=info.in_chans,
        readout=info.readout,
        rule_variant=info.rule_variant,
    )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{path} does not fit this version's {info.model}: take the version that trained it, "
            "or train again"
        ) from error
    return TrainedModel(path, model.to(used_device), info, used_device)


def evaluate(
    checkpoint: str | Path,
    data: str | None = None,
    steps: Sequence[int] | None = None,
    *,
    split: str = "test",
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    reading: ReadOptions | None = None,
    chunk: int | str = 1,
) -> list[dict[str, Any]]:
    """Measure a run's best model with different numbers of time steps.

    Args:
        checkpoint: The folder of a run.
        data: A data set; that of the run if not given.
        steps: Numbers of time steps, into so many frames is each recording cut anew; the number
            used in training if not given.
        split: "test" or "train".
        batch_size: Recordings per batch, of all processes together where ``torchrun`` started
            several.
        workers: Processes that load data.
        device: As in `TrainConfig`.
        reading: How recordings are read; what it leaves open is as it was in the run.
        chunk: As in `predict`.

    Returns:
        A row for each number of steps: ``steps``, ``accuracy`` (0 to 1), ``n`` recordings and
        ``ms``, the milliseconds that the model takes for a recording, loading not counted.

    Raises:
        InputError: A missing or changed checkpoint, bad data, classes other than the model's.
    """
    trained = load_trained(checkpoint, device)
    steps = [trained.info.frames.steps] if steps is None else list(steps)
    if not steps or min(steps) < 1:
        raise InputError(f"steps must be whole numbers from 1 on, not {steps}")
    if batch_size < 1:
        raise InputError(f"batch_size must be a whole number from 1 on, not {batch_size}")
    with joined(trained.device) as group:
        return _evaluate(trained, data, split, steps, batch_size, workers, group, reading, chunk)


def _evaluate(
    trained: TrainedModel,
    data: str | None,
    split: str,
    steps: Sequence[int],
    batch_size: int,
    workers: int,
    group: Group,
    reading: ReadOptions | None,
    chunk: int | str,
) -> list[dict[str, Any]]:
    model, rows = trained.model, []
    for count in steps:
        with group.one_after_the_first():
            dataset = trained.dataset(data, split, count, reading)
        # The first call pays for lazy set-up, so one recording goes ahead of the clock.
        first, _ = collate_for(dataset)([dataset[0]])
        shown = count if dataset.still else None
        predict(model, first.to(trained.device), shown, chunk=chunk)
        loader = batches_to_measure(dataset, batch_size, workers, trained.device, group)
        accuracy, seconds = measure(model, loader, shown, trained.device, group, chunk)
        rows.append({"steps": count, "accuracy": accuracy, "n": len(dataset), "ms": 1000 * seconds})
    return rows
