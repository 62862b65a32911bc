"""From events to frames: what happened in T parts of a recording, as counts or a time surface."""

import operator
import os
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np

from sj_ottt.data.recordings.events import check_events
from sj_ottt.data.recordings.source import BLOCK
from sj_ottt.errors import InputError

# In one sample: 2 GB, far beyond what any network is trained on.
_MOST_VALUES = 1 << 29
SPLITS_BY = ("count", "duration")

Crop = tuple[int, int] | tuple[int, int, int, int]


class TooFewEvents(InputError):
    """Fewer events than frames can be made of, none of which need be wrong."""


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
        InputError: A wrong argument, events that fail `check_events`, or (`TooFewEvents`) fewer
            than T events to share by count.
    """
    edges, _ = _cut(events, steps, split_by, sensor_size, size, source)
    height, width = size if size is not None else sensor_size
    counts = np.zeros((len(edges) - 1, 2 * height * width), np.int32)
    for begin in range(0, len(events), BLOCK):  # a long recording needs no memory beside its events
        end = min(begin + BLOCK, len(events))
        frame = np.repeat(np.arange(len(counts)), np.diff(np.clip(edges, begin, end)))
        first, last = frame[0], frame[-1]
        cell, _ = _cells(events[begin:end], sensor_size, size)
        cell += (frame - first) * counts.shape[1]
        part = counts[first : last + 1]
        part += np.bincount(cell, minlength=part.size).reshape(part.shape)
    return counts.reshape(-1, 2, height, width)


def time_surface(
    events: np.ndarray,
    steps: int,
    sensor_size: tuple[int, int],
    size: tuple[int, int] | None = None,
    split_by: str = "count",
    tau_us: float | None = None,
    *,
    source: str | os.PathLike = "events",
) -> np.ndarray:
    """Show at the end of each of T = ``steps`` frames how long ago each pixel has fired last.

    With e the end of a frame (of equal duration: its edge; of equal count: its last event) and t
    the time of a pixel's last event of one polarity up to e, in this frame or an earlier one,

        S = exp(-(e - t) / tau)

    and S = 0 where there was none. Where frames are smaller than the sensor, the last event of all
    pixels that fall together counts.

    Args:
        events: As in `events_to_frames`.
        steps: T, as there.
        sensor_size: As there.
        size: As there.
        split_by: As there: where the frames end.
        tau_us: Time constant tau in µs; None takes half of the frames' mean duration.
        source: As there.

    Returns:
        Values in [0, 1], float32 [T, 2, H, W].

    Raises:
        InputError: As there, or a time constant that is not above 0.
    """
    if tau_us is not None:
        check_tau(tau_us)
    edges, ends = _cut(events, steps, split_by, sensor_size, size, source)
    cell, (height, width) = _cells(events, sensor_size, size)
    t = events["t"].astype(np.float64)
    if tau_us is None:
        tau_us = max((t[-1] - t[0]) / (2 * len(ends)), 1.0)
    surface = np.empty((len(ends), 2 * height * width), np.float32)
    last = np.full(2 * height * width, -np.inf)
    for i, end in enumerate(ends):
        part = slice(edges[i], edges[i + 1])
        np.maximum.at(last, cell[part], t[part])
        surface[i] = np.exp((last - end) / tau_us)
    return surface.reshape(-1, 2, height, width)


def crop_events(
    events: np.ndarray, sensor_size: tuple[int, int], crop: Crop
) -> tuple[np.ndarray, tuple[int, int]]:
    """Drop the events outside a box of the sensor, and count rows and columns from its corner.

    Args:
        events: [n] of `EVENT_DTYPE`.
        sensor_size: (height, width) of the sensor in pixels.
        crop: (height, width) of a box in the sensor's middle, or (top, left, height, width).

    Returns:
        The events inside, as new ones, and the (height, width) of the box.

    Raises:
        InputError: A box that is not within the sensor.
    """
    top, left, height, width = crop_box(crop, check_size("sensor_size", sensor_size))
    y, x = events["y"], events["x"]
    inside = events[(y >= top) & (y < top + height) & (x >= left) & (x < left + width)]
    inside["y"] -= top
    inside["x"] -= left
    return inside, (height, width)


def check_steps(steps: int) -> int:
    """Return ``steps`` as an int; `InputError` unless it is a whole number of at least 1."""
    if (value := _whole(steps)) is None or value < 1:
        raise InputError(f"steps={steps!r}: give a whole number of frames, at least 1")
    return value


def check_size(name: str, size: Sequence[int]) -> tuple[int, int]:
    """Return ``size`` as (height, width); `InputError`, naming the argument, unless it is one."""
    values = _whole_numbers(size)
    if len(values) != 2 or min(values) < 1:
        raise InputError(f"{name}={size!r}: give (height, width), two whole numbers of pixels")
    return values[0], values[1]


def check_split_by(split_by: str) -> None:
    """Raise `InputError` unless ``split_by`` is one of `SPLITS_BY`."""
    if split_by not in SPLITS_BY:
        raise InputError(f"split_by={split_by!r}: choose one of {', '.join(SPLITS_BY)}")


def check_tau(tau_us: float) -> float:
    """Return ``tau_us``; `InputError` unless it is a number above 0."""
    if not 0 < tau_us < float("inf"):
        raise InputError(f"tau_us={tau_us!r}: give a time in µs above 0")
    return tau_us


def check_crop(crop: Crop) -> tuple[int, ...]:
    """Return ``crop`` as a tuple of ints; `InputError` unless it is two or four that make a box."""
    values = _whole_numbers(crop)
    if len(values) not in (2, 4) or min(values) < 0 or min(values[-2:]) < 1:
        raise InputError(
            f"crop={crop!r}: give (height, width) or (top, left, height, width) in pixels"
        )
    return tuple(values)


def crop_box(crop: Crop, sensor_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a crop as (top, left, height, width).

    Raises:
        InputError: It is not within the sensor.
    """
    *corner, height, width = check_crop(crop)
    top, left = corner or ((sensor_size[0] - height) // 2, (sensor_size[1] - width) // 2)
    if min(top, left) < 0 or top + height > sensor_size[0] or left + width > sensor_size[1]:
        raise InputError(
            f"crop={crop!r}: reaches beyond the sensor of height {sensor_size[0]} and width "
            f"{sensor_size[1]}; give a box inside"
        )
    return top, left, height, width


def _cut(
    events: np.ndarray,
    steps: int,
    split_by: str,
    sensor_size: tuple[int, int],
    size: tuple[int, int] | None,
    source: str | os.PathLike,
) -> tuple[np.ndarray, np.ndarray]:
    """Check everything; return where frames begin and end.

    Frame i holds events ``edges[i]`` up to, not including, ``edges[i + 1]``, and ends at time
    ``ends[i]``: edges [T + 1], ends [T].
    """
    steps = check_steps(steps)
    check_split_by(split_by)
    check_events(events, source, check_size("sensor_size", sensor_size))
    height, width = sensor_size if size is None else check_size("size", size)
    pixels = height * width
    n, t = len(events), events["t"]
    if 2 * steps * pixels > _MOST_VALUES:
        raise InputError(
            f"{source}: {steps} frames of {pixels} pixels are {8 * steps * pixels:,} bytes for one "
            "sample; give fewer steps, or a size"
        )
    if split_by == "count":
        if n < steps:
            raise TooFewEvents(
                f"{source}: {n} events cannot fill {steps} frames; use at most {n} steps, "
                "split_by='duration', or remove the recording"
            )
        edges = np.arange(steps + 1) * n // steps
        return edges, t[edges[1:] - 1]
    ends = t[0] + np.arange(1, steps + 1) * (t[-1] - t[0]) // steps
    return np.concatenate([[0], np.searchsorted(t, ends[:-1]), [n]]), ends


def _cells(
    events: np.ndarray, sensor_size: tuple[int, int], size: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return each event's index in a flat frame [2, H, W], and the frame's (height, width)."""
    height, width = check_size("size", size) if size is not None else sensor_size
    row = events["y"].astype(np.int64) * height // sensor_size[0]
    column = events["x"].astype(np.int64) * width // sensor_size[1]
    return (events["p"].astype(np.int64) * height + row) * width + column, (height, width)


def _whole_numbers(values: Sequence[int]) -> list[int]:
    """Return integers of any kind as ints, and nothing for anything else."""
    if not isinstance(values, Sequence):
        return []
    whole = [number for value in values if (number := _whole(value)) is not None]
    return whole if len(whole) == len(values) else []


def _whole(value: SupportsIndex) -> int | None:
    """Return an integer of any kind as an int, and None for anything else, booleans included."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
