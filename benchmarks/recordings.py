"""Long recordings in each file format, written from its definition as fast as numpy does it."""

import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from sj_ottt.data import EVENT_DTYPE

HEIGHT, WIDTH = 720, 1280
_SMALL = 34  # N-MNIST's sensor


def random_events(n: int, seed: int = 0) -> np.ndarray:
    """Events [n] of random pixels of an HD sensor, a million a second."""
    rng = np.random.default_rng(seed)
    events = np.empty(n, EVENT_DTYPE)
    events["t"] = np.cumsum(rng.exponential(1.0, n)).astype(np.int64)
    events["x"], events["y"] = rng.integers(0, WIDTH, n), rng.integers(0, HEIGHT, n)
    events["p"] = rng.integers(0, 2, n)
    return events


def _columns(events: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(events[name].astype(np.int64) for name in "txyp")


def _changes(column: np.ndarray) -> np.ndarray:
    return np.concatenate(([True], column[1:] != column[:-1]))


def _words(parts: list[tuple[np.ndarray | bool, np.ndarray]], dtype: str) -> bytes:
    """Interleave words, of each part those that its mask names."""
    words = np.stack([words for _, words in parts], 1).astype(dtype)
    masks = np.stack([np.broadcast_to(mask, len(words)) for mask, _ in parts], 1)
    return words[masks].tobytes()


def _raw_header(version: str) -> bytes:
    encoding = "EVT" + version.replace(".", "").removesuffix("0")
    lines = (
        f"evt {version}",
        f"format {encoding};height={HEIGHT};width={WIDTH}",
        f"geometry {WIDTH}x{HEIGHT}",
        "end",
    )
    return "".join(f"% {line}\n" for line in lines).encode()


def _evt2(events: np.ndarray, path: Path) -> None:
    t, x, y, p = _columns(events)
    parts = [(_changes(t >> 6), 8 << 28 | t >> 6), (True, p << 28 | (t & 63) << 22 | x << 11 | y)]
    path.write_bytes(_raw_header("2.0") + _words(parts, "<u4"))


def _rows(n: int) -> tuple[np.ndarray, ...]:
    """Groups of 32 pixels of which every other one fired on average: t, x, y, p and their bits."""
    rng = np.random.default_rng(0)
    m = n // 16
    t, x = np.cumsum(rng.integers(0, 30, m)), 32 * rng.integers(0, WIDTH // 32, m)
    return t, x, rng.integers(0, HEIGHT, m), rng.integers(0, 2, m), rng.integers(0, 1 << 32, m)


def _evt21(events: np.ndarray, path: Path) -> None:
    t, x, y, p, bits = _rows(len(events))
    words = p << 60 | (t & 63) << 54 | x << 43 | y << 32 | bits
    parts = [(_changes(t >> 6), (8 << 28 | t >> 6) << 32), (True, words)]
    path.write_bytes(_raw_header("2.1") + _words(parts, "<u8"))


def _evt3(events: np.ndarray, path: Path) -> None:
    t, x, y, p = _columns(events)
    parts = [*_times(t), (True, y), (True, 0x2000 | p << 11 | x)]
    path.write_bytes(_raw_header("3.0") + _words(parts, "<u2"))


def _evt3_rows(events: np.ndarray, path: Path) -> None:
    t, x, y, p, bits = _rows(len(events))
    parts = [*_times(t), (True, y), (True, 0x3000 | p << 11 | x), (True, 0x4000 | bits & 0xFFF)]
    parts += [(True, 0x4000 | bits >> 12 & 0xFFF), (True, 0x5000 | bits >> 24)]
    path.write_bytes(_raw_header("3.0") + _words(parts, "<u2"))


def _times(t: np.ndarray) -> list[tuple[np.ndarray | bool, np.ndarray]]:
    return [(_changes(t >> 12), 0x8000 | t >> 12 & 0xFFF), (_changes(t), 0x6000 | t & 0xFFF)]


def _dat(events: np.ndarray, path: Path) -> None:
    t, x, y, p = _columns(events)
    head = f"% Data file containing CD events\n% Version 2\n% Width {WIDTH}\n% Height {HEIGHT}\n"
    pairs = np.stack((t, x | y << 14 | p << 28), 1).astype("<u4")
    path.write_bytes(head.encode() + bytes([12, 8]) + pairs.tobytes())


def _es(events: np.ndarray, path: Path) -> None:
    t, x, y, p = _columns(events)
    steps, y = np.diff(t, prepend=0), HEIGHT - 1 - y
    ends = np.cumsum(5 + steps // 127)
    data = np.full(ends[-1], 255, np.uint8)
    for i, column in enumerate(((steps % 127) << 1 | p, x & 255, x >> 8, y & 255, y >> 8)):
        data[ends - 5 + i] = column
    head = b"Event Stream" + bytes([2, 0, 0, 1]) + struct.pack("<2H", WIDTH, HEIGHT)
    path.write_bytes(head + data.tobytes())


def _bin(events: np.ndarray, path: Path) -> None:
    t, x, y, p = _columns(events)
    # Marks of an overflow keep the clock of 23 bits going.
    turn = t >> 13
    t &= 0x1FFF
    columns = [x % _SMALL, y % _SMALL, p << 7 | t >> 16, t >> 8 & 0xFF, t & 0xFF]
    rows = np.stack(columns, 1).astype(np.uint8)
    overflows = np.repeat(np.arange(len(t)), np.diff(turn, prepend=0))
    path.write_bytes(np.insert(rows, overflows, [0, 240, 0, 0, 0], axis=0).tobytes())


def _aedat2(events: np.ndarray, path: Path) -> None:
    t, x, y, p = _columns(events)
    # A DAVIS346 stores its columns mirrored, and its rows from the bottom.
    address = (345 - x % 346) << 12 | (y % 260) << 22 | p << 11
    head = "#!AER-DAT2.0\r\n# AEChip: eu.seebetter.ini.chips.davis.Davis346red\r\n"
    path.write_bytes(head.encode() + np.stack((address, t), 1).astype(">u4").tobytes())


def _aedat4(events: np.ndarray, path: Path) -> None:
    from tests.recording_files import aedat4_header

    layout = [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1"), ("", "V3")]
    table = np.zeros(len(events), layout)
    for name in "txyp":
        table[name] = events[name]
    vtable = struct.pack("<3H2x", 6, 8, 4)
    with open(path, "wb") as file:
        file.write(aedat4_header(((0, WIDTH, HEIGHT, "random"),)))
        for part in np.array_split(table, max(1, len(table) // 4096)):
            body = struct.pack("<I", 8 + len(vtable)) + b"EVTS" + vtable
            body += struct.pack("<iI", len(vtable), 8) + bytes(4) + struct.pack("<I", len(part))
            body += part.tobytes()
            file.write(struct.pack("<iII", 0, len(body) + 4, len(body)) + body)


def _csv(events: np.ndarray, path: Path) -> None:
    with open(path, "w") as file:
        file.write("t,x,y,p\n")
        for part in np.array_split(events, len(events) // 100_000 + 1):
            rows = zip(*(part[name].tolist() for name in "txyp"), strict=True)
            file.writelines(f"{t},{x},{y},{p}\n" for t, x, y, p in rows)


def _hdf5(events: np.ndarray, path: Path) -> None:
    kinds = {"t": "u4", "x": "u2", "y": "u2", "p": "u1"}
    chunks = (min(1 << 16, len(events)),)
    with h5py.File(path, "w") as file:
        for name, kind in kinds.items():
            data = events[name].astype(kind)
            file.create_dataset(f"events/{name}", data=data, chunks=chunks, **hdf5plugin.Zstd())
        file["t_offset"] = np.int64(0)


def _npz(events: np.ndarray, path: Path) -> None:
    np.savez(path, **{name: events[name] for name in "txyp"})


def _npy(events: np.ndarray, path: Path) -> None:
    np.save(path, events)


# The ending, the writer of events to a path, and how many times fewer events a file holds than are
# asked for, where reading it takes long.
FORMATS: dict[str, tuple[str, Callable[[np.ndarray, Path], None], int]] = {
    "evt2": (".raw", _evt2, 1),
    "evt21_rows": (".raw", _evt21, 1),
    "evt3": (".raw", _evt3, 1),
    "evt3_rows": (".raw", _evt3_rows, 1),
    "dat": (".dat", _dat, 1),
    "es": (".es", _es, 1),
    "bin": (".bin", _bin, 1),
    "aedat2": (".aedat", _aedat2, 1),
    "aedat4": (".aedat4", _aedat4, 1),
    "hdf5": (".h5", _hdf5, 1),
    "npz": (".npz", _npz, 1),
    "npy": (".npy", _npy, 1),
    "csv": (".csv", _csv, 10),
}
