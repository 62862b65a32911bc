"""iniVation's AEDAT 4.0.

The file is the line ``#!AER-DAT4.0``, a size-prefixed flatbuffer IOHeader (compression, position of
the index behind the data, XML that describes the streams), then packets: stream and length, i32
each, and a size-prefixed flatbuffer of that many bytes, compressed or not. A packet of events is a
table with one vector of structs of 16 bytes: time, x, y, polarity. Frames, motion samples and
triggers are left out. Where a recorder was killed, or the file is cut off, whole packets are read.

All is decoded here with NumPy: of damaged files, the package ``aedat`` ends the process where a
length is wrong, and ``dv-processing`` hangs on one in seven and ends the process on some.
"""

import functools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from sj_ottt.data.recordings.events import EVENT_DTYPE
from sj_ottt.data.recordings.formats.common import (
    batched,
    choose_camera,
    cut_off,
    optional,
    reason,
)
from sj_ottt.data.recordings.formats.unpacking import unpack_lz4, unpack_zstd
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

_MAGIC = b"#!AER-DAT4.0\r\n"
_NONE, _LZ4, _LZ4_HIGH, _ZSTD, _ZSTD_HIGH = _COMPRESSIONS = range(5)
_PACKAGES = {_LZ4: "lz4.frame", _LZ4_HIGH: "lz4.frame", _ZSTD: "zstandard", _ZSTD_HIGH: "zstandard"}
_STRUCT = np.dtype(
    {
        "names": ["t", "x", "y", "p"],
        "formats": ["<i8", "<i2", "<i2", "u1"],
        "offsets": [0, 8, 10, 12],
        "itemsize": 16,
    }
)


class _Camera(NamedTuple):
    stream: int
    name: str
    sensor_size: tuple[int, int] | None


class _Header(NamedTuple):
    compression: int
    start: int  # of the packets, in bytes
    end: int  # of the packets: where the index begins; -1 where the recorder wrote none
    streams: frozenset[int]
    cameras: tuple[_Camera, ...]


def sniff(head: bytes) -> bool:
    """Recognize an AEDAT 4 file."""
    return head.startswith(b"#!AER-DAT4")


def stream(path: Path, options: ReadOptions) -> Source:
    """Read the events of one camera; of several, the options choose.

    Raises:
        InputError: The header is damaged, or no camera is in it or chosen.
    """
    try:
        header = _read_header(path)
    except (struct.error, ValueError, ElementTree.ParseError) as error:
        raise InputError(
            f"{path}: truncated or damaged AEDAT 4 header ({reason(error)}); copy or export it "
            "again"
        ) from error
    if not header.cameras:
        raise InputError(f"{path}: holds no stream of events; export one that does")
    names = [camera.name for camera in header.cameras]
    camera = header.cameras[choose_camera(path, options, names)]
    unpack = _decompressor(path, header.compression)
    chunks = batched(_events(path, options, header, camera.stream, unpack))
    return Source(str(path), chunks, camera.sensor_size)


def _events(
    path: Path,
    options: ReadOptions,
    header: _Header,
    wanted: int,
    unpack: Callable[[bytes], bytes],
) -> Iterator[np.ndarray]:
    """Yield one stream's packets of events, up to where the file or the recorder ended."""
    size = path.stat().st_size
    closed = header.end != -1
    end = min(header.end, size) if closed else size
    position = header.start
    with open(path, "rb") as file:
        while position + 8 <= end:
            file.seek(position)
            stream, length = struct.unpack("<iI", file.read(8))
            wrong = ""
            if stream not in header.streams or not length:
                wrong = "no packet"
            elif (after := position + 8 + length) > end:
                wrong = "a packet that is cut off" if end == size else "a packet that is too long"
            elif stream == wanted:
                try:
                    events = _decode(unpack(file.read(length)))
                except (struct.error, ValueError) as error:
                    wrong = f"a damaged packet ({reason(error)})"
                else:
                    yield events
            if wrong:
                if closed and wrong != "a packet that is cut off":
                    raise InputError(
                        f"{path}: damaged: {wrong} at byte {position}; copy or export it again"
                    )
                break
            position = after
    if position < end:
        lost = f"the last {size - position} of its {size} bytes hold no whole packet"
        cut_off(path, options, lost)
    elif header.end > size:
        cut_off(path, options, f"it holds {size} bytes, of more than {header.end}")


def _decompressor(path: Path, compression: int) -> Callable[[bytes], bytes]:
    """Return what unpacks a packet, and raises `ValueError` where it is damaged."""
    if compression == _NONE:
        return bytes
    package = optional(_PACKAGES[compression], path)
    if compression in (_LZ4, _LZ4_HIGH):
        return functools.partial(unpack_lz4, package)
    return functools.partial(unpack_zstd, package, package.ZstdDecompressor())


def _decode(data: bytes) -> np.ndarray:
    """Read the events of a size-prefixed flatbuffer; `ValueError` or `struct.error` if damaged."""
    length, root = struct.unpack_from("<2I", data)
    if length + 4 > len(data) or data[8:12] != b"EVTS":
        raise ValueError("it holds no events")
    offsets, table = _table(data, 4 + root)
    if not offsets or not offsets[0]:
        return np.empty(0, EVENT_DTYPE)
    vector = table + offsets[0]
    vector += struct.unpack_from("<I", data, vector)[0]
    (n,) = struct.unpack_from("<I", data, vector)
    if vector + 4 + n * _STRUCT.itemsize > len(data):
        raise ValueError(f"{n} events in {len(data)} bytes")
    structs = np.frombuffer(data, _STRUCT, n, vector + 4)
    events = np.empty(n, EVENT_DTYPE)
    for name in ("t", "x", "y"):
        events[name] = structs[name]
    events["p"] = structs["p"] != 0
    return events


def _table(data: bytes, table: int) -> tuple[tuple[int, ...], int]:
    """Return the offsets of a flatbuffer table's fields in it (0: left out), and its position."""
    (back,) = struct.unpack_from("<i", data, table)
    vtable = table - back
    if not 0 <= vtable <= len(data) - 4:
        raise ValueError("a table's fields lie outside it")
    vtable_size, table_size = struct.unpack_from("<2H", data, vtable)
    n_fields = max(vtable_size - 4, 0) // 2
    offsets = struct.unpack_from(f"<{n_fields}H", data, vtable + 4)
    if max(offsets, default=0) > table_size or table + table_size > len(data):
        raise ValueError("a table's fields lie outside it")
    return offsets, table


def _read_header(path: Path) -> _Header:
    """Read the header; `ValueError`, `struct.error` or `ParseError` where it is damaged."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("wrong first line")
        (length,) = struct.unpack("<I", file.read(4))
        start = len(_MAGIC) + 4 + length
        if start > size:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        data = file.read(length)
    offsets, table = _table(data, struct.unpack_from("<I", data)[0])
    compression_at, end_at, text_at = (*offsets, 0, 0, 0)[:3]
    compression = struct.unpack_from("<i", data, table + compression_at)[0] * bool(compression_at)
    end = struct.unpack_from("<q", data, table + end_at)[0] if end_at else -1
    if compression not in _COMPRESSIONS or not (end == -1 or end >= start) or not text_at:
        raise ValueError(f"compression {compression}, packets up to byte {end}")
    text = table + text_at
    text += struct.unpack_from("<I", data, text)[0]
    (length,) = struct.unpack_from("<I", data, text)
    if text + 4 + length > len(data):
        raise ValueError("the description reaches beyond the header")
    return _Header(compression, start, end, *_streams(data[text + 4 : text + 4 + length]))


def _streams(description: bytes) -> tuple[frozenset[int], tuple[_Camera, ...]]:
    """Return the numbers of all streams, and those with events."""
    if b"<!" in description:  # entities, which could grow without end
        raise ValueError("the description is no plain XML")
    numbers: set[int] = set()
    found: list[tuple[int, tuple[str, str, str], tuple[int, int] | None]] = []
    for node in ElementTree.fromstring(description.decode()).iter("node"):
        kind, number = _attribute(node, "typeIdentifier"), node.get("name", "")
        if not kind or not number.isdecimal() or len(number) > 9:
            continue
        numbers.add(int(number))
        if kind == "EVTS":
            info = node.find("node[@name='info']")
            texts = (_attribute(info, side) for side in ("sizeY", "sizeX"))
            sides = [int(text) if text.isdecimal() and len(text) < 6 else 0 for text in texts]
            output = _attribute(node, "originalOutputName")
            names = (_attribute(info, "source"), output, f"stream {number}")
            found.append((int(number), names, (sides[0], sides[1]) if all(sides) else None))
    # The camera's own name where that tells the streams apart, else the output's.
    tells = (i for i in range(3) if len({names[i] for _, names, _ in found} - {""}) == len(found))
    which = next(tells, 2)
    return frozenset(numbers), tuple(_Camera(n, names[which], size) for n, names, size in found)


def _attribute(node: ElementTree.Element | None, name: str) -> str:
    """Return the text of a node's attribute, as DV's XML has it; empty where there is none."""
    found = None if node is None else node.find(f"attr[@key='{name}']")
    return "" if found is None else (found.text or "").strip()
