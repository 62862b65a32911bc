"""NumPy's arrays: one npy file, and the reader of npy's bytes that npz shares.

An npy holds records with the fields t, x, y and p (of any known names), or a table of four numbers
in a row or in four rows, told as `formats.columns` does.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from sj_ottt.data.recordings.formats.arrays.table import BLOCK, events, fields, is_table
from sj_ottt.data.recordings.formats.common import LARGEST_RECORD, cut_off, reason
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

MAGIC = b"\x93NUMPY"
_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
Opened = contextlib.AbstractContextManager[IO[bytes]]


class Header(NamedTuple):
    """What an npy states.

    Attributes:
        shape: Of the array.
        upright: Whether its columns, not its rows, lie one behind the other.
        dtype: A number's, or a record's.
        size: The header's bytes.
    """

    shape: tuple[int, ...]
    upright: bool
    dtype: np.dtype
    size: int

    @property
    def n_bytes(self) -> int:
        """The bytes that the whole npy should have."""
        return self.size + math.prod(self.shape) * self.dtype.itemsize


class Part(NamedTuple):
    """A stretch of records.

    Attributes:
        opened: Opens its file.
        offset: Where they begin, in bytes.
        n: How many there are.
        dtype: A record's, with a field for each column, or a number's.
    """

    opened: Callable[[], Opened]
    offset: int
    n: int
    dtype: np.dtype


def sniff(head: bytes) -> bool:
    """Recognize an npy."""
    return head.startswith(MAGIC)


def stream(path: Path, options: ReadOptions) -> Source:
    """Read events from an npy, block by block."""

    def opened() -> Opened:
        return open(path, "rb")

    try:
        with opened() as file:
            header = read_header(file)
    except (ValueError, EOFError) as error:
        raise InputError(
            f"{path}: truncated, corrupt or pickled npy ({reason(error)}); copy or convert it again"
        ) from error
    what = fields(header.dtype, path)
    if not (what and len(header.shape) == 1) and not is_table(header.shape, header.dtype):
        raise InputError(
            f"{path}: holds {header.dtype} of shape {header.shape}, not events; save records with "
            "the fields t (µs), x, y and p"
        )
    parts = split(header, opened)
    chunks = events(blocks(parts, path, options), what, path, options)
    return Source(str(path), chunks, None, parts[0].n)


def read_header(file: IO[bytes]) -> Header:
    """Read the head of an npy.

    Raises:
        ValueError: It is none, or holds Python objects.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the notation of damaged headers
        try:
            version = np.lib.format.read_magic(file)
            shape, is_fortran, dtype = _READ_HEADER[version](file)
        except OSError:
            raise
        except Exception as error:  # numpy parses it as Python, and fails as Python does
            raise ValueError(f"its header is damaged: {reason(error)}") from error
    size = dtype.itemsize
    if dtype.hasobject or not 0 < size <= LARGEST_RECORD or any(side < 0 for side in shape):
        raise ValueError(f"{dtype} of shape {shape}")
    upright = len(shape) == 2 and (is_fortran if shape[1] in (4, 5) else not is_fortran)
    return Header(shape, upright, dtype, file.tell())


def split(header: Header, opened: Callable[[], Opened]) -> list[Part]:
    """Return the parts of an array in which its columns lie: all in one, or each in its own."""
    dtype, shape = header.dtype, header.shape
    if len(shape) == 1:
        return [Part(opened, header.size, shape[0], dtype)]
    n, width = shape if shape[1] in (4, 5) else shape[::-1]
    if header.upright:
        step = n * dtype.itemsize
        return [Part(opened, header.size + i * step, n, dtype) for i in range(width)]
    row = np.dtype([(f"f{i}", dtype) for i in range(width)])
    return [Part(opened, header.size, n, row)]


def blocks(parts: Sequence[Part], path: Path, options: ReadOptions) -> Iterator[list[np.ndarray]]:
    """Read columns [n] of the same length from all parts, block by block.

    Raises:
        InputError: A part ends early, and ``options.strict`` is set.
    """
    total, n = parts[0].n, 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(part.opened()) for part in parts]
        for file, part in zip(files, parts, strict=True):
            file.seek(part.offset)
        while n < total:
            step = min(BLOCK, total - n)
            read = [_read(file, part.dtype, step) for file, part in zip(files, parts, strict=True)]
            intact = min(map(len, read))
            columns: list[np.ndarray] = []
            for records in read:
                names = records.dtype.names
                columns += (
                    [records[name][:intact] for name in names] if names else [records[:intact]]
                )
            yield columns
            n += intact
            if intact < step:
                cut_off(path, options, f"{n} of {total} events are there")
                return


def _read(file: IO[bytes], dtype: np.dtype, n: int) -> np.ndarray:
    data = file.read(n * dtype.itemsize)
    return np.frombuffer(data, dtype, len(data) // dtype.itemsize)
