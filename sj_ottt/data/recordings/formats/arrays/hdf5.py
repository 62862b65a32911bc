"""Events in HDF5, in whatever layout.

Looked for are arrays t, x, y and p in one group, records with such fields, and tables of four
numbers in a row whose name has "event" in it:

- DSEC: the arrays t, x, y and p in the group ``events``; the root's ``t_offset`` (µs) is added
  to t.
- Prophesee: records in ``CD/events``. Metavision writes them with its own ECF compression, for
  which HDF5 needs Prophesee's plugin.
- v2e and MVSEC: tables, ``events`` and ``davis/left/events``.
- M3ED: the arrays x, y, t and p in ``prophesee/left``.
- event_utils: the arrays xs, ys, ts and ps in ``events``.

Other names of columns, units and tables without names are told as `formats.columns` does. Of
several cameras, one must be chosen. The sensor's size is taken from attributes and arrays named
``height`` and ``width``, ``geometry``, ``resolution``, ``sensor_resolution`` or ``sensor_size``.
"""

import math
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sj_ottt.data.recordings.formats.arrays.table import (
    BLOCK,
    choose,
    events,
    fields,
    is_numeric,
    is_table,
)
from sj_ottt.data.recordings.formats.columns import Named, named
from sj_ottt.data.recordings.formats.common import (
    LARGEST_RECORD,
    assume,
    check_stated_bytes,
    cut_off,
    optional,
    reason,
)
from sj_ottt.data.recordings.formats.unpacking import LARGEST_PIECE
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

if TYPE_CHECKING:
    import h5py

_ECF = 0x8ECF
_DEEPEST, _MOST_OBJECTS = 4, 2000
_PAIRS = ("sensor_resolution", "sensor_size", "resolution", "geometry", "calib/resolution")
_MVSEC = re.compile(r"davis/(left|right)/events")
_HEAP = b"GCOL\1\0\0\0"
_LARGEST_HEAP = 1 << 24


class _Place(NamedTuple):
    """Where events are in a file: a group's arrays or one array, and its columns' names."""

    path: str
    arrays: tuple[str, ...]
    what: Named | None


def sniff(head: bytes) -> bool:
    """Recognize an HDF5 file; one of MATLAB 7.3 begins with 512 bytes of its own."""
    return b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:520])


def stream(path: Path, options: ReadOptions) -> Source:
    """Read events from an HDF5 file, slice by slice."""
    h5py = optional("h5py", path)
    optional("hdf5plugin", path)  # importing it teaches HDF5 its compressions
    try:
        with h5py.File(path, "r") as file:
            place = _choose(list(_places(file, path)), file, path, options)
            arrays = [file[name] for name in place.arrays]
            _check(arrays, path)
            lengths = [_length(array) for array in arrays]
            size = _sensor_size(file, place, path, options)
            offset, exact = _offset(file), _is_microseconds(arrays, place)
            from_one = file.userblock_size == 512
    except InputError:
        raise
    except Exception as error:  # h5py raises whatever HDF5's own error suggests
        raise _damaged(path, error) from error
    n = min(lengths)
    if max(lengths) > n:
        lost = f"{n} of {max(lengths)} events have all of t, x, y and p"
        cut_off(path, options, lost)
    chunks = events(
        _slices(path, place, n),
        place.what,
        path,
        options,
        unit="us" if exact else None,
        offset_us=offset,
        from_one=from_one,
    )
    return Source(str(path), chunks, size, n)


def _places(file: "h5py.File", path: Path) -> Iterator[_Place]:
    """Find all events, in the order of their names."""
    import h5py

    waiting: list[tuple[str, int]] = [("", 0)]
    seen = 0
    while waiting:
        at, depth = waiting.pop(0)
        group = file[at] if at else file
        arrays: list[str] = []
        for name in group:
            seen += 1
            item, full = _member(group, name), f"{at}/{name}".lstrip("/")
            if item is None or seen > _MOST_OBJECTS:
                continue
            if isinstance(item, h5py.Group):
                if depth < _DEEPEST:
                    waiting.append((full, depth + 1))
            elif not isinstance(item, h5py.Dataset) or not item.shape:
                continue
            elif item.dtype.names:
                if len(item.shape) == 1 and (what := fields(item.dtype, path)):
                    yield _Place(full, (full,), what)
            elif is_numeric(item.dtype) and _is_flat(item):
                arrays.append(name)
            elif "event" in name.lower() and is_table(item.shape, item.dtype):
                yield _Place(full, (full,), None)
        if what := named(arrays, path):
            names = tuple(f"{at}/{arrays[i]}".lstrip("/") for i in what.columns.values())
            columns = {field: i for i, field in enumerate(what.columns)}
            yield _Place(at or "/", names, what._replace(columns=columns))


def _member(group: Any, name: str) -> Any:
    """Return what lies in a group; None where nothing does, or a link, maybe to another file."""
    import h5py

    for part in name.split("/"):
        if not isinstance(group, h5py.Group):
            return None
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            return None
        group = group[part]
    return group


def _choose(
    places: Sequence[_Place], file: "h5py.File", path: Path, options: ReadOptions
) -> _Place:
    if not places:
        raise InputError(
            f"{path}: HDF5 without events/t (DSEC), CD/events (Prophesee) or the like; it holds "
            f"{', '.join(list(file)[:9]) or 'nothing'}: save t (µs), x, y and p under events"
        )
    return places[choose([place.path for place in places], path, options)]


def _is_flat(array: "h5py.Dataset") -> bool:
    """Whether an array is a column; MATLAB's have a second side of 1."""
    return len(array.shape) == 1 or (len(array.shape) == 2 and 1 in array.shape)


def _is_upright(array: "h5py.Dataset") -> bool:
    """Whether columns lie one below the other, as rows of the array."""
    return len(array.shape) == 2 and array.shape[1] not in (1, 4, 5)


def _length(array: "h5py.Dataset") -> int:
    return int(array.shape[1] if _is_upright(array) else array.shape[0])


def _is_microseconds(arrays: "Sequence[h5py.Dataset]", place: _Place) -> bool:
    """Whether the layout is DSEC's or Prophesee's, whose times are µs."""
    if place.path == "events" and len(arrays) > 1:
        return place.arrays[0] == "events/t" and arrays[0].dtype.kind in "iu"
    return place.path == "CD/events"


def _slices(path: Path, place: _Place, n: int) -> Iterator[list[np.ndarray]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            arrays = [file[name] for name in place.arrays]
            # Whole chunks, or HDF5 would unpack those at the borders twice.
            chunk = max(max(array.chunks or (1,)) for array in arrays)
            step = max(chunk, BLOCK // chunk * chunk)
            for i in range(0, n, step):
                yield _read(arrays, i, min(i + step, n))
    except Exception as error:
        raise _damaged(path, error) from error


def _read(arrays: "Sequence[h5py.Dataset]", start: int, end: int) -> list[np.ndarray]:
    if len(arrays) > 1:
        return [
            array[0, start:end] if _is_upright(array) else np.ravel(array[start:end])
            for array in arrays
        ]
    if _is_upright(arrays[0]):
        return list(arrays[0][:, start:end])
    block = arrays[0][start:end]
    if block.dtype.names:
        return [block[name] for name in block.dtype.names]
    return list(block.T)


def _check(arrays: "Sequence[h5py.Dataset]", path: Path) -> None:
    """Check sizes, compressions and that nothing lies outside the file."""
    import h5py

    check_stated_bytes(path, sum(array.size * array.dtype.itemsize for array in arrays))
    for array in arrays:
        if array.external or array.is_virtual:
            raise InputError(f"{path}: {array.name} lies in other files; convert it to one file")
        chunk = math.prod(array.chunks or (1,)) * array.dtype.itemsize
        if array.dtype.itemsize > LARGEST_RECORD or chunk > LARGEST_PIECE:
            raise InputError(
                f"{path}: {array.name} lies in chunks of {chunk} bytes, records of "
                f"{array.dtype.itemsize}, which would be read as wholes; write it anew in smaller "
                "ones, as h5repack -l CHUNK=65536 does"
            )
        filters = array.id.get_create_plist()
        for i in range(filters.get_nfilters()):
            code = filters.get_filter(i)[0]
            if not h5py.h5z.filter_avail(code):
                remedy = (
                    "install Prophesee's hdf5_ecf plugin and point HDF5_PLUGIN_PATH to it, or "
                    "convert the recording with Metavision to RAW or DAT"
                    if code == _ECF
                    else "install its plugin and point HDF5_PLUGIN_PATH to it"
                )
                name = "ECF" if code == _ECF else f"filter {code}"
                raise InputError(
                    f"{path}: compressed with HDF5's {name}, which is not there; {remedy}"
                )


def _offset(file: "h5py.File") -> int:
    import h5py

    if not isinstance(item := _member(file, "t_offset"), h5py.Dataset):
        return 0
    if (
        item.size != 1
        or item.dtype.kind not in "iu"
        or abs(value := int(np.ravel(item[()])[0])) >= 2**62
    ):
        raise ValueError("t_offset is not one whole number")
    return value


def _sensor_size(
    file: "h5py.File", place: _Place, path: Path, options: ReadOptions
) -> tuple[int, int] | None:
    """Return the size that the events, or what they lie in, state."""
    parts = place.path.strip("/").split("/")
    for n in range(len(parts), -1, -1):
        item = file["/".join(parts[:n]) or "/"]
        height, width = (_numbers(item, name, path) for name in ("height", "width"))
        if len(height) == len(width) == 1:
            return _as_size(height[0], width[0])
        for name in _PAIRS:
            pair = _numbers(item, name, path)
            if len(pair) != 2:
                continue
            if name in ("geometry", "calib/resolution"):
                return _as_size(pair[1], pair[0])
            if pair[0] > pair[1]:
                assumed = f"{name} {pair[0]}, {pair[1]} is taken as width and height"
                assume(path, options, assumed, "pass --sensor-size")
                pair = pair[::-1]
            return _as_size(*pair)
    return (260, 346) if _MVSEC.fullmatch(place.path) else None


def _as_size(height: int, width: int) -> tuple[int, int] | None:
    return (height, width) if 0 < height < 2**15 and 0 < width < 2**15 else None


def _numbers(item: Any, name: str, path: Path) -> tuple[int, ...]:
    """Return the whole numbers of an attribute or a small array; none for any other."""
    import h5py

    if name in item.attrs:
        if item.attrs.get_id(name).shape not in ((), (1,), (2,)):
            return ()
        kind = item.attrs.get_id(name).dtype
        if kind.hasobject:
            _check_heaps(path)
        value = item.attrs[name]
    elif isinstance(member := _member(item, name), h5py.Dataset):
        if member.size not in (1, 2) or member.dtype.kind not in "iuf":
            return ()
        value = member[()]
    else:
        return ()
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        sides = re.fullmatch(r"\s*(\d{1,5})\s*[x,; ]\s*(\d{1,5})\s*|(\d{1,5})", value)
        return tuple(int(side) for side in sides.groups() if side) if sides else ()
    numbers = np.ravel(value)
    if numbers.dtype.kind not in "iuf" or not (np.abs(numbers) < 2**15).all():
        return ()
    return tuple(int(number) for number in numbers)


def _check_heaps(path: Path) -> None:
    """Raise `ValueError` at a damaged heap of texts, in which the HDF5 library would loop forever.

    A heap is ``GCOL``, version 1, three zeros and its length; then objects: number, references,
    four zeros and length, and behind them the bytes, padded to a multiple of 8. Number 0 is the
    free space, whose length includes these 16 bytes.
    """
    size = path.stat().st_size
    steps = size // 16  # no file holds more objects
    with open(path, "rb") as file:
        for start in _heaps(path):
            file.seek(start + len(_HEAP))
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            if start + length > size:
                continue
            if length > _LARGEST_HEAP:
                raise ValueError(f"a heap of {length} bytes at byte {start}")
            heap = file.read(max(length - 16, 0))
            at = 0
            while at + 16 <= len(heap):
                number, n = struct.unpack_from("<H6xQ", heap, at)
                steps -= 1
                if (number == 0 and n == 0) or steps < 0:
                    raise ValueError(f"an empty object at byte {start + 16 + at}")
                at += 16 + -(-n // 8) * 8 if number else n


def _heaps(path: Path) -> Iterator[int]:
    """Find all marks of heaps, piece by piece."""
    with open(path, "rb") as file:
        before, offset = b"", 0
        while piece := file.read(1 << 20):
            data = before + piece
            at = -1
            while (at := data.find(_HEAP, at + 1)) >= 0:
                yield offset - len(before) + at
            before = data[-(len(_HEAP) - 1) :]
            offset += len(piece)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: truncated or damaged HDF5 file ({reason(error)}); copy it again")
