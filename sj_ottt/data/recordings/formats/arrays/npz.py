"""NumPy's archives: the arrays t (µs), x, y and p as SpikingJelly saves them, or events in one.

Other names of the four arrays are known too. One array may hold records with these fields, or a
table, see `npy`.
"""

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from sj_ottt.data.recordings.events import FIELDS
from sj_ottt.data.recordings.formats.arrays import npy
from sj_ottt.data.recordings.formats.arrays.table import events, fields, is_numeric, is_table
from sj_ottt.data.recordings.formats.columns import Named, meaning, named
from sj_ottt.data.recordings.formats.common import check_stated_bytes, reason
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
)
_MOST_ARRAYS = 100


def sniff(head: bytes) -> bool:
    """Recognize an npz, which is a zip archive of npy files."""
    if not head.startswith(b"PK\3\4"):
        return False
    return head[30 : 30 + int.from_bytes(head[26:28], "little")].endswith(b".npy")


def stream(path: Path, options: ReadOptions) -> Source:
    """Read events from an npz, block by block; pickled objects are refused."""
    try:
        headers = _headers(path)
        parts, what, unit = _find(headers, path)
    except InputError:
        raise
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    chunks = events(_blocks(parts, path, options), what, path, options, unit=unit)
    return Source(str(path), chunks, None, parts[0].n)


def _headers(path: Path) -> dict[str, npy.Header]:
    """Read the headers of all arrays, and hold them against the bytes that are there."""
    headers = {}
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        for member in members[:_MOST_ARRAYS]:
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                headers[name] = header = npy.read_header(file)
            if header.n_bytes != member.file_size:
                stated, held = header.n_bytes - header.size, member.file_size - header.size
                raise ValueError(f"{name} states {stated} bytes and holds {held}")
    return headers


def _find(
    headers: dict[str, npy.Header], path: Path
) -> tuple[list[npy.Part], Named | None, str | None]:
    """Return where t, x, y and p are, what the columns are, and the unit of t where it is clear."""
    flat = [name for name in headers if meaning(name) and not headers[name].dtype.names]
    if what := named(flat, path):
        names = [flat[i] for i in what.columns.values()]
        return _four(headers, names, path), _in_order(what), _unit(headers, names)
    one = {
        name: found
        for name, header in headers.items()
        if (found := fields(header.dtype, path)) or is_table(header.shape, header.dtype)
    }
    if len(one) > 1:
        one = {name: found for name, found in one.items() if "event" in name.lower()}
    if len(one) == 1:
        ((name, found),) = one.items()
        check_stated_bytes(path, headers[name].n_bytes)
        if found is None or len(headers[name].shape) == 1:
            return npy.split(headers[name], partial(_opened, path, name)), found, None
    missing = [name for name in FIELDS if name not in headers]
    found_names = ", ".join(list(headers)[:9]) or "nothing"
    raise InputError(
        f"{path}: npz lacks the array {(missing or FIELDS)[0]!r} (it holds {found_names}); save t "
        "(µs), x, y and p, all of one length"
    )


def _four(headers: dict[str, npy.Header], names: list[str], path: Path) -> list[npy.Part]:
    check_stated_bytes(path, sum(headers[name].n_bytes for name in names))
    n = headers[names[0]].shape[0] if headers[names[0]].shape else 0
    for name in names:
        header = headers[name]
        if len(header.shape) != 1 or not is_numeric(header.dtype):
            raise InputError(
                f"{path}: array {name!r} is {header.dtype} of shape {header.shape}; save a flat "
                "array of integers (t in µs)"
            )
        if header.shape[0] != n:
            raise InputError(
                f"{path}: arrays {names[0]!r} and {name!r} differ in length ({n} and "
                f"{header.shape[0]}); convert the recording again"
            )
    return [
        part for name in names for part in npy.split(headers[name], partial(_opened, path, name))
    ]


def _in_order(what: Named) -> Named:
    return what._replace(columns={field: i for i, field in enumerate(what.columns)})


def _unit(headers: dict[str, npy.Header], names: list[str]) -> str | None:
    """Return µs for whole numbers t, which SpikingJelly defines so."""
    return "us" if names[0] == "t" and headers["t"].dtype.kind in "iu" else None


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        yield file


def _blocks(parts: list[npy.Part], path: Path, options: ReadOptions) -> Iterator[list[np.ndarray]]:
    try:
        yield from npy.blocks(parts, path, options)
    except InputError:
        raise
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: truncated, corrupt or pickled npz ({reason(error)}); copy or convert it again, "
        "with plain integer arrays"
    )
