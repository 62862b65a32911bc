"""Online adaptation: a trained model learns from labelled recordings, one sample at a time."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sj_ottt.data import find_recordings, labels_from_folders, read_labels
from sj_ottt.data.activity import Totals, activity_of, totals_of
from sj_ottt.data.frames.frames import TooFewEvents
from sj_ottt.data.recordings.label_table import Labelled
from sj_ottt.data.recordings.readers import open_recording
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError, NotFiniteError, suggest
from sj_ottt.inference.camera import Fit, Watch, fit_source
from sj_ottt.inference.predict import cut, logits_of
from sj_ottt.learning import FPTT, CrossEntropyMSE, train_step
from sj_ottt.learning.rules import rule_of
from sj_ottt.run.checkpoint import ModelInfo, write_model
from sj_ottt.run.evaluation import TrainedModel

__all__ = ["Adapted", "adapt", "open_labelled"]

_DEFAULT = ReadOptions()
_ALPHA = 0.1  # of FPTT, as in its authors' runs on classes


def open_labelled(
    recordings: Sequence[str | Path], held_out: Sequence[str | Path], labels: str | Path | None
) -> tuple[list[Labelled], list[Labelled]]:
    """Label recordings to learn from, and recordings to test on.

    Args:
        recordings: Files to learn from, or folders of them, in this order.
        held_out: The same, to test on.
        labels: CSV of both, and perhaps of others; None takes the names of their folders.

    Returns:
        Both, in their order, with their labels.

    Raises:
        InputError: A missing file, one without a label or in both lists, or a wrong CSV.
    """
    to_learn, to_test = find_recordings(recordings), find_recordings(held_out)
    resolved = {path.resolve() for path in to_learn}
    if twice := [path for path in to_test if path.resolve() in resolved]:
        raise InputError(f"{twice[0]}: is given twice; a recording is to learn from or held out")
    paths = [*to_learn, *to_test]
    if labels is None:
        labelled = labels_from_folders(paths)
    else:
        labelled = read_labels(labels, paths, others=True)
    by_path = {one.path: one for one in labelled}
    if missing := [path for path in paths if path not in by_path]:
        raise InputError(f"{labels}: has no line for {missing[0]}; label it or leave it out")
    ordered = [by_path[path] for path in paths]
    return ordered[: len(to_learn)], ordered[len(to_learn) :]


@dataclass(frozen=True)
class Adapted:
    """What `adapt` did.

    Attributes:
        samples: How many it learned from.
        right: How many of them it labelled rightly, each just before it learned from it.
        before: Accuracy on the held-out recordings before, 0 to 1; None without any.
        after: The same after.
        held_out: How many samples the held-out recordings have.
    """

    samples: int
    right: int
    before: float | None
    after: float | None
    held_out: int


class _Sample(NamedTuple):
    """Frames [T, 2, H, W], the index of their class, and where they come from."""

    frames: Tensor
    target: int
    totals: Totals
    fit: Fit


def adapt(
    trained: TrainedModel,
    recordings: Sequence[Labelled],
    held_out: Sequence[Labelled] = (),
    *,
    window: int,
    stride: int,
    min_events: int = 1,
    lr: float = 1e-3,
    out: str | Path | None = None,
    read: ReadOptions = _DEFAULT,
) -> Adapted:
    """Learn from labelled recordings as from a stream: each sample once, alone, in order (OTTT_O).

    Weights are updated at every time step; those of LTC neurons, which carry no trace, by FPTT,
    whose averages are then tested and written. The held-out recordings are read twice, and learned
    from never.

    Args:
        trained: The model; changed in place.
        recordings: From `open_labelled`.
        held_out: The same, to test on before and after.
        window: Length of a sample in µs.
        stride: From one sample's start to the next one's, in µs.
        min_events: Windows with fewer are passed over.
        lr: Learning rate of plain stochastic gradient descent.
        out: Folder to write the adapted model to, as ``best.safetensors``. Where an error or Ctrl-C
            ends the work early, what was learned up to there is written all the same.
        read: How to read the recordings. Those of another sensor than the model's are made to fit,
            with a warning; ``strict`` refuses them. What is written is a model of that sensor where
            all that it learned from are of one.

    Raises:
        InputError: A label that is no class of the model, no sample at all, a wrong ``lr``, an
            ``out`` that holds a model or a run already or cannot be made, or as `label_windows`;
            all recordings are opened before anything is learned.
        NotFiniteError: A loss, or what was learned, is not finite.
    """
    cutter = _Cutter(trained, read, window, stride, min_events)
    for labelled in (*recordings, *held_out):
        _check_labels(trained, labelled)
        cutter.open(labelled)
    if not (math.isfinite(lr) and lr >= 0):
        raise InputError(f"lr={lr}: give a learning rate of 0 or more")
    if out is not None:
        _make_folder(Path(out))
    before, n_held_out = _accuracy(cutter, held_out)
    optimizer = torch.optim.SGD(trained.model.parameters(), lr)
    fptt = FPTT(optimizer, _ALPHA) if rule_of(trained.model).through_time else None
    watch = Watch(trained, "the recordings to learn from")
    learned: dict[Fit, list[Totals]] = {}
    samples = right = 0

    def write(out: Path) -> None:
        with fptt.averaged() if fptt else nullcontext():
            tensors = {k: v.detach().cpu().clone() for k, v in trained.model.state_dict().items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise NotFiniteError(f"what was learned with lr={lr} is not finite: lower lr")
        info = replace(_of_camera(trained.info, learned), adapted=samples)
        write_model(out / "best.safetensors", tensors, info)

    try:
        for labelled in recordings:
            for frames, target, totals, fit in cutter(labelled):
                watch.add(totals, fit)
                kept = learned.setdefault(fit, [])
                if fit.other:  # to describe that camera
                    kept.append(totals)
                trained.model.train()
                _, logits = train_step(
                    trained.model,
                    fptt or optimizer,
                    frames[:, None].to(trained.device),
                    torch.tensor([target], device=trained.device),
                    loss_fn=CrossEntropyMSE(),
                    update="accumulate" if fptt else "online",
                )
                samples += 1
                right += int(logits.argmax()) == target
        if not samples:
            raise InputError(
                f"no window with {min_events} events lies within a label: shorten window, lower "
                "min_events, or mend the labels"
            )
        with fptt.averaged() if fptt else nullcontext():
            after, _ = _accuracy(cutter, held_out)
    except BaseException:
        if samples and out is not None:
            with suppress(NotFiniteError):
                write(Path(out))
                warnings.warn(
                    f"ended early: {out} holds what was learned from {samples} samples until then",
                    stacklevel=2,
                )
        raise
    watch.report()
    if out is not None:
        write(Path(out))
    return Adapted(samples, right, before, after, n_held_out)


def _of_camera(info: ModelInfo, learned: Mapping[Fit, list[Totals]]) -> ModelInfo:
    """Describe a model that has learned from recordings: where all are of one other sensor, of it.

    From then on it takes that camera's recordings as its own, and fits others to them.
    """
    (fit, totals), *others = learned.items()
    if others or not fit.other:
        return info
    frames = replace(info.frames, crop=fit.preprocessing.framing.crop)
    activity = activity_of(totals, fit.sensor_size)
    return replace(info, sensor_size=fit.sensor_size, frames=frames, activity=activity)


def _make_folder(out: Path) -> None:
    """Make the folder of an adapted model, before the work is done; what is in it stays."""
    for name, what in (("best.safetensors", "model"), ("last.pt", "run")):
        if (out / name).exists():
            raise InputError(
                f"{out}: holds a {what} already; choose another folder for the adapted model"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be made ({error.strerror}); choose another folder"
        ) from error


def _check_labels(trained: TrainedModel, labelled: Labelled) -> None:
    for stretch in labelled.stretches:
        if stretch.label not in trained.classes:
            raise InputError(
                f"{stretch.source}: {stretch.label!r} is no class of the model"
                f"{suggest(stretch.label, trained.classes)}; it knows {', '.join(trained.classes)}"
            )


class _Cutter:
    """Cuts labelled recordings into samples, as the model sees them.

    Args:
        trained: The model.
        read: How to read recordings.
        window: Length of a sample in µs.
        stride: From one sample's start to the next one's, in µs.
        min_events: Windows with fewer are passed over, and so are those with too few left of the
            crop.
    """

    def __init__(
        self, trained: TrainedModel, read: ReadOptions, window: int, stride: int, min_events: int
    ) -> None:
        self.trained = trained
        self._read = read
        self._cut = window, stride
        self._min_events = max(1, min_events)
        self._said: set[tuple[int, int]] = set()

    def open(self, labelled: Labelled) -> tuple[Source, Fit]:
        """Open a recording, and say how it becomes the model's input."""
        source = open_recording(labelled.path, self._read)
        return source, fit_source(self.trained, source, strict=self._read.strict, said=self._said)

    def __call__(self, labelled: Labelled) -> Iterator[_Sample]:
        source, fit = self.open(labelled)
        for start, end, events in cut(source, fit.sensor_size, *self._cut):
            if len(events) < self._min_events:
                continue
            for stretch in labelled.stretches:
                if stretch.start <= start and (stretch.end is None or end <= stretch.end):
                    with suppress(TooFewEvents):
                        frames = fit.preprocessing(events, fit.sensor_size, source.name)
                        target = self.trained.classes.index(stretch.label)
                        yield _Sample(frames, target, totals_of(events, end - start), fit)


def _accuracy(cutter: _Cutter, held_out: Sequence[Labelled]) -> tuple[float | None, int]:
    right = total = 0
    for labelled in held_out:
        for frames, target, *_ in cutter(labelled):
            right += int(logits_of(cutter.trained, [frames])[0].argmax()) == target
            total += 1
    return (right / total if total else None), total
