"""A trained model on raw recordings and streams: labels, window by window.

Nothing here holds more than a window of events beside what a source gives at once.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sj_ottt.data import Preprocessing, check_events, crop_events
from sj_ottt.data.recordings.label_table import parse_duration
from sj_ottt.data.recordings.source import Source
from sj_ottt.data.recordings.streams import WHOLE, windows
from sj_ottt.errors import InputError
from sj_ottt.learning import predict, reset_state
from sj_ottt.learning.predict import predicts_last
from sj_ottt.run.evaluation import TrainedModel, fixed_seed

__all__ = [
    "Prediction",
    "check_source",
    "check_trained",
    "durations",
    "fewest_events",
    "label_stream",
    "label_windows",
    "logits_of",
]

_BATCH = 32


class Prediction(NamedTuple):
    """The answer of a model to one window.

    Attributes:
        start: Of the window, in µs from the first event.
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


def durations(trained: TrainedModel, window: str | None, stride: str | None) -> tuple[int, int]:
    """Return the length of a window and the stride, in µs.

    Args:
        trained: Its file states the length of the windows that it was trained on, if it was.
        window: A time such as ``"200ms"``; None takes the model's, or whole recordings.
        stride: The same; None takes the window.

    Raises:
        InputError: No positive time.
    """
    length = _positive("window", window) or trained.info.window or WHOLE
    return length, _positive("stride", stride) or length


def _positive(name: str, value: str | None) -> int | None:
    """Return a time in µs; None for None."""
    if value is None:
        return None
    if (duration := parse_duration(value, unit=True)) < 1:
        raise InputError(f"{name}={value}: give a time above 0")
    return duration


def fewest_events(trained: TrainedModel, min_events: int | None, window: str | None) -> int:
    """Return how many events a window needs for a label.

    Args:
        trained: Its file states the fewest events of the windows that it was trained on, if it was.
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


def check_trained(trained: TrainedModel) -> tuple[int, int] | None:
    """Check that a model was trained on recordings, or on events of images.

    Returns:
        (height, width) of its recordings' sensor; None for events of images, which have none.

    Raises:
        InputError: It was not.
    """
    info = trained.info
    on_recordings = info.in_chans == 2 and info.sensor_size is not None
    if not on_recordings and not trained.preprocessing.events_from_images:
        raise InputError(
            f"{trained.path} was not trained on recordings: train on recordings first, or on "
            "images with encoding=saccade"
        )
    return info.sensor_size


def check_source(trained: TrainedModel, source: Source) -> tuple[int, int]:
    """Check that a source's sensor is that of the recordings that a model learned from.

    A model that learned from events of images takes any sensor of known size.

    Returns:
        The sensor's (height, width).

    Raises:
        InputError: It is another one, or not known where it must be, or as `check_trained`.
    """
    if (expected := check_trained(trained)) is None:
        if source.sensor_size is None:
            raise InputError(
                f"{source.name}: does not state the size of its sensor, nor does {trained.path}, "
                "which learned from images: give --sensor-size H W (in Python "
                "ReadOptions(sensor_size=(H, W)))"
            )
        return source.sensor_size
    height, width = expected
    if source.sensor_size is not None and source.sensor_size != (height, width):
        h, w = source.sensor_size
        raise InputError(
            f"{source.name}: comes from a sensor of {h} x {w} pixels (height x width), but "
            f"{trained.path} learned from one of {height} x {width}: take recordings of that "
            "camera, or train on a data set whose dataset.json states the sensor_size"
        )
    return height, width


def label_windows(
    trained: TrainedModel, source: Source, window: int, stride: int, min_events: int = 1
) -> Iterator[Prediction]:
    """Label windows of a recording, each on its own, as the samples in training were.

    Args:
        trained: From `load_trained`.
        source: The recording.
        window: Length in µs.
        stride: From one window's start to the next one's, in µs.
        min_events: Windows with fewer get no label.

    Yields:
        A prediction for each window.

    Raises:
        InputError: Events that cannot be right, or a model that was not trained on recordings.
    """
    sensor_size = check_source(trained, source)
    preprocessing = trained.preprocessing
    fewest = max(min_events, preprocessing.framing.fewest_events)
    batch: list[tuple[int, int, np.ndarray]] = []

    def flush() -> Iterator[Prediction]:
        samples = [
            preprocessing(events, sensor_size, source.name)
            for *_, events in batch
            if len(events) >= fewest
        ]
        logits = iter(logits_of(trained, samples))
        for start, end, events in batch:
            if len(events) >= fewest:
                yield Prediction(start, end, len(events), *_label(trained, next(logits)))
            else:
                yield Prediction(start, end, len(events), None, 0.0)
        batch.clear()

    for item in windows(source.chunks, window, stride):
        batch.append(item)
        if len(batch) == _BATCH:
            yield from flush()
    yield from flush()


def label_stream(
    trained: TrainedModel, source: Source, window: int, min_events: int = 1
) -> Iterator[Prediction]:
    """Label a stream as it comes, the membranes kept from one window to the next.

    The network takes one frame each T-th of a window; it starts anew only after a whole window
    without events. The label of a window is that of its T outputs together, or of the last one
    where the model's `prediction` is "last".

    Args:
        trained: From `load_trained`.
        source: The stream.
        window: Length in µs.
        min_events: Windows with fewer get no label; the network sees them all the same.

    Yields:
        A prediction at the end of each window.

    Raises:
        InputError: As `label_windows`; a window shorter than a µs for each step; or a model that
            sees anything but counts of events, whose next frame depends on the whole window.
    """
    sensor_size = check_source(trained, source)
    framing, single = trained.preprocessing.framing, trained.preprocessing.single_frame()
    if framing.frames != "counts" or framing.hot_pixels is not None:
        raise InputError(
            f"{trained.path} sees time surfaces or drops hot pixels, which need whole windows: "
            "predict without --live, or train with frames=counts"
        )
    if window == WHOLE:
        raise InputError("window: a stream has no end, give the length of a window, such as 200ms")
    steps = framing.steps
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
                x = _frame(single, events, sensor_size, source.name).to(trained.device)
                with fixed_seed(trained.device):
                    outputs.append(model(x)[0])
            else:
                reset_state(model)
                outputs.clear()
            if number % steps == 0:
                end = start + step
                begin, total = end - steps * step, sum(counts)
                if total >= max(1, min_events):
                    logits = outputs[-1] if predicts_last(model) else _sum(outputs)
                    yield Prediction(begin, end, total, *_label(trained, logits))
                else:
                    yield Prediction(begin, end, total, None, 0.0)
    reset_state(model)


def _frame(
    single: Preprocessing, events: np.ndarray, sensor_size: tuple[int, int], source: str
) -> Tensor:
    """Return the frame [1, 2, H, W] of one step: zeros where it has no events, or none in the crop.

    Raises:
        InputError: Events that cannot be right.
    """
    framing, seen = single.framing, len(events)
    if seen and framing.crop is not None:
        check_events(events, source, sensor_size)
        seen = len(crop_events(events, sensor_size, framing.crop)[0])
    if not seen:
        return torch.zeros(1, 2, *framing.frame_size(sensor_size))
    return single(events, sensor_size, source)


def logits_of(trained: TrainedModel, samples: Sequence[Tensor]) -> Tensor:
    """Return what `predict` returns of samples [T, 2, H, W]: logits [n, classes]."""
    if not samples:
        return torch.empty(0)
    with fixed_seed(trained.device):
        return predict(trained.model, torch.stack(list(samples), 1).to(trained.device))


def _sum(outputs: Iterable[Tensor]) -> Tensor:
    """Add outputs up in their order, as `predict` does."""
    return reduce(torch.add, outputs)


def _label(trained: TrainedModel, logits: Tensor) -> tuple[str, float]:
    """Return the label of logits as `predict` returns them, and its confidence."""
    steps = 1 if predicts_last(trained.model) else trained.preprocessing.framing.steps
    share = (logits / steps).softmax(0)
    best = int(share.argmax())
    return trained.classes[best], float(share[best])
