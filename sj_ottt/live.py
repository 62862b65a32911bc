"""A trained model on raw recordings and streams: labels window by window, and learning on the way.

Nothing here holds more than a window of events beside what a reader gives at once, so text streams
of any length pass in constant memory.
"""

import io
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sj_ottt.checkpoint import write_model
from sj_ottt.data import NormalizeFrames, check_events, read_recording
from sj_ottt.data.formats import text
from sj_ottt.data.framing import Framing
from sj_ottt.data.labels import Labelled, labels_from_folders, parse_duration, read_labels
from sj_ottt.data.layout import find_recordings
from sj_ottt.data.readers import READERS
from sj_ottt.engine import Trained
from sj_ottt.errors import InputError, suggest
from sj_ottt.learning import CrossEntropyMSE, predict, reset_state, train_step

__all__ = [
    "WHOLE",
    "Adapted",
    "Prediction",
    "Source",
    "adapt",
    "check_trained",
    "durations",
    "fewest_events",
    "follow",
    "label_stream",
    "label_windows",
    "open_labelled",
    "open_source",
]

_BATCH = 32
_PIECE = 1 << 20
_WAIT_S = 0.05
_SNIFFED = 4096
WHOLE = 1 << 62
"""A window that no recording fills: all of it is one sample."""


# Where events come from


class Source(NamedTuple):
    """Where events come from.

    Attributes:
        name: What messages call it.
        chunks: Events in order of time, `data.EVENT_DTYPE`, in pieces of any size.
        sensor_size: (height, width) where that is stated; None takes that of the training data.
    """

    name: str
    chunks: Iterable[np.ndarray]
    sensor_size: tuple[int, int] | None = None


def open_source(path: str | Path) -> Source:
    """Open a recording of any format; text is read piece by piece, all others at once.

    Raises:
        InputError: See `data.read_recording`.
    """
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            is_text = text.sniff(file.read(_SNIFFED))
        if is_text:
            return follow(path, idle=0)._replace(sensor_size=text.stated_size(path))
    recording = read_recording(path)
    return Source(str(path), [recording.events], recording.sensor_size)


def follow(path: str | Path, idle: float | None = None) -> Source:
    """Read text that may still grow, or standard input; see `data.formats.text` for its lines.

    Args:
        path: The file; ``"-"`` for standard input.
        idle: End when a file has not grown for so many seconds; None waits for ever. Standard
            input ends when its writer closes it.

    Raises:
        InputError: The file cannot be read or is of a binary format, or ``idle`` is below 0.
    """
    if idle is not None and not idle >= 0:
        raise InputError(f"idle={idle}: give a number of seconds from 0 on")
    if str(path) == "-":
        stdin = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
        return Source("standard input", _pieces(stdin, "standard input", 0))
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115, closed at its end
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    # A pipe can be read only once, and is text whatever it begins with.
    head = os.pread(file.fileno(), _SNIFFED, 0) if Path(path).is_file() else b""
    binary = (r for r in READERS if r.name != "text" and r.sniff and r.sniff(head))
    if reader := next(binary, None):
        file.close()
        raise InputError(
            f"{path}: is a recording of the format {reader.name}, but a stream is text: predict "
            "without --live"
        )
    return Source(str(path), _pieces(file, str(path), idle))


def _pieces(file: io.RawIOBase, name: str, idle: float | None) -> Iterator[np.ndarray]:
    stream = text.TextStream(name)
    with file:
        grown = time.monotonic()
        while True:
            if piece := file.read(_PIECE):
                grown = time.monotonic()
                yield stream.feed(piece)
            elif idle is not None and time.monotonic() - grown >= idle:
                yield stream.feed(b"", last=True)
                return
            else:
                time.sleep(_WAIT_S)


def open_labelled(
    recordings: Sequence[str | Path], held_out: Sequence[str | Path], labels: str | Path | None
) -> tuple[list[Labelled], list[Labelled]]:
    """Label recordings to learn from, and recordings to test on.

    Args:
        recordings: Files to learn from, or folders of them; keeps their order.
        held_out: The same, to test on.
        labels: CSV of both, and perhaps of others; None takes the names of their folders.

    Raises:
        InputError: A missing file, one without a label or in both lists, or a wrong CSV.
    """
    learned, held = find_recordings(recordings), find_recordings(held_out)
    known = {path.resolve() for path in learned}
    if twice := [path for path in held if path.resolve() in known]:
        raise InputError(f"{twice[0]}: is given twice; a recording is to learn from or held out")
    paths = [*learned, *held]
    if labels is None:
        found = labels_from_folders(paths)
    else:
        found = read_labels(labels, paths, others=True)
    known = {labelled.path: labelled for labelled in found}
    if missing := [path for path in paths if path not in known]:
        raise InputError(f"{labels}: has no line for {missing[0]}; label it or leave it out")
    ordered = [known[path] for path in paths]
    return ordered[: len(learned)], ordered[len(learned) :]


def durations(trained: Trained, window: str | None, stride: str | None) -> tuple[int, int]:
    """Return window and stride in µs.

    Args:
        trained: A model that was trained on windows knows their length.
        window: A time such as ``"200ms"``; None takes the model's, or whole recordings.
        stride: The same; None takes the window.

    Raises:
        InputError: No positive time.
    """
    length = trained.about.get("window") or WHOLE
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
        return (window is None and trained.about.get("min_events")) or 1
    if min_events < 1:
        raise InputError(f"min_events={min_events}: give a whole number from 1 on")
    return min_events


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


def windows(
    chunks: Iterable[np.ndarray], length: int, stride: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Cut a stream into windows that begin ``stride`` apart, from its first event on.

    Args:
        chunks: Events in order of time.
        length: Of a window in µs. One that the stream ends in is left out, unless it is the first.
        stride: In µs.

    Yields:
        The window's start and end in µs from the first event, and its events (with times as they
        were). A stream shorter than a window ends with its last event.
    """
    pending: list[np.ndarray] = []
    begin, start = None, 0

    def complete(until: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Cut the windows that end by ``until``, and forget what lies before the next one."""
        nonlocal start
        if start + length > until:
            return
        events = np.concatenate(pending)
        t = events["t"] - begin
        while start + length <= until:
            first, last = np.searchsorted(t, (start, start + length))
            yield start, start + length, events[first:last]
            start += stride
        pending[:] = [events[np.searchsorted(t, start) :].copy()]

    for chunk in chunks:
        if len(chunk):
            begin = int(chunk["t"][0]) if begin is None else begin
            pending.append(chunk)
            # The next chunk may hold more events of the last one's very µs.
            yield from complete(int(chunk["t"][-1]) - begin)
    if pending and len(pending[-1]):
        yield from complete(int(pending[-1]["t"][-1]) - begin + 1)
    if start == 0 and pending:
        events = np.concatenate(pending)
        yield 0, int(events["t"][-1]) - begin + 1, events


def check_trained(trained: Trained) -> None:
    """Check that a model was trained on recordings.

    Raises:
        InputError: It was not.
    """
    about = trained.about
    if about["in_chans"] != 2 or "sensor_size" not in about:
        raise InputError(
            f"{trained.path} was not trained on recordings (or by a version that did not note "
            "their sensor's size): train on recordings first"
        )


class _Eye:
    """Turns a window's events into what a trained model sees."""

    def __init__(self, trained: Trained, source: Source):
        check_trained(trained)
        about = trained.about
        learned = tuple(about["sensor_size"])
        if source.sensor_size not in (None, learned):
            (h, w), (height, width) = source.sensor_size, learned
            raise InputError(
                f"{source.name}: comes from a sensor of {h} x {w} pixels (height x width), but "
                f"{trained.path} learned from one of {height} x {width}: take recordings of that "
                "camera, or train on a data set whose dataset.json states the sensor_size"
            )
        names = Framing.__dataclass_fields__
        self.framing = Framing(**{k: v for k, v in about.items() if k in names})
        self.sensor_size = learned
        self.source = source.name
        self.normalize = NormalizeFrames() if about["normalize"] else torch.nn.Identity()

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
        trained: From `engine.load_trained`.
        source: The recording.
        window: Length in µs.
        stride: From one window's start to the next one's, in µs.
        min_events: Windows with fewer get no label.

    Yields:
        A prediction for each window.

    Raises:
        InputError: Events that cannot be right, or a model that was not trained on recordings.
    """
    eye = _Eye(trained, source)
    batch: list[tuple[int, int, np.ndarray]] = []

    def flush() -> Iterator[Prediction]:
        told = [len(events) >= max(min_events, eye.fewest) for *_, events in batch]
        seen = [eye.frames(events) for (*_, events), use in zip(batch, told, strict=True) if use]
        logits = iter(_logits(trained, seen))
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
    window without events. The label of a window is that of its T outputs.

    Args:
        trained: From `engine.load_trained`.
        source: The stream.
        window: Length in µs.
        min_events: Windows with fewer get no label; the network sees them all the same.

    Yields:
        A prediction at the end of each window.

    Raises:
        InputError: As `label_windows`; a window shorter than a µs for each step; or a model that
            sees anything but counts of events, of which the next frame cannot be told alone.
    """
    eye = _Eye(trained, source)
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
                outputs.append(model(x)[0])
            else:
                reset_state(model)
                outputs.clear()
            if number % steps == 0:
                end = start + step
                told = sum(counts) >= max(1, min_events)
                said = _say(trained, sum(outputs)) if told else (None, 0.0)
                yield Prediction(end - steps * step, end, sum(counts), *said)
    reset_state(model)


def _logits(trained: Trained, samples: Sequence[Tensor]) -> Tensor:
    if not samples:
        return torch.empty(0)
    return predict(trained.model, torch.stack(list(samples), 1).to(trained.device))


def _say(trained: Trained, logits: Tensor) -> tuple[str, float]:
    """Return the label of logits that are summed over the steps, and its confidence."""
    share = (logits / trained.about["steps"]).softmax(0)
    best = int(share.argmax())
    return trained.about["classes"][best], float(share[best])


# Learning on the way


@dataclass(frozen=True)
class Adapted:
    """What `adapt` did.

    Attributes:
        samples: How many it learned from.
        right: How many of them it labelled rightly, just before it learned from them.
        before: Accuracy on the held-out recordings before; None without any.
        after: The same after.
        held_out: Their number of samples.
    """

    samples: int
    right: int
    before: float | None
    after: float | None
    held_out: int


class _Sample(NamedTuple):
    frames: Tensor
    target: int


def adapt(
    trained: Trained,
    recordings: Sequence[Labelled],
    held_out: Sequence[Labelled] = (),
    *,
    window: int,
    stride: int,
    min_events: int = 1,
    lr: float = 1e-3,
    out: str | Path | None = None,
) -> Adapted:
    """Learn from labelled recordings as from a stream: each sample once, alone, in order (OTTT_O).

    Weights are updated at every time step. The held-out recordings are read twice, and learned
    from never.

    Args:
        trained: The model; changed in place.
        recordings: From `open_labelled`.
        held_out: The same, to test on before and after.
        window: Length of a sample in µs.
        stride: From one sample's start to the next one's, in µs.
        min_events: Windows with fewer are passed over.
        lr: Learning rate of plain stochastic gradient descent.
        out: Folder to write the adapted model to, as ``best.safetensors``.

    Raises:
        InputError: A label that the model does not know, no sample at all, a wrong ``lr``, an
            ``out`` that holds a model already or cannot be made, or as `label_windows`.
    """
    cut = {"window": window, "stride": stride, "min_events": min_events}
    for labelled in (*recordings, *held_out):
        _check_labels(trained, labelled)
    if not (math.isfinite(lr) and lr >= 0):
        raise InputError(f"lr={lr}: give a learning rate of 0 or more")
    if out is not None:
        _make_place(Path(out))
    before, n_held = _accuracy(trained, held_out, **cut)
    optimizer = torch.optim.SGD(trained.model.parameters(), lr)
    samples = right = 0
    for labelled in recordings:
        for frames, target in _samples(trained, labelled, **cut):
            trained.model.train()
            _, logits = train_step(
                trained.model,
                optimizer,
                frames[:, None].to(trained.device),
                torch.tensor([target], device=trained.device),
                loss_fn=CrossEntropyMSE(),
                update="online",
            )
            samples += 1
            right += int(logits.argmax()) == target
    if not samples:
        raise InputError(
            f"no window with {min_events} events lies within a label: shorten window, lower "
            "min_events, or mend the labels"
        )
    after, _ = _accuracy(trained, held_out, **cut)
    if out is not None:
        tensors = {k: v.detach().cpu() for k, v in trained.model.state_dict().items()}
        about = {k: v for k, v in trained.about.items() if k not in ("format", "sha256")}
        write_model(Path(out) / "best.safetensors", tensors, {**about, "adapted": samples})
    return Adapted(samples, right, before, after, n_held)


def _make_place(out: Path) -> None:
    """Make the folder of an adapted model, before the work is done; a model in it stays."""
    if (out / "best.safetensors").exists():
        raise InputError(f"{out}: holds a model already; choose another folder for the adapted one")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be made ({error.strerror}); choose another folder"
        ) from error


def _check_labels(trained: Trained, labelled: Labelled) -> None:
    classes = trained.about["classes"]
    for stretch in labelled.stretches:
        if stretch.label not in classes:
            raise InputError(
                f"{stretch.source}: {stretch.label!r} is no class of the model"
                f"{suggest(stretch.label, classes)}; it knows {', '.join(classes)}"
            )


def _samples(
    trained: Trained, labelled: Labelled, *, window: int, stride: int, min_events: int
) -> Iterator[_Sample]:
    source = open_source(labelled.path)
    eye = _Eye(trained, source)
    for start, end, events in windows(source.chunks, window, stride):
        if len(events) < max(min_events, eye.fewest):
            continue
        for stretch in labelled.stretches:
            if stretch.start <= start and (stretch.end is None or end <= stretch.end):
                target = trained.about["classes"].index(stretch.label)
                yield _Sample(eye.frames(events), target)


def _accuracy(
    trained: Trained, held_out: Sequence[Labelled], **cut: int
) -> tuple[float | None, int]:
    right = total = 0
    for labelled in held_out:
        for frames, target in _samples(trained, labelled, **cut):
            right += int(_logits(trained, [frames])[0].argmax()) == target
            total += 1
    return (right / total if total else None), total
