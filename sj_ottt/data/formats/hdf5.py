"""Events in HDF5: as DSEC keeps them, and as Prophesee's Metavision does.

- DSEC: the arrays t, x, y and p in the group ``events``; ``t_offset`` (µs) is added to t.
- Prophesee: records with the fields t, x, y and p in ``CD/events``, the sensor's size in the root
  attribute ``geometry``. Metavision writes them with its own ECF compression, for which HDF5 needs
  Prophesee's plugin.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sj_ottt.data.events import EVENT_DTYPE, Recording, pack_events
from sj_ottt.data.formats.common import check_claim, optional, reason
from sj_ottt.errors import InputError

if TYPE_CHECKING:
    import h5py

_ECF = 0x8ECF


def sniff(head: bytes) -> bool:
    """Tell an HDF5 file."""
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
        columns = {name: events[name] for name in EVENT_DTYPE.names if name in events.dtype.names}
    elif "events" in file and hasattr(file["events"], "keys"):
        group = file["events"]
        columns = _load({name: group[name] for name in EVENT_DTYPE.names if name in group}, path)
        if "t" in columns and "t_offset" in file:
            columns["t"] = columns["t"].astype(np.int64) + int(file["t_offset"][()])
    else:
        columns = {}
    if missing := [name for name in EVENT_DTYPE.names if name not in columns]:
        raise InputError(
            f"{path}: HDF5 without events/{missing[0]} (DSEC) or CD/events (Prophesee); it holds "
            f"{', '.join(file) or 'nothing'}: save t (µs), x, y and p under events"
        )
    size = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", _text(file.attrs.get("geometry", "")))
    return Recording(pack_events(columns, path), (int(size[2]), int(size[1])) if size else None)


def _load(datasets: "Mapping[str, h5py.Dataset]", path: Path) -> dict[str, np.ndarray]:
    """Load whole datasets, after a look at what they need."""
    check_claim(path, sum(data.size * data.dtype.itemsize for data in datasets.values()))
    for data in datasets.values():
        _check_filters(data, path)
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


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
