"""Event Stream (``.es``) of neuromorphic-systems, versions 1 and 2: DVS and ATIS events.

``Event Stream``, three bytes of version and one of the stream's type begin a file of version 2; the
sensor's width and height follow as little-endian u16. In version 1 the type is the third of those
bytes, and nothing states the sensor's size.

Then come events, little-endian integers of 5 bytes (version 1: 3), that begin with the µs since the
one before. If all bits of that time are set, the byte is none of an event but a pause, of as many
times the longest time as the byte's other bits say. An ATIS's measurements of brightness are left
out. Rows are stored from the bottom, and counted from the top here.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sj_ottt.data.recordings.events import EVENT_DTYPE
from sj_ottt.data.recordings.formats.common import assume, cut_off, pieces, record_blocks
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

_MARK = b"Event Stream"
_ATIS_SIZE = (240, 304)
_BEYOND_ALL = 0x7FFF  # the largest column or row of EVENT_DTYPE
_TYPES = {
    1: ("DVS", "ATIS", "display", "color", "generic"),
    2: ("generic", "DVS", "ATIS", "display", "color"),
}


class _Layout(NamedTuple):
    """How events of one version and type are stored, as little-endian integers.

    Attributes:
        n_bytes: Of an event.
        time: The lowest bit of the time, and its number of bits, all in the first byte.
        x: The same.
        y: The same.
        p: The bit of the polarity.
        measures: The bit that says whether it measures brightness; None where there is none.
    """

    n_bytes: int
    time: tuple[int, int]
    x: tuple[int, int]
    y: tuple[int, int]
    p: int
    measures: int | None = None

    def microseconds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return of each first byte, [256], how many µs it stands for, and if it is a pause."""
        first = np.arange(256)
        lowest, n_bits = self.time
        longest = (1 << n_bits) - 1
        time = first >> lowest & longest
        others = first & (1 << lowest) - 1 if lowest else first >> n_bits
        is_pause = time == longest
        return np.where(is_pause, others * longest, time), is_pause


_LAYOUTS = {
    (1, "DVS"): _Layout(3, time=(0, 4), x=(4, 10), y=(14, 9), p=23),
    (1, "ATIS"): _Layout(3, time=(0, 5), x=(5, 9), y=(14, 8), p=23, measures=22),
    (2, "DVS"): _Layout(5, time=(1, 7), x=(8, 16), y=(24, 16), p=0),
    (2, "ATIS"): _Layout(5, time=(2, 6), x=(8, 16), y=(24, 16), p=1, measures=0),
}


def sniff(head: bytes) -> bool:
    """Recognize an Event Stream file."""
    return head.startswith(_MARK)


def stream(path: Path, options: ReadOptions) -> Source:
    """Read a stream of DVS or ATIS events; other types and versions are refused.

    Raises:
        InputError: Such a stream, or a header that is cut off; and, on the way, an event outside
            the sensor that the header states.
    """
    with open(path, "rb") as file:
        head = file.read(20)
    major = head[12] if len(head) > 12 else 0
    version = ".".join(map(str, head[12:14])) or "none"
    if major not in _TYPES:
        raise InputError(
            f"{path}: Event Stream of version {version}, of which only 1 and 2 are read; convert "
            "it with the package event_stream"
        )
    offset = 15 if major == 1 else 20
    if len(head) < offset:
        raise InputError(f"{path}: Event Stream without its whole header; copy it again")
    code = head[13 + major]
    kind = _TYPES[major][code] if code < len(_TYPES[major]) else f"number {code}"
    if (major, kind) not in _LAYOUTS:
        raise InputError(
            f"{path}: Event Stream of {kind} events, of which only DVS and ATIS are read; record "
            "or export one of these"
        )
    layout = _LAYOUTS[major, kind]
    size: tuple[int, int] | None
    if major == 2:
        width, height = struct.unpack("<2H", head[16:])
        size = height, width
        if not 0 < min(size) <= max(size) <= _BEYOND_ALL:
            raise InputError(
                f"{path}: states a sensor of height {height} and width {width}; it is damaged: "
                "copy or convert it again"
            )
    else:
        size = _unstated_size(path, kind, options)
    n_bytes = path.stat().st_size - offset
    chunks = _chunks(path, offset, layout, size, options)
    return Source(str(path), chunks, size, n_bytes // layout.n_bytes)


def _unstated_size(path: Path, kind: str, options: ReadOptions) -> tuple[int, int] | None:
    """Return (height, width) of the sensor of a file of version 1, which states none."""
    if options.sensor_size is not None:
        return options.sensor_size
    remedy = "give the sensor's size (--sensor-size H W)"
    if kind == "ATIS":
        height, width = _ATIS_SIZE
        assume(path, options, f"states no size; taken for an ATIS's {height} x {width}", remedy)
        return _ATIS_SIZE
    assume(path, options, "states no size, so rows stay counted from the bottom", remedy)
    return None


def _chunks(
    path: Path,
    offset: int,
    layout: _Layout,
    size: tuple[int, int] | None,
    options: ReadOptions,
) -> Iterator[np.ndarray]:
    decoder = _Decoder(layout)
    for block in record_blocks(path, offset, np.dtype("u1"), "byte", options):
        for data in pieces(block):
            events = decoder(data)
            if size is not None:
                height, width = size
                if (outside := (events["x"] >= width) | (events["y"] >= height)).any():
                    x, y = (int(events[name][outside.argmax()]) for name in "xy")
                    raise InputError(
                        f"{path}: an event at x={x}, y={y} from the bottom lies outside the sensor "
                        f"of height {height} and width {width}; the file is damaged: copy it "
                        "again, or give the true size"
                    )
                events["y"] = height - 1 - events["y"].astype(np.int32)
            yield events
    if decoder.rest.size:
        lost = f"{decoder.rest.size} bytes are left behind the last whole event"
        cut_off(path, options, lost)


class _Decoder:
    """Decodes events, one piece of bytes after another.

    Attributes:
        rest: The bytes, uint8, of an event that was not whole.
    """

    def __init__(self, layout: _Layout) -> None:
        self._layout = layout
        self._us, self._is_pause = layout.microseconds()
        self._t = 0
        self.rest = np.empty(0, np.uint8)

    def __call__(self, data: np.ndarray) -> np.ndarray:
        """Return the events that the next bytes, uint8 [m], complete, with rows as stored."""
        data = np.concatenate((self.rest, data))
        pauses, counts = self._pauses(data)
        n_bytes = self._layout.n_bytes
        before = np.cumsum(counts) - counts
        starts = np.repeat(pauses + 1 - before * n_bytes, counts)
        starts += np.arange(len(starts)) * n_bytes
        self.rest = data[int(pauses[-1]) + 1 + int(counts[-1]) * n_bytes :].copy()

        paused = np.concatenate(([self._t], self._us.take(data.take(pauses[1:]))))
        t = np.cumsum(self._us.take(data.take(starts)))
        ran = int(t[-1]) if len(t) else 0
        t += np.repeat(np.cumsum(paused), counts)
        self._t = int(paused.sum()) + ran
        value = np.zeros(len(starts), np.int64)
        for i in range(n_bytes):
            value |= data.take(starts + i).astype(np.int64) << 8 * i
        events = np.empty(len(starts), EVENT_DTYPE)
        events["t"], events["p"] = t, value >> self._layout.p & 1
        for name, (lowest, n_bits) in (("x", self._layout.x), ("y", self._layout.y)):
            # What no sensor has must not become a column that one has.
            events[name] = np.minimum(value >> lowest & (1 << n_bits) - 1, _BEYOND_ALL)
        if self._layout.measures is not None:
            events = events[value >> self._layout.measures & 1 == 0]
        return events

    def _pauses(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the pauses, among the bytes that look like one but may lie in an event.

        Args:
            data: uint8 [m], of which the first one begins an event or is a pause.

        Returns:
            The places of the pauses, [k], behind -1 for the beginning; and behind each how many
            whole events there are.
        """
        n_bytes = self._layout.n_bytes
        looks = np.concatenate(([-1], np.flatnonzero(self._is_pause.take(data))))
        # The next pause is the first such byte that lies whole events behind this one.
        end = len(looks)
        following = np.full(end + 1, end)
        for phase in range(n_bytes):
            behind = np.flatnonzero((looks + 1) % n_bytes == phase)
            possible = 1 + np.flatnonzero(looks[1:] % n_bytes == phase)
            nearest = np.searchsorted(looks[possible], looks[behind], side="right")
            following[behind] = np.append(possible, end)[nearest]
        # From the first 1, 2, 4, ... pauses to as many more, by leaps of as many.
        found, leap = np.zeros(1, np.int64), following
        while (more := leap.take(found))[0] < end:
            found, leap = np.concatenate((found, more[more < end])), leap.take(leap)
        places = looks.take(found)
        return places, (np.append(places[1:], len(data)) - places - 1) // n_bytes
