"""Event recordings: one form in memory, an open table of readers, one writer, and the checks.

An event is (t, x, y, p): time in µs, column, row, polarity (1 = brighter, 0 = darker). Sensor sizes
are always ``(height, width)``, as frame sizes are.
"""

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sj_ottt.errors import InputError
from sj_ottt.files import atomic_write

EVENT_DTYPE = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "i1")])

# In the ATIS stream behind N-MNIST, this row marks an overflow of the camera's clock, not a pixel.
_OVERFLOW_ROW = 240
_OVERFLOW_US = 1 << 13


class Reader(NamedTuple):
    """One row of the reader table.

    Attributes:
        name: The format, as messages call it.
        suffixes: Lower-case file endings under which the format is found.
        sniff: Tells from a file's first 64 bytes whether it is of this format; None where the
            format has no mark of its own, and the ending decides.
        read: Reads a file; raises `InputError`.
        sensor_size: (height, width) where the format has only one, else None.
    """

    name: str
    suffixes: tuple[str, ...]
    sniff: Callable[[bytes], bool] | None
    read: Callable[[Path], np.ndarray]
    sensor_size: tuple[int, int] | None = None


def read_events(path: str | os.PathLike) -> np.ndarray:
    """Read one recording, in whichever of the formats in `READERS` it is.

    Args:
        path: The file. Its content decides about the format, then its ending.

    Returns:
        Events as stored, unchecked: [n] of `EVENT_DTYPE`, polarity in {0, 1} also where the file
        holds {-1, 1} or booleans. See `check_events`.

    Raises:
        InputError: The file is missing, truncated, or of no known format.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(64)
        return _reader_for(path, head).read(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such recording; check the path") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def recording_suffixes() -> tuple[str, ...]:
    """Return the file endings that some reader knows, sorted."""
    return tuple(sorted({suffix for reader in READERS for suffix in reader.suffixes}))


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
            f"and width {width}; mend the recording or pass the true sensor_size=(height, width)"
        )
    if (i := _first(t[1:] < t[:-1])) is not None:
        raise InputError(
            f"{path}: time runs backwards at event {i + 1} ({t[i]} to {t[i + 1]} µs); sort the "
            "events by t, or split the file if it holds several recordings"
        )


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
        np.savez_compressed(file, **{name: events[name] for name in EVENT_DTYPE.names})


def _first(wrong: np.ndarray) -> int | None:
    """Return the index of the first True, or None."""
    return int(wrong.argmax()) if wrong.any() else None


def _reader_for(path: Path, head: bytes) -> Reader:
    suffix = path.suffix.lower()
    for reader in READERS:
        if reader.sniff is not None and reader.sniff(head):
            return reader
    for reader in READERS:
        if suffix in reader.suffixes:
            if reader.sniff is None:
                return reader
            raise InputError(
                f"{path}: does not begin as an {reader.name} file does; it is truncated or "
                "misnamed: copy or convert it again"
            )
    known = ", ".join(f"{reader.name} ({'/'.join(reader.suffixes)})" for reader in READERS)
    raise InputError(f"{path}: unknown recording format; convert it to one of: {known}")


def _read_npz(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in EVENT_DTYPE.names if name in archive}
            found = ", ".join(archive.files) or "nothing"
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{path}: truncated, corrupt or pickled npz ({' '.join(str(error).split())}); copy or "
            "convert it again, with plain integer arrays"
        ) from error
    if missing := [name for name in EVENT_DTYPE.names if name not in columns]:
        raise InputError(
            f"{path}: npz lacks the array {missing[0]!r} (it holds {found}); save t (µs), x, y "
            "and p, all of one length"
        )
    return _from_columns(columns, path)


def _read_nmnist(path: Path) -> np.ndarray:
    raw = np.fromfile(path, dtype=np.uint8)
    if raw.size % 5:
        raise InputError(
            f"{path}: truncated: {raw.size} bytes is no multiple of the 5 bytes of an N-MNIST "
            "event; copy it again"
        )
    raw = raw.reshape(-1, 5)
    overflow = raw[:, 1] == _OVERFLOW_ROW
    t = np.cumsum(overflow, dtype=np.int64) * _OVERFLOW_US
    t += (raw[:, 2].astype(np.int64) & 0x7F) << 16
    t += raw[:, 3].astype(np.int64) << 8
    t += raw[:, 4]
    columns = {"t": t, "x": raw[:, 0], "y": raw[:, 1], "p": raw[:, 2] >> 7}
    return _from_columns({name: column[~overflow] for name, column in columns.items()}, path)


def _from_columns(columns: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    """Pack t, x, y and p into one array, refusing whatever would change on the way."""
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


# The open table: a further format is one more row. Marked formats are tried first, in this order.
READERS: tuple[Reader, ...] = (
    Reader("npz", (".npz",), lambda head: head.startswith(b"PK"), _read_npz),
    Reader("N-MNIST", (".bin",), None, _read_nmnist, sensor_size=(34, 34)),
)
