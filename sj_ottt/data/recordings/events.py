"""Event recordings in memory: their one form, its checks, and the writer of npz files.

An event is (t, x, y, p): time in µs, column, row, polarity (1 = brighter, 0 = darker). Sensor sizes
are always ``(height, width)``, as frame sizes are.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sj_ottt._files import atomic_write
from sj_ottt.errors import InputError

EVENT_DTYPE = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "i1")])
FIELDS = ("t", "x", "y", "p")
# One damaged coordinate must not make frames of gigabytes. No event camera comes near this.
LARGEST_SENSOR = 4096
# (height, width): N-MNIST, DVS128, DAVIS240 and ATIS of N-Caltech101, DAVIS346, VGA, HD.
_STANDARD_SENSORS = ((34, 34), (128, 128), (180, 240), (260, 346), (480, 640), (720, 1280))


class Recording(NamedTuple):
    """One recording.

    Attributes:
        events: [n] of `EVENT_DTYPE`.
        sensor_size: (height, width) where the file or its format states it, else None.
    """

    events: np.ndarray
    sensor_size: tuple[int, int] | None = None


def pack_events(columns: Mapping[str, np.ndarray], path: str | os.PathLike) -> np.ndarray:
    """Pack t, x, y and p into one array, refusing whatever would change on the way.

    Args:
        columns: Integers or booleans [n] under the names t (µs), x, y and p; a polarity in {-1, 1}
            becomes {0, 1}.
        path: The name that messages give to the recording.

    Returns:
        [n] of `EVENT_DTYPE`.

    Raises:
        InputError: An array is not flat, of another kind or length, or beyond `EVENT_DTYPE`.
    """
    n = columns["t"].size
    events = np.empty(n, EVENT_DTYPE)
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "iub":
            raise InputError(
                f"{path}: array {name!r} is {column.dtype} of shape {column.shape}; save a flat "
                "array of integers (t in µs)"
            )
        if column.size != n:
            raise InputError(
                f"{path}: arrays 't' and {name!r} differ in length ({n} and {column.size}); "
                "convert the recording again"
            )
        limits = np.iinfo(EVENT_DTYPE[name])
        if n and (int(column.min()) < limits.min or int(column.max()) > limits.max):
            raise InputError(
                f"{path}: array {name!r} reaches from {column.min()} to {column.max()}, beyond "
                f"{EVENT_DTYPE[name]}; convert the recording again"
            )
        events[name] = column
    polarity = events["p"]
    if (polarity == -1).any() and (abs(polarity) == 1).all():
        events["p"] = polarity > 0
    return events


def check_events(events: np.ndarray, path: str | os.PathLike, sensor_size: tuple[int, int]) -> None:
    """Refuse a recording that cannot be right.

    Args:
        events: [n] of `EVENT_DTYPE`.
        path: The name that messages give to the recording.
        sensor_size: (height, width) in pixels.

    Raises:
        InputError: No events, a polarity outside {0, 1}, an event outside the sensor or a time
            that runs backwards; names the recording and the first such event.
    """
    if not len(events):
        raise InputError(f"{path}: holds no events; remove the recording or record it again")
    height, width = sensor_size
    t, x, y, p = (events[name] for name in "txyp")
    if (i := _first((p != 0) & (p != 1))) is not None:
        raise InputError(f"{path}: event {i} has polarity {p[i]}; store 0 (darker) or 1 (brighter)")
    if (i := _first((x < 0) | (x >= width) | (y < 0) | (y >= height))) is not None:
        raise InputError(
            f"{path}: event {i} at x={x[i]}, y={y[i]} lies outside the sensor of height {height} "
            f"and width {width}; mend the recording, or state the true size with --sensor-size H W "
            "(in Python sensor_size=(height, width))"
        )
    if (i := _first(t[1:] < t[:-1])) is not None:
        raise InputError(
            f"{path}: time runs backwards at event {i + 1} ({t[i]} to {t[i + 1]} µs); sort the "
            "events by t, or split the file if it holds several recordings"
        )


def extent(events: np.ndarray) -> tuple[int, int]:
    """Return (height, width) of the smallest sensor that holds the events [n], 0 x 0 for none."""
    return int(events["y"].max(initial=-1)) + 1, int(events["x"].max(initial=-1)) + 1


def standard_sensor(height: int, width: int) -> tuple[int, int]:
    """Return (height, width) of the smallest usual sensor that holds so many rows and columns.

    The outermost pixels of a sensor may never have fired, so the extent of a recording's events is
    not its size: of another recording of the same camera it would be another one. Beyond the
    largest usual sensor, the extent itself is returned.
    """
    fits = (s for s in _STANDARD_SENSORS if s[0] >= height and s[1] >= width)
    return next(fits, (height, width))


def write_events(path: str | os.PathLike, events: np.ndarray) -> None:
    """Write one recording as SpikingJelly does: a compressed npz with t (µs), x, y and p.

    The file appears complete or not at all, and equal events give equal bytes.

    Args:
        path: The file to write, ending in ``.npz``.
        events: [n] of `EVENT_DTYPE`.

    Raises:
        InputError: The file cannot be written.
    """
    # Not durable: waiting for the disk at each of thousands of small files would take minutes.
    with atomic_write(Path(path), durable=False) as file:
        t, x, y, p = (events[name] for name in FIELDS)
        np.savez_compressed(file, t=t, x=x, y=y, p=p)


def _first(wrong: np.ndarray) -> int | None:
    """Return the index of the first True, or None."""
    return int(wrong.argmax()) if wrong.any() else None
