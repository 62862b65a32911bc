"""Events in HDF5: as DSEC keeps them, and as Prophesee's Metavision does.

- DSEC: the arrays t, x, y and p in the group ``events``; the root's ``t_offset`` (µs) is added
  to t.
- Prophesee: records with the fields t, x, y and p in ``CD/events``, the sensor's size in the root
  attribute ``geometry``. Metavision writes them with its own ECF compression, for which HDF5 needs
  Prophesee's plugin.
"""

import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sj_ottt.data.recordings.events import FIELDS, Recording, pack_events
from sj_ottt.data.recordings.formats.common import at_once, check_stated_bytes, optional, reason
from sj_ottt.errors import InputError

if TYPE_CHECKING:
    import h5py

_ECF = 0x8ECF


def sniff(head: bytes) -> bool:
    """Recognize an HDF5 file."""
    return head.startswith(b"\x89HDF\r\n\x1a\n")


def read(path: Path) -> Recording:
    """Read an HDF5 file in one of the two layouts."""
    h5py = optional("h5py", path)
    optional("hdf5plugin", path)  # importing it teaches HDF5 its compressions
    try:
        with h5py.File(path, "r") as file:
            return _read(file, path)
    except InputError:
        raise
    except Exception as error:  # h5py raises whatever HDF5's own error suggests
        raise InputError(
            f"{path}: truncated or damaged HDF5 file ({reason(error)}); copy it again"
        ) from error


def _read(file: "h5py.File", path: Path) -> Recording:
    if "CD/events" in file:
        events = _load({"events": file["CD/events"]}, path)["events"]
        columns = {name: events[name] for name in FIELDS if name in (events.dtype.names or ())}
    elif "events" in file and hasattr(file["events"], "keys"):
        group = file["events"]
        columns = _load({name: group[name] for name in FIELDS if name in group}, path)
        if "t" in columns and "t_offset" in file:
            (offset,) = _load({"t_offset": file["t_offset"]}, path).values()
            columns["t"] = columns["t"].astype(np.int64) + np.int64(offset)
    else:
        columns = {}
    if missing := [name for name in FIELDS if name not in columns]:
        raise InputError(
            f"{path}: HDF5 without events/{missing[0]} (DSEC) or CD/events (Prophesee); it holds "
            f"{', '.join(file) or 'nothing'}: save t (µs), x, y and p under events"
        )
    return Recording(pack_events(columns, path), _sensor_size(file, path))


def _load(datasets: "Mapping[str, h5py.Dataset]", path: Path) -> dict[str, np.ndarray]:
    """Load whole datasets, after checks of their size, compression and type."""
    check_stated_bytes(path, sum(data.size * data.dtype.itemsize for data in datasets.values()))
    for data in datasets.values():
        _check_filters(data, path)
        if data.dtype.hasobject:
            raise ValueError(f"{data.name} holds no numbers")
    return {name: data[()] for name, data in datasets.items()}


def _check_filters(data: "h5py.Dataset", path: Path) -> None:
    import h5py

    filters = data.id.get_create_plist()
    for i in range(filters.get_nfilters()):
        code = filters.get_filter(i)[0]
        if not h5py.h5z.filter_avail(code):
            remedy = (
                "install Prophesee's hdf5_ecf plugin and point HDF5_PLUGIN_PATH to it, or convert "
                "the recording with Metavision to RAW or DAT"
                if code == _ECF
                else "install its plugin and point HDF5_PLUGIN_PATH to it"
            )
            name = "ECF" if code == _ECF else f"filter {code}"
            raise InputError(f"{path}: compressed with HDF5's {name}, which is not there; {remedy}")


def _sensor_size(file: "h5py.File", path: Path) -> tuple[int, int] | None:
    if "geometry" not in file.attrs:
        return None
    _check_heaps(path)
    geometry = file.attrs["geometry"]
    geometry = geometry.decode("latin-1") if isinstance(geometry, bytes) else str(geometry)
    sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", geometry)
    return (int(sides[2]), int(sides[1])) if sides else None


def _check_heaps(path: Path) -> None:
    """Raise `ValueError` at a damaged heap of texts, in which the HDF5 library would loop forever.

    A heap is ``GCOL``, version 1, three zeros and its length; then objects: number, references,
    four zeros and length, and behind them the bytes, padded to a multiple of 8. Number 0 is the
    free space, whose length includes these 16 bytes.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = -1
        while (start := data.find(b"GCOL\1\0\0\0", start + 1)) >= 0:
            at, end = start + 16, start + struct.unpack_from("<Q", data, start + 8)[0]
            while at + 16 <= end <= len(data):
                number, length = struct.unpack_from("<H6xQ", data, at)
                if number == 0 and length == 0:
                    raise ValueError(f"an empty object at byte {at}")
                at += 16 + -(-length // 8) * 8 if number else length


stream = at_once(read)
