"""A trained model on raw recordings and streams: labels, window by window.

Nothing here holds more than a window of events beside what a source gives at once.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sj_ottt.data import NormalizeFrames, check_events
from sj_ottt.data.frames.framing import Framing
from sj_ottt.data.recordings.label_table import parse_duration
from sj_ottt.data.recordings.streams import WHOLE, Source, windows
from sj_ottt.errors import InputError
from sj_ottt.learning import predict, reset_state
from sj_ottt.learning.predict import predicts_last
from sj_ottt.run.evaluation import Trained, same_draws

__all__ = [
    "Eye",
    "Prediction",
    "check_trained",
    "durations",
    "fewest_events",
    "label_stream",
    "label_windows",
    "logits_of",
]

_BATCH = 32


class Prediction(NamedTuple):
    """What a model says of one window.

    Attributes:
        start: In µs from the first event.
        end: The same.
        events: How many events there were.
        label: The class; None where there were too few events.
        confidence: Softmax of the mean logits at that class, 0 to 1.
    """

    start: int
    end: int
    events: int
    label: str | None
    confidence: float


def durations(trained: Trained, window: str | None, stride: str | None) -> tuple[int, int]:
    """Return window and stride in µs.

    Args:
        trained: A model that was trained on windows knows their length.
        window: A time such as ``"200ms"``; None takes the model's, or whole recordings.
        stride: The same; None takes the window.

    Raises:
        InputError: No positive time.
    """
    length = trained.info.window or WHOLE
    found = {"window": length, "stride": None}
    for name, value in (("window", window), ("stride", stride)):
        if (
            value is not None
            and (found := {**found, name: parse_duration(value, unit=True)})[name] < 1
        ):
            raise InputError(f"{name}={value}: give a time above 0")
    return found["window"], found["stride"] or found["window"]


def fewest_events(trained: Trained, min_events: int | None, window: str | None) -> int:
    """Return how many events a window needs for a label.

    Args:
        trained: A model that was trained on windows knows how many those had at least.
        min_events: The number; None takes the model's where the window is the model's too, else 1.
        window: As for `durations`.

    Raises:
        InputError: A number below 1.
    """
    if min_events is None:
        return (window is None and trained.info.min_events) or 1
    if min_events < 1:
        raise InputError(f"min_events={min_events}: give a whole number from 1 on")
    return min_events


def check_trained(trained: Trained) -> None:
    """Check that a model was trained on recordings.

    Raises:
        InputError: It was not.
    """
    if trained.info.in_chans != 2 or trained.info.sensor_size is None:
        raise InputError(
            f"{trained.path} was not trained on recordings (or by a version that did not note "
            "their sensor's size): train on recordings first"
        )


class Eye:
    """Turns a window's events into what a trained model sees."""

    def __init__(self, trained: Trained, source: Source):
        check_trained(trained)
        learned = trained.info.sensor_size
        if source.sensor_size not in (None, learned):
            (h, w), (height, width) = source.sensor_size, learned
            raise InputError(
                f"{source.name}: comes from a sensor of {h} x {w} pixels (height x width), but "
                f"{trained.path} learned from one of {height} x {width}: take recordings of that "
                "camera, or train on a data set whose dataset.json states the sensor_size"
            )
        names = Framing.__dataclass_fields__
        self.framing = Framing(**{name: getattr(trained.info.frames, name) for name in names})
        self.sensor_size = learned
        self.source = source.name
        self.normalize = NormalizeFrames() if trained.info.frames.normalize else torch.nn.Identity()

    @property
    def fewest(self) -> int:
        """The fewest events that make frames."""
        return self.framing.steps if self.framing.split_by == "count" else 1

    def frames(self, events: np.ndarray) -> Tensor:
        """Return a window's frames [T, 2, H, W], as in training."""
        values = self.framing(events, self.sensor_size, self.source)
        return self.normalize(torch.from_numpy(values).float() * (self.framing.unit or 1.0))

    def frame(self, events: np.ndarray) -> Tensor:
        """Return one frame [2, H, W] of counts; of no events, zeros."""
        if not len(events):
            return torch.zeros(2, *self.framing.frame_size(self.sensor_size))
        check_events(events, self.source, self.sensor_size)
        one = Framing(1, self.framing.size, crop=self.framing.crop)
        return self.normalize(
            torch.from_numpy(one(events, self.sensor_size, self.source))[0].float()
        )


def label_windows(
    trained: Trained, source: Source, window: int, stride: int, min_events: int = 1
) -> Iterator[Prediction]:
    """Label windows of a recording, each on its own, as the samples in training were.

    Args:
        trained: From `evaluation.load_trained`.
        source: The recording.
        window: Length in µs.
        stride: From one window's start to the next one's, in µs.
        min_events: Windows with fewer get no label.

    Yields:
        A prediction for each window.

    Raises:
        InputError: Events that cannot be right, or a model that was not trained on recordings.
    """
    eye = Eye(trained, source)
    batch: list[tuple[int, int, np.ndarray]] = []

    def flush() -> Iterator[Prediction]:
        told = [len(events) >= max(min_events, eye.fewest) for *_, events in batch]
        seen = [eye.frames(events) for (*_, events), use in zip(batch, told, strict=True) if use]
        logits = iter(logits_of(trained, seen))
        for (start, end, events), use in zip(batch, told, strict=True):
            said = _say(trained, next(logits)) if use else (None, 0.0)
            yield Prediction(start, end, len(events), *said)
        batch.clear()

    for item in windows(source.chunks, window, stride):
        batch.append(item)
        if len(batch) == _BATCH:
            yield from flush()
    yield from flush()


def label_stream(
    trained: Trained, source: Source, window: int, min_events: int = 1
) -> Iterator[Prediction]:
    """Label a stream as it comes, the membranes kept from one window to the next.

    The network takes one frame each T-th of a window and never starts anew, but after a whole
    window without events. The label of a window is that of its T outputs,
    or of the last one where the model's `prediction` is "last".

    Args:
        trained: From `evaluation.load_trained`.
        source: The stream.
        window: Length in µs.
        min_events: Windows with fewer get no label; the network sees them all the same.

    Yields:
        A prediction at the end of each window.

    Raises:
        InputError: As `label_windows`; a window shorter than a µs for each step; or a model that
            sees anything but counts of events, of which the next frame cannot be told alone.
    """
    eye = Eye(trained, source)
    if eye.framing.frames != "counts" or eye.framing.hot_pixels is not None:
        raise InputError(
            f"{trained.path} sees time surfaces or drops hot pixels, which need whole windows: "
            "predict without --live, or train with frames=counts"
        )
    if window == WHOLE:
        raise InputError("window: a stream has no end, give the length of a window, such as 200ms")
    steps = eye.framing.steps
    step = window // steps
    if step < 1:
        raise InputError(f"window={window} µs is shorter than {steps} steps of a µs: lengthen it")
    outputs: deque[Tensor] = deque(maxlen=steps)
    counts: deque[int] = deque(maxlen=steps)
    model = trained.model.eval()
    reset_state(model)
    with torch.inference_mode():
        for number, (start, _, events) in enumerate(windows(source.chunks, step, step), start=1):
            counts.append(len(events))
            if sum(counts):
                x = eye.frame(events)[None].to(trained.device)
                with same_draws(trained.device):
                    outputs.append(model(x)[0])
            else:
                reset_state(model)
                outputs.clear()
            if number % steps == 0:
                end = start + step
                told = sum(counts) >= max(1, min_events)
                said = (None, 0.0)
                if told:
                    said = _say(trained, outputs[-1] if predicts_last(model) else sum(outputs))
                yield Prediction(end - steps * step, end, sum(counts), *said)
    reset_state(model)


def logits_of(trained: Trained, samples: Sequence[Tensor]) -> Tensor:
    """Return what `predict` returns of samples [T, 2, H, W]: logits [n, classes]."""
    if not samples:
        return torch.empty(0)
    with same_draws(trained.device):
        return predict(trained.model, torch.stack(list(samples), 1).to(trained.device))


def _say(trained: Trained, logits: Tensor) -> tuple[str, float]:
    """Return the label of logits as `predict` returns them, and its confidence."""
    steps = 1 if predicts_last(trained.model) else trained.info.frames.steps
    share = (logits / steps).softmax(0)
    best = int(share.argmax())
    return trained.info.classes[best], float(share[best])
