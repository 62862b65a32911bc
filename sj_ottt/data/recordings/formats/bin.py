"""N-MNIST's and N-Caltech101's ``.bin``: an ATIS stream of 5 bytes an event.

A byte each for x and y, then one bit of polarity and 23 bits of µs, big-endian. An event in row 240
is no pixel: it marks an overflow of the camera's clock, and all later times count 8,192 µs more.
Nothing in a file tells the format, so there is no ``sniff``; nor does it state the sensor's size,
but N-MNIST's is known: a file whose events all lie within 34 x 34 pixels is taken for one of it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.events import EVENT_DTYPE
from sj_ottt.data.recordings.formats.common import pieces, record_blocks
from sj_ottt.data.recordings.source import ReadOptions, Source

_EVENT = np.dtype([("x", "u1"), ("y", "u1"), ("time", "u1", 3)])
_NMNIST = (34, 34)
_OVERFLOW_ROW = 240
_OVERFLOW_US = 1 << 13


def stream(path: Path, options: ReadOptions) -> Source:
    """Read a recording of N-MNIST or N-Caltech101."""
    size = _NMNIST if _fits(path, *_NMNIST) else None
    return Source(str(path), _chunks(path, options), size, path.stat().st_size // _EVENT.itemsize)


def _fits(path: Path, height: int, width: int) -> bool:
    """Whether there are events and all lie within so many pixels; mostly the first ones tell."""
    n = 0
    with open(path, "rb") as file:
        while len(data := file.read(_EVENT.itemsize << 16)) >= _EVENT.itemsize:
            events = np.frombuffer(data, _EVENT, len(data) // _EVENT.itemsize)
            x, y = events["x"], events["y"]
            inside = (x < width) & (y < height) | (y == _OVERFLOW_ROW)
            if not inside.all():
                return False
            n += len(events)
    return n > 0


def _chunks(path: Path, options: ReadOptions) -> Iterator[np.ndarray]:
    turns = 0
    for block in record_blocks(path, 0, _EVENT, "event", options):
        for events in pieces(block):
            is_overflow = events["y"] == _OVERFLOW_ROW
            upper, middle, lower = events["time"].T
            t = (upper & 0x7F).astype(np.int64) << 16
            t |= middle.astype(np.uint16) << 8
            t |= lower
            decoded = np.empty(len(events), EVENT_DTYPE)
            decoded["t"] = t + turns * _OVERFLOW_US
            decoded["x"], decoded["y"], decoded["p"] = events["x"], events["y"], upper >> 7
            if is_overflow.any():
                decoded["t"] += np.cumsum(is_overflow) * _OVERFLOW_US
                decoded = decoded[~is_overflow]
                turns += int(np.count_nonzero(is_overflow))
            yield decoded
