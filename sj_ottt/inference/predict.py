"""A trained model on raw recordings and streams: labels, window by window.

Nothing here holds more than a window of events and a batch of frames, beside what a source gives at
once.
"""

import contextlib
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sj_ottt.data import Preprocessing, check_events, crop_events
from sj_ottt.data.activity import totals_of
from sj_ottt.data.frames.frames import TooFewEvents
from sj_ottt.data.recordings.label_table import parse_duration
from sj_ottt.data.recordings.source import Source, gather, in_proportion
from sj_ottt.data.recordings.streams import WHOLE, Live, windows
from sj_ottt.data.recordings.walk import walk
from sj_ottt.errors import InputError
from sj_ottt.inference.camera import Watch, check_trained, fit_source
from sj_ottt.learning import predict, reset_state
from sj_ottt.learning.predict import predicts_last
from sj_ottt.run.evaluation import TrainedModel, fixed_seed

__all__ = [
    "Prediction",
    "check_trained",
    "cut",
    "durations",
    "fewest_events",
    "label_stream",
    "label_windows",
    "logits_of",
]

_BATCH = 32
_BATCH_BYTES = 1 << 27  # of frames, where sensors are large
_MANY = 1 << 26


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


def label_windows(
    trained: TrainedModel,
    source: Source,
    window: int,
    stride: int,
    min_events: int = 1,
    *,
    strict: bool = False,
) -> Iterator[Prediction]:
    """Label windows of a recording, each on its own, as the samples in training were.

    Memory holds a window of events and a batch of frames, whatever the recording's length; with
    `WHOLE` for a window, it holds the recording, of 17 bytes an event.

    Args:
        trained: From `load_trained`.
        source: The recording. One of another sensor than the model's is made to fit, with a
            warning; and events at another rate than in training are said in the end.
        window: Length in µs.
        stride: From one window's start to the next one's, in µs.
        min_events: Windows with fewer get no label, nor do those with too few left of the crop.
        strict: Refuse another sensor.

    Yields:
        A prediction for each window.

    Raises:
        InputError: Events that cannot be right, or a model that was not trained on recordings.
    """
    fit, watch = fit_source(trained, source, strict=strict), Watch(trained, source.name)
    batch: list[tuple[int, int, int, Tensor | None]] = []
    held = 0

    def flush() -> Iterator[Prediction]:
        logits = iter(logits_of(trained, [x for *_, x in batch if x is not None]))
        for start, end, events, frames in batch:
            label = (None, 0.0) if frames is None else _label(trained, next(logits))
            yield Prediction(start, end, events, *label)
        batch.clear()

    for start, end, events in cut(source, fit.sensor_size, window, stride):
        frames = None
        if len(events) >= max(1, min_events):
            watch.add(totals_of(events, end - start), fit)
            with contextlib.suppress(TooFewEvents):
                frames = fit.preprocessing(events, fit.sensor_size, source.name)
                held += frames.nbytes
        batch.append((start, end, len(events), frames))
        if len(batch) == _BATCH or held > _BATCH_BYTES:
            yield from flush()
            held = 0
    yield from flush()
    watch.report()


def cut(
    source: Source, sensor_size: tuple[int, int], window: int, stride: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Cut a recording into windows, see `windows`; with `WHOLE`, into one.

    Args:
        source: The recording.
        sensor_size: (height, width) that must hold every event.
        window: Length in µs.
        stride: From one window's start to the next one's, in µs.

    Raises:
        InputError: Events that cannot be right.
    """
    if window != WHOLE:
        yield from windows(walk(source, sensor_size), window, stride)
        return
    if (source.expected or 0) > _MANY:
        warnings.warn(
            f"{source.name}: is one sample, whose about {source.expected:,} events are all held in "
            "memory (17 bytes each); give --window for a label per window",
            stacklevel=2,
        )
    blocks = walk(source._replace(chunks=in_proportion(source)), sensor_size)
    events = gather(blocks)
    yield 0, int(events["t"][-1] - events["t"][0]) + 1, events


def label_stream(
    trained: TrainedModel,
    source: Source,
    window: int,
    min_events: int = 1,
    *,
    strict: bool = False,
) -> Iterator[Prediction]:
    """Label a stream as it comes, the membranes kept from one window to the next.

    The network takes one frame each T-th of a window; it starts anew only after a whole window
    without events. The label of a window is that of its T outputs together, or of the last one
    where the model's `prediction` is "last". Where events come late, or time starts anew, see
    `Live`: the network and the count of the windows then start anew too, with a warning.

    Args:
        trained: From `load_trained`.
        source: The stream.
        window: Length in µs.
        min_events: Windows with fewer get no label; the network sees them all the same.
        strict: As in `label_windows`; refuse events that come late, too.

    Yields:
        A prediction at the end of each window.

    Raises:
        InputError: As `label_windows`; a window shorter than a µs for each step; or a model that
            sees anything but counts of events, whose next frame depends on the whole window.
    """
    fit, watch = fit_source(trained, source, strict=strict), Watch(trained, source.name)
    framing, single = fit.preprocessing.framing, fit.preprocessing.single_frame()
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
    live = Live(source, step, strict=strict)
    with torch.inference_mode():
        for chunks in live.parts():
            reset_state(model)
            outputs.clear()
            counts.clear()
            in_windows = 0
            for number, (start, _, events) in enumerate(windows(chunks, step, step), start=1):
                counts.append(len(events))
                if sum(counts):
                    watch.add(totals_of(events, step), fit)
                    x = _frame(single, events, fit.sensor_size, source.name).to(trained.device)
                    with fixed_seed(trained.device):
                        outputs.append(model(x)[0])
                else:
                    reset_state(model)
                    outputs.clear()
                if number % steps == 0:
                    end = start + step
                    begin, total = end - steps * step, sum(counts)
                    in_windows += total
                    if total >= max(1, min_events):
                        logits = outputs[-1] if predicts_last(model) else _sum(outputs)
                        yield Prediction(begin, end, total, *_label(trained, logits))
                    else:
                        yield Prediction(begin, end, total, None, 0.0)
            if live.back:
                warnings.warn(
                    f"{source.name}: time runs back by {live.back / 1e6:g} s, as where a camera "
                    "starts anew: a new stream begins, with windows from 0 s on; "
                    f"{live.events - in_windows} events before it fill no window and are left out",
                    stacklevel=2,
                )
    reset_state(model)
    watch.report()


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
