"""From events to frames: event counts in T equal parts of a recording."""

import operator
import os
from collections.abc import Sequence

import numpy as np

from sj_ottt.data.events import check_events
from sj_ottt.errors import InputError

SPLITS_BY = ("count", "duration")


def events_to_frames(
    events: np.ndarray,
    steps: int,
    sensor_size: tuple[int, int],
    size: tuple[int, int] | None = None,
    split_by: str = "count",
    *,
    source: str | os.PathLike = "events",
) -> np.ndarray:
    """Count the events of a recording in T = ``steps`` consecutive frames.

    Every event lands in exactly one frame, so the counts always add up to the number of events.
    With n events and first and last time t0 and t1, frame i holds

    - by ``"count"``: events ``i * n // T`` up to, not including, ``(i + 1) * n // T``. The frames
      differ by at most one event and none is empty;
    - by ``"duration"``: times from edge i up to, not including, edge i + 1, where edge i is
      ``t0 + i * (t1 - t0) // T`` µs; the last frame includes t1. A frame is empty only where the
      sensor was silent.

    Args:
        events: [n] of `EVENT_DTYPE`, in order of time.
        steps: T, the number of frames.
        sensor_size: (height, width) of the sensor in pixels.
        size: (height, width) of the frames; each event moves to
            ``(y * height // sensor_height, x * width // sensor_width)``. None keeps the sensor's.
        split_by: ``"count"`` or ``"duration"``.
        source: The name that messages give to the recording.

    Returns:
        Counts, int32 [T, 2, H, W]; channel 0 holds polarity 0 (darker), channel 1 polarity 1.

    Raises:
        InputError: A wrong argument, events that fail `check_events`, or fewer than T events to
            share by count.
    """
    steps = check_steps(steps)
    check_split_by(split_by)
    sensor_size = check_size("sensor_size", sensor_size)
    height, width = check_size("size", size) if size is not None else sensor_size
    check_events(events, source, sensor_size)

    n = len(events)
    if split_by == "count":
        if n < steps:
            raise InputError(
                f"{source}: {n} events cannot fill {steps} frames; use at most {n} steps, "
                "split_by='duration', or remove the recording"
            )
        edges = np.arange(steps + 1) * n // steps
        frame = np.repeat(np.arange(steps), np.diff(edges))
    else:
        t = events["t"]
        inner_edges = t[0] + np.arange(1, steps) * (t[-1] - t[0]) // steps
        frame = np.searchsorted(inner_edges, t, side="right")

    row = events["y"].astype(np.int64) * height // sensor_size[0]
    column = events["x"].astype(np.int64) * width // sensor_size[1]
    cell = ((frame * 2 + events["p"]) * height + row) * width + column
    counts = np.bincount(cell, minlength=steps * 2 * height * width)
    return counts.astype(np.int32).reshape(steps, 2, height, width)


def check_steps(steps: int) -> int:
    """Return ``steps`` as an int; `InputError` unless it is a whole number of at least 1."""
    if (value := _whole(steps)) is None or value < 1:
        raise InputError(f"steps={steps!r}: give a whole number of frames, at least 1")
    return value


def check_size(name: str, size: Sequence[int]) -> tuple[int, int]:
    """Return ``size`` as (height, width); `InputError`, naming the argument, unless it is one."""
    values = [_whole(side) for side in size] if isinstance(size, Sequence) else []
    if len(values) != 2 or any(value is None or value < 1 for value in values):
        raise InputError(f"{name}={size!r}: give (height, width), two whole numbers of pixels")
    return values[0], values[1]


def check_split_by(split_by: str) -> None:
    """Raise `InputError` unless ``split_by`` is a known way to cut a recording into frames."""
    if split_by not in SPLITS_BY:
        raise InputError(f"split_by={split_by!r}: choose one of {', '.join(SPLITS_BY)}")


def _whole(value: object) -> int | None:
    """Return an integer of any kind as an int, and None for anything else, booleans included."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
