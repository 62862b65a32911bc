"""Recordings in each file format, written byte by byte from the format's definition."""

import struct
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers the compressions)
import numpy as np

from sj_ottt.data import EVENT_DTYPE
from tests.data.recordings.damage import Sample

Event = tuple[int, int, int, int]


def sample_events(n: int = 300, size=(100, 120), seed: int = 0) -> np.ndarray:
    """Events [n] in order of time, which every format can hold."""
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT_DTYPE)
    events["t"] = np.cumsum(rng.integers(0, 300, n)) + 5
    events["y"], events["x"] = rng.integers(0, size[0], n), rng.integers(0, size[1], n)
    events["p"] = rng.integers(0, 2, n)
    return events


MIRRORED = {"DVS128": (128, 128), "DAVIS240C": (180, 240), "DAVIS346red": (260, 346)}


def aedat2(events: Sequence[Event], chip: str = "DVS128", lines: bytes | None = None) -> bytes:
    """As jAER writes what a camera of `MIRRORED` saw; ``lines`` in place of its name."""
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n"
    name = f"# AEChip: ch.unizh.ini.jaer.chip.retina.{chip}\r\n".encode()
    height, width = MIRRORED[chip]
    body = b""
    for t, x, y, p in events:
        x, y = width - 1 - x, height - 1 - y
        address = x << 1 | y << 8 | (1 - p) if chip == "DVS128" else x << 12 | y << 22 | p << 11
        body += struct.pack(">II", address, t & 0xFFFF_FFFF)
    return header + (name if lines is None else lines) + body


AEDAT3_LINES = b"#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-11-02\r\n"


def aedat3_packet(
    events: Sequence[Event], source: int = 1, kind: int = 1, invalid: Sequence[int] = ()
) -> bytes:
    """Events of one turn of the 31-bit clock; those whose place is in ``invalid`` are not valid."""
    turn = events[0][0] >> 31 if events else 0
    n = len(events)
    head = struct.pack("<2h6i", kind, source, 8, 4, turn, n, n, n - len(invalid))
    return head + b"".join(
        struct.pack("<II", x << 17 | y << 2 | p << 1 | (i not in invalid), t & 0x7FFF_FFFF)
        for i, (t, x, y, p) in enumerate(events)
    )


def aedat3(events: Sequence[Event], lines: bytes = AEDAT3_LINES) -> bytes:
    packets = [list(turn) for _, turn in groupby(events, lambda event: event[0] >> 31)]
    halves = (half for turn in packets for half in (turn[: len(turn) // 2], turn[len(turn) // 2 :]))
    body = b"".join(aedat3_packet(half) for half in halves if half)
    return b"#!AER-DAT3.1\r\n" + lines + b"#!END-HEADER\r\n" + body


XML = """<dv version="2.0"><node name="outInfo">{}</node></dv>"""
STREAM = """<node name="{}"><attr key="typeIdentifier" type="string">EVTS</attr><node name="info">
<attr key="sizeX" type="int">{}</attr><attr key="sizeY" type="int">{}</attr>
<attr key="source" type="string">{}</attr></node></node>"""


def aedat4_header(
    streams=((0, 346, 260, "DAVIS346_0001"),), compression: int = 0, end: int = -1
) -> bytes:
    """A size-prefixed flatbuffer: root's offset, identifier, vtable, table, description."""
    description = XML.format("".join(STREAM.format(*stream) for stream in streams)).encode()
    vtable = struct.pack("<5H2x", 10, 24, 4, 16, 8)
    table = struct.pack("<iiI4xq", len(vtable), compression, 24 - 8, end)
    body = struct.pack("<I", 8 + len(vtable)) + b"IOHE" + vtable + table
    body += struct.pack("<I", len(description)) + description + b"\0"
    return b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(body)) + body


def lz4_frame(data: bytes) -> bytes:
    """Magic, descriptor and its checksum; one block stored as it is; end mark."""
    return (
        bytes.fromhex("04224d18604082") + struct.pack("<I", 1 << 31 | len(data)) + data + bytes(4)
    )


def zstd_frame(data: bytes) -> bytes:
    """Magic, descriptor with the size; one last block stored as it is."""
    block = (len(data) << 3 | 1).to_bytes(3, "little")
    return bytes.fromhex("28b52ffda0") + struct.pack("<I", len(data)) + block + data


def aedat4_packet(events: Sequence[Event], stream: int = 0, compress=bytes) -> bytes:
    vtable = struct.pack("<3H2x", 6, 8, 4)
    # With the size prefix, the vector's structs begin at a multiple of 8 bytes.
    body = struct.pack("<I", 8 + len(vtable)) + b"EVTS" + vtable
    body += struct.pack("<iI", len(vtable), 4 + 4) + bytes(4) + struct.pack("<I", len(events))
    body += b"".join(struct.pack("<qhhB3x", *event) for event in events)
    body = compress(struct.pack("<I", len(body)) + body)
    return struct.pack("<iI", stream, len(body)) + body


def aedat4(events: Sequence[Event], compression: int = 0, compress=bytes) -> bytes:
    half = len(events) // 2
    packets = (aedat4_packet(part, 0, compress) for part in (events[:half], events[half:]))
    return aedat4_header(compression=compression) + b"".join(packets)


aedat4_lz4 = partial(aedat4, compression=1, compress=lz4_frame)
aedat4_zstd = partial(aedat4, compression=3, compress=zstd_frame)


def dat(events: Sequence[Event], header: str = "% Width 304\n% Height 240\n") -> bytes:
    head = f"% Data file containing CD events\n% Version 2\n{header}".encode() + bytes([12, 8])
    return head + b"".join(
        struct.pack("<II", t & 0xFFFF_FFFF, x | y << 14 | p << 28) for t, x, y, p in events
    )


def raw_header(version: int, size: str = "% geometry 1280x720\n") -> bytes:
    return f"% date 2024-01-01\n% evt {version}.0\n% format EVT{version}\n{size}% end\n".encode()


def evt2(events: Sequence[Event], first: bytes = b"") -> bytes:
    body, high = b"", None
    for t, x, y, p in events:
        if high != (high := t >> 6):
            body += struct.pack("<I", 8 << 28 | high & 0xFFF_FFFF)
        body += struct.pack("<I", p << 28 | (t & 63) << 22 | x << 11 | y)
    return raw_header(2) + first + body


def evt3_words(events: Sequence[Event]) -> list[int]:
    words, high = [], None
    for t, x, y, p in events:
        if high != (high := t >> 12):
            words.append(0x8000 | high & 0xFFF)
        words += [0x6000 | t & 0xFFF, 0x0000 | y, 0x2000 | p << 11 | x]
    return words


def evt3(events: Sequence[Event]) -> bytes:
    words = evt3_words(events)
    return raw_header(3) + struct.pack(f"<{len(words)}H", *words)


def csv(events: Sequence[Event]) -> bytes:
    return "".join(["t,x,y,p\n", *(f"{t},{x},{y},{p}\n" for t, x, y, p in events)]).encode()


def nmnist(events: Sequence[Event]) -> bytes:
    return b"".join(
        bytes([x, y]) + (p << 23 | t & 0x7F_FFFF).to_bytes(3, "big") for t, x, y, p in events
    )


def dsec(events: Sequence[Event], path: Path, offset: int = 0, **options) -> None:
    table = np.array(events, EVENT_DTYPE)
    with h5py.File(path, "w") as file:
        for name in "txyp":
            kind = "u4" if name == "t" else "u2"
            values = table[name] - (offset if name == "t" else 0)
            file.create_dataset(f"events/{name}", data=values.astype(kind), **options)
        file["t_offset"] = np.int64(offset)


def prophesee_hdf5(events: Sequence[Event], path: Path) -> None:
    layout = np.dtype([("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
    with h5py.File(path, "w") as file:
        file.attrs["geometry"] = "640x480"
        table = np.zeros(len(events), layout)
        for name in layout.names:
            table[name] = np.array(events, EVENT_DTYPE)[name]
        file["CD/events"] = table


def npz(events: Sequence[Event], path: Path) -> None:
    table = np.array(events, EVENT_DTYPE)
    np.savez_compressed(path, **{name: table[name] for name in "txyp"})


def by_path(write: Callable[[Sequence[Event], Path], None], tmp_path: Path, ending: str):
    """Make bytes of a writer that wants a path."""

    def to_bytes(events: Sequence[Event]) -> bytes:
        path = tmp_path / f"written{ending}"
        write(events, path)
        return path.read_bytes()

    return to_bytes


def _by_path_apart(write: Callable[[Sequence[Event], Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return by_path(write, Path(folder), ".npz")(_few())


def _few() -> list[Event]:
    return [tuple(event) for event in sample_events(200, (34, 34)).tolist()]


_PACKED = 80.0  # events a byte
SAMPLES = {
    "aedat2": Sample(".aedat", lambda: aedat2(_few())),
    "aedat4": Sample(".aedat4", lambda: aedat4(_few())),
    "aedat4_lz4": Sample(".aedat4", lambda: aedat4_lz4(_few()), 16.0),  # 255 bytes in one
    "aedat4_zstd": Sample(".aedat4", lambda: aedat4_zstd(_few()), 2048.0),  # 128 KiB in 4 bytes
    "dat": Sample(".dat", lambda: dat(_few())),
    "evt2": Sample(".raw", lambda: evt2(_few())),
    "evt3": Sample(".raw", lambda: evt3(_few())),
    "csv": Sample(".csv", lambda: csv(_few())),
    "dsec": Sample(".h5", lambda: _by_path_apart(dsec), _PACKED),
    "prophesee_hdf5": Sample(".hdf5", lambda: _by_path_apart(prophesee_hdf5), _PACKED),
    "nmnist": Sample(".bin", lambda: nmnist(_few())),
}
"""Intact files for `tests.data.recordings.damage`."""
