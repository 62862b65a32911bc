"""MATLAB's files up to version 7 (those of version 7.3 are HDF5).

Looked for are vectors t, x, y and p (of any known names), as variables or as the fields of a
structure such as TD of N-MNIST's MATLAB code; and matrices of four columns whose name has "event"
in it. Where polarities are 1 and 2, MATLAB's counting from 1 is assumed of x and y too, and said.

A file is a head of 128 bytes and elements: type, number of bytes, data. An element of type 15 is
one of type 14, packed by zlib; that is a matrix: elements of flags, sides and name, then its
numbers, in the smallest type that holds them, or the matrices of a structure's fields.
"""

import math
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from sj_ottt.data.recordings.formats.arrays.npy import Opened, Part, blocks
from sj_ottt.data.recordings.formats.arrays.table import choose, events
from sj_ottt.data.recordings.formats.columns import Named, named
from sj_ottt.data.recordings.formats.common import check_stated_bytes, reason
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

_HEAD = 128
_MATRIX, _PACKED = 14, 15
_TYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_STRUCTURE, _NUMBERS = 2, range(6, 16)
_COMPLEX = 0x800
_DEEPEST, _MOST_MATRICES, _LONGEST_NAMES = 4, 2000, 1 << 16
_PIECE = 1 << 16


class _Vectors(NamedTuple):
    """Columns of numbers that belong together."""

    name: str
    names: list[str]
    parts: list[Part]


def sniff(head: bytes) -> bool:
    """Recognize a MATLAB file of version 5 to 7."""
    return head.startswith(b"MATLAB 5.0 MAT-file") and head[126:128] in (b"IM", b"MI")


def stream(path: Path, options: ReadOptions) -> Source:
    """Read events from a MATLAB file, block by block."""
    try:
        groups, tables = _contents(path)
    except (ValueError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    found: list[tuple[str, list[Part], Named | None]] = []
    for group in groups:
        if what := named(group.names, path):
            parts = [group.parts[i] for i in what.columns.values()]
            what = what._replace(columns={field: i for i, field in enumerate(what.columns)})
            found.append((group.name or "its variables", parts, what))
    found += [(table.name, table.parts, None) for table in tables if "event" in table.name.lower()]
    if not found:
        held = ", ".join(
            name
            for group in groups
            for name in (f"{group.name}.{n}".lstrip(".") for n in group.names)
        )
        raise InputError(
            f"{path}: a MATLAB file without vectors t, x, y and p (it holds {held or 'none'}); "
            "save them, t in µs, or a structure with these fields"
        )
    _, parts, what = found[choose([name for name, _, _ in found], path, options)]
    if len({part.n for part in parts}) > 1:
        raise InputError(f"{path}: its vectors t, x, y and p differ in length; save them again")
    check_stated_bytes(path, sum(part.n * part.dtype.itemsize for part in parts))
    chunks = events(_blocks(parts, path, options), what, path, options, from_one=True)
    return Source(str(path), chunks, None, parts[0].n)


def _blocks(parts: list[Part], path: Path, options: ReadOptions) -> Iterator[list[np.ndarray]]:
    try:
        yield from blocks(parts, path, options)
    except zlib.error as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: truncated or damaged MATLAB file ({reason(error)}); copy or save it again"
    )


class _Element:
    """The bytes of one element in a file, unpacked where they are packed; read forwards only."""

    def __init__(self, path: Path, offset: int, n_bytes: int, *, packed: bool) -> None:
        self._file = open(path, "rb")  # noqa: SIM115, closed by whoever opens an element
        self._file.seek(offset)
        self._left = n_bytes
        self._inflate = zlib.decompressobj() if packed else None
        self.at = 0

    def __enter__(self) -> "IO[bytes]":
        return self  # type: ignore[return-value]

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def read(self, n: int) -> bytes:
        """Return the next ``n`` bytes, fewer at the end."""
        data = self._raw(n) if self._inflate is None else self._unpacked(n)
        self.at += len(data)
        return data

    def _raw(self, n: int) -> bytes:
        data = self._file.read(min(n, self._left))
        self._left -= len(data)
        return data

    def _unpacked(self, n: int) -> bytes:
        assert self._inflate is not None
        parts, missing = [], n
        while missing and not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._raw(_PIECE)
            part = self._inflate.decompress(packed, missing)
            if not packed and not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def seek(self, to: int) -> None:
        """Go on to a place behind what was read."""
        while self.at < to and self.read(min(to - self.at, 1 << 20)):
            pass


class _Reader:
    """Walks through the matrices of one element, and notes where their numbers are."""

    def __init__(self, path: Path, order: str, opened: Any) -> None:
        self.tables: list[_Vectors] = []
        self.groups: dict[str, _Vectors] = {}
        self._path = path
        self._order = order
        self._opened = opened
        self._count = 0

    def walk(self) -> None:
        with self._opened() as element:
            self._matrix(element, "", "", 0)

    def _tag(self, element: Any) -> tuple[int, int, int]:
        """Return type and number of bytes, and how many bytes are behind the tag until the next."""
        kind, n = np.frombuffer(_exactly(element, 8), f"{self._order}u4").tolist()
        if kind >> 16:
            raise ValueError("a short element where none may be")
        return kind, n, n + -n % 8

    def _small(self, element: Any, most: int) -> bytes:
        """Return the data of an element of at most so many bytes, in its long or short form."""
        head = _exactly(element, 8)
        kind, n = np.frombuffer(head, f"{self._order}u4").tolist()
        if kind >> 16:
            return head[4 : 4 + min(kind >> 16, 4)]
        if n > most:
            raise ValueError(f"an element of {n} bytes")
        return _exactly(element, n + -n % 8)[:n]

    def _matrix(self, element: Any, group: str, name: str, depth: int) -> None:
        kind, n, padded = self._tag(element)
        end = element.at + padded
        self._count += 1
        if kind != _MATRIX or self._count > _MOST_MATRICES:
            raise ValueError(f"an element of type {kind}, or too many")
        if n:
            of_array = np.frombuffer(self._small(element, 8), f"{self._order}u4")
            if len(of_array) != 2:
                raise ValueError(f"flags of {4 * len(of_array)} bytes, which are 8")
            flags = int(of_array[0])
            sides = np.frombuffer(self._small(element, 64), f"{self._order}i4").tolist()
            own = self._small(element, _LONGEST_NAMES).decode("latin-1")  # a field's is empty
            name = name or own or "?"
            if flags & 0xFF == _STRUCTURE and math.prod(sides) == 1 and depth < _DEEPEST:
                self._structure(element, f"{group}.{name}".lstrip("."), depth)
            elif flags & 0xFF in _NUMBERS and not flags & _COMPLEX and len(sides) == 2:
                self._numbers(element, group, name, sides)
        element.seek(end)

    def _structure(self, element: Any, group: str, depth: int) -> None:
        (length,) = np.frombuffer(self._small(element, 4), f"{self._order}i4").tolist()
        data = self._small(element, _LONGEST_NAMES)
        if length <= 0:
            raise ValueError(f"names of {length} letters")
        for i in range(0, len(data), length):
            field = data[i : i + length].partition(b"\0")[0].decode("latin-1")
            self._matrix(element, group, field, depth + 1)

    def _numbers(self, element: Any, group: str, name: str, sides: list[int]) -> None:
        kind, n = np.frombuffer(_exactly(element, 8), f"{self._order}u4").tolist()
        at = element.at
        if kind >> 16:  # four bytes at most, within the tag
            kind, n, at = kind & 0xFFFF, kind >> 16, at - 4
        if kind not in _TYPES:
            raise ValueError(f"{name} holds numbers of type {kind}")
        dtype = np.dtype(f"{self._order}{_TYPES[kind]}")
        if min(sides) < 0 or math.prod(sides) * dtype.itemsize != n:
            raise ValueError(f"{name} states {sides} numbers in {n} bytes")
        if 1 in sides:
            vectors = self.groups.setdefault(group, _Vectors(group, [], []))
            vectors.names.append(name)
            vectors.parts.append(Part(self._opened, at, math.prod(sides), dtype))
        elif sides[1] in (4, 5):
            step = sides[0] * dtype.itemsize
            parts = [Part(self._opened, at + i * step, sides[0], dtype) for i in range(sides[1])]
            self.tables.append(_Vectors(f"{group}.{name}".lstrip("."), [], parts))


def _exactly(element: Any, n: int) -> bytes:
    if len(data := element.read(n)) < n:
        raise EOFError("it ends within an element")
    return data


def _contents(path: Path) -> tuple[list[_Vectors], list[_Vectors]]:
    """Return the file's vectors, by the structure that they are in, and its tables."""
    groups: dict[str, _Vectors] = {}
    tables: list[_Vectors] = []
    size = path.stat().st_size
    with open(path, "rb") as file:
        order = "<" if file.read(_HEAD)[126:128] == b"IM" else ">"
        for _ in range(_MOST_MATRICES):
            offset = file.tell()
            if offset + 8 > size:
                break
            kind, n = np.frombuffer(file.read(8), f"{order}u4").tolist()
            if kind == _PACKED:
                opened: Any = partial(_opened, path, offset + 8, n, True)
            else:
                opened = partial(_opened, path, offset, n + 8, False)
            reader = _Reader(path, order, opened)
            try:
                if kind in (_MATRIX, _PACKED):
                    reader.walk()
            except EOFError:
                if offset + 8 + n <= size:
                    raise
            # Where the file ends early, what is known by then counts.
            for name, vectors in reader.groups.items():
                together = groups.setdefault(name, _Vectors(name, [], []))
                together.names.extend(vectors.names)
                together.parts.extend(vectors.parts)
            tables += reader.tables
            file.seek(offset + 8 + n + (-n % 8 if kind != _PACKED else 0))
    return list(groups.values()), tables


def _opened(path: Path, offset: int, n: int, packed: bool) -> Opened:
    return _Element(path, offset, n, packed=packed)  # type: ignore[return-value]
