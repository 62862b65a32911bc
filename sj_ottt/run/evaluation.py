"""What a run has learned: its best model loaded again, and measured."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from sj_ottt import zoo
from sj_ottt.data import EventFolder, ImageSet, Preprocessing, collate_for
from sj_ottt.data.loading import batches
from sj_ottt.errors import InputError
from sj_ottt.learning import predict
from sj_ottt.run.checkpoint import read_model

OF_MODEL = ("readout", "rule_variant")
"""Options of a run that belong to its model beside the weights; the rule does not, for instruments
compare several and `adapt` has its own."""


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; of "auto", the GPU where there is one.

    Raises:
        InputError: If the device cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used ({reason}); try cpu or auto") from error
    return device


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Draw the same numbers each time, and leave the generators as they were.

    LTC neurons start at random, and an encoding may draw; what a trained model says is to be the
    same whenever it is asked.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def count_right(logits: torch.Tensor, target: torch.Tensor) -> int:
    """Count the right answers; of mixed recordings, the one that shows more is right."""
    classes = target if target.dim() == 1 else target.argmax(1)
    return int((logits.argmax(1) == classes).sum())


def measure(
    model: nn.Module, loader: DataLoader, steps: int | None, device: torch.device
) -> tuple[float, float]:
    """Return the accuracy (0-1) and the model's time per sample in seconds, without loading.

    ``steps`` is as in `predict`: T of still images, None for sequences.
    """
    correct, total, seconds = 0, 0, 0.0
    with same_draws(device):
        for x_seq, target in loader:
            x_seq, target = x_seq.to(device), target.to(device)
            start = time.perf_counter()
            # Counting the right answers waits for the device, so the time is the whole time.
            correct += count_right(predict(model, x_seq, steps), target)
            seconds += time.perf_counter() - start
            total += len(target)
    return correct / total, seconds / total


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's best model and what it was trained on.

    Attributes:
        path: Its file.
        model: In training mode, on `device`.
        about: What the file says: model, data, classes, and the options of `preprocessing`.
        device: Where it runs.
    """

    path: Path
    model: nn.Module
    about: dict[str, Any]
    device: torch.device

    @property
    def preprocessing(self) -> Preprocessing:
        """From events, or an image, to what the model learned on."""
        # A file that lacks an option is older than it: it was trained with the default.
        return Preprocessing.from_options(self.about)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the model's outputs."""
        return self.about["classes"]

    def dataset(self, data: str | None, split: str, steps: int) -> EventFolder | ImageSet:
        """Open recordings cut into `steps` frames; those of the run if `data` is None.

        Raises:
            InputError: Bad data, classes other than the model's, or steps that the encoding does
                not make.
        """
        source = data or self.about["data"]
        dataset = self.preprocessing.with_steps(steps).open(source, split)
        if list(dataset.classes) != self.about["classes"]:
            raise InputError(
                f"{source} has the classes {', '.join(dataset.classes)}, but {self.path} "
                f"was trained on {', '.join(self.about['classes'])}; give matching --data"
            )
        made = dataset[0][0]
        if not dataset.still and len(made) != steps:
            raise InputError(
                f"steps={steps}: encoding={self.about['encoding']} makes {len(made)} of an image "
                f"of {source}; leave steps out"
            )
        return dataset


def load_trained(checkpoint: str | Path, device: str = "auto") -> Trained:
    """Load the best model of a run.

    Args:
        checkpoint: The folder of the run.
        device: As in `TrainConfig`.

    Raises:
        InputError: A missing or changed checkpoint, or a device that cannot be used.
    """
    path = Path(checkpoint) / "best.safetensors"
    tensors, about = read_model(path)
    where = resolve_device(device)
    # A file that lacks an option is older than it: it was trained with the default.
    options = {name: about[name] for name in OF_MODEL if name in about}
    model = zoo.create(about["model"], about["num_classes"], in_chans=about["in_chans"], **options)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{path} does not fit this version's {about['model']}: take the version that trained "
            "it, or train again"
        ) from error
    return Trained(path, model.to(where), about, where)


def evaluate(
    checkpoint: str | Path,
    data: str | None = None,
    steps: Sequence[int] | None = None,
    *,
    split: str = "test",
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Measure a run's best model with different numbers of time steps.

    Args:
        checkpoint: The folder of a run.
        data: Recordings; those that the run used if not given.
        steps: Numbers of time steps, each recording is cut anew into that many frames; the
            number used in training if not given.
        split: "test" or "train".
        batch_size: Recordings per batch.
        workers: Processes that load data.
        device: As in `TrainConfig`.

    Returns:
        A row for each number of steps: ``steps``, ``accuracy`` (0-1), ``n`` recordings and
        ``ms``, the milliseconds that the model takes for a recording, loading not counted.

    Raises:
        InputError: A missing or changed checkpoint, bad data, classes other than the model's.
    """
    trained = load_trained(checkpoint, device)
    steps = [trained.about["steps"]] if steps is None else list(steps)
    if not steps or min(steps) < 1:
        raise InputError(f"steps must be whole numbers from 1 on, not {steps}")
    if batch_size < 1:
        raise InputError(f"batch_size must be a whole number from 1 on, not {batch_size}")
    model, where, rows = trained.model, trained.device, []
    for count in steps:
        dataset = trained.dataset(data, split, count)
        # The first call pays for lazy set-up, so one recording goes ahead of the clock.
        first, _ = collate_for(dataset)([dataset[0]])
        shown = count if dataset.still else None
        predict(model, first.to(where), shown)
        accuracy, seconds = measure(model, batches(dataset, batch_size, workers), shown, where)
        rows.append({"steps": count, "accuracy": accuracy, "n": len(dataset), "ms": 1000 * seconds})
    return rows
