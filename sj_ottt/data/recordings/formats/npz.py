"""SpikingJelly's npz: the arrays t (µs), x, y and p."""

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.events import FIELDS, Recording, pack_events
from sj_ottt.data.recordings.formats.common import at_once, check_stated_bytes, reason
from sj_ottt.errors import InputError

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def sniff(head: bytes) -> bool:
    """Recognize an npz, which is a zip archive."""
    return head.startswith(b"PK")


def read(path: Path) -> Recording:
    """Read an npz; pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = [name for name in FIELDS if name in archive]
            check_stated_bytes(path, sum(_stated_bytes(archive, name) for name in names))
            columns = {name: archive[name] for name in names}
            found = ", ".join(archive.files) or "nothing"
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        KeyError,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise InputError(
            f"{path}: truncated, corrupt or pickled npz ({reason(error)}); copy or convert it "
            "again, with plain integer arrays"
        ) from error
    if missing := [name for name in FIELDS if name not in columns]:
        raise InputError(
            f"{path}: npz lacks the array {missing[0]!r} (it holds {found}); save t (µs), x, y "
            "and p, all of one length"
        )
    return Recording(pack_events(columns, path))


def _stated_bytes(archive: np.lib.npyio.NpzFile, name: str) -> int:
    """Return a member's size in bytes; `ValueError` where its header's shape needs more."""
    if archive.zip is None:
        raise ValueError("the archive is closed")
    with archive.zip.open(f"{name}.npy") as member:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(member)](member)
    stated = math.prod(shape) * dtype.itemsize
    actual = archive.zip.getinfo(f"{name}.npy").file_size
    if stated > actual:
        raise ValueError(f"{name} states {stated} bytes and holds {actual}")
    return actual


stream = at_once(read)
