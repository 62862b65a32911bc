"""DAT: Prophesee's header, a byte each for the type and size of an event, then the events.

An event is a little-endian pair of u32: µs, and an address. Version 2 of the format has x in bits
0-13, y in bits 14-27 and the polarity in bit 28; version 1 x in bits 0-8, y in bits 9-16 and the
polarity in bit 17. The 32-bit clock is unwrapped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sj_ottt.data.recordings.formats.common import Unwrap, assume, pieces, record_blocks
from sj_ottt.data.recordings.formats.prophesee.header import read_header
from sj_ottt.data.recordings.formats.prophesee.vectors import table
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

_CD_TYPES = (0, 12)
_EVENT = np.dtype([("t", "<u4"), ("address", "<u4")])
_SAMPLE = 1 << 9


class _Layout(NamedTuple):
    """How many bits of an address are x and, above it, y; the next one is the polarity."""

    x: int
    y: int


_LAYOUTS = {1: _Layout(9, 8), 2: _Layout(14, 14)}


def sniff(head: bytes) -> bool:
    """Recognize a file with Prophesee's header; RAW files too, so ask `raw.sniff` first."""
    return head.startswith(b"% ")


def stream(path: Path, options: ReadOptions) -> Source:
    """Read a DAT file of contrast (CD) events.

    Raises:
        InputError: Events of another type, or a version that is not known.
    """
    header = read_header(path)
    with open(path, "rb") as file:
        file.seek(header.offset)
        kind_and_size = file.read(2)
        sample = file.read(_SAMPLE * _EVENT.itemsize)
    if (
        len(kind_and_size) < 2
        or kind_and_size[0] not in _CD_TYPES
        or kind_and_size[1] != _EVENT.itemsize
    ):
        raise InputError(
            f"{path}: its header names no encoding, and no events of a DAT file (type 0 or 12, "
            "8 bytes) follow it; copy it again, or convert it with Metavision"
        )
    layout = _layout(path, header.fields.get("version", ""), sample, options)
    offset = header.offset + 2
    return Source(
        str(path),
        _chunks(path, offset, layout, options),
        header.sensor_size,
        (path.stat().st_size - offset) // _EVENT.itemsize,
    )


def _layout(path: Path, version: str, sample: bytes, options: ReadOptions) -> _Layout:
    """Return where an address has its parts, by the version that the header states."""
    major = version.partition(".")[0]
    if major in ("1", "2"):
        return _LAYOUTS[int(major)]
    if version:
        raise InputError(
            f"{path}: DAT of version {version}, of which only 1 and 2 are known; convert it with "
            "Metavision"
        )
    events = np.frombuffer(sample, _EVENT, len(sample) // _EVENT.itemsize)
    x, y = _LAYOUTS[1]
    if not len(events) or int(events["address"].max()) >= 1 << (x + y + 1):
        return _LAYOUTS[2]
    assume(
        path,
        options,
        "its header states no version, and its first addresses fit into version 1, which is taken",
        "add the line % Version 2 to its header",
    )
    return _LAYOUTS[1]


def _chunks(path: Path, offset: int, layout: _Layout, options: ReadOptions) -> Iterator[np.ndarray]:
    clock = Unwrap(32)
    for block in record_blocks(path, offset, _EVENT, "event", options):
        for events in pieces(block):
            address = np.ascontiguousarray(events["address"])
            yield table(
                clock(events["t"]),
                address & (1 << layout.x) - 1,
                address >> layout.x & (1 << layout.y) - 1,
                address >> layout.x + layout.y & 1,
            )
