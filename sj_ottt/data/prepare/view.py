"""What a page shows of a recording of any length: counts in frames, coarse where they are many."""

import os
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sj_ottt.data.frames.hot_pixels import hot_pixels
from sj_ottt.data.recordings.events import LARGEST_SENSOR, extent
from sj_ottt.data.recordings.readers import open_recording
from sj_ottt.data.recordings.sensor import Seen, agree
from sj_ottt.data.recordings.source import ReadOptions
from sj_ottt.data.recordings.walk import walk
from sj_ottt.errors import InputError

__all__ = ["Cells", "Packed", "View", "view_recording"]

MOST_COUNTS = 9_000_000  # some 20 MB of a page, at worst
_MOST_FRAMES = 1 << 17
SHORTEST_US = 125  # of a frame; doubled, it becomes whole milliseconds
_SMOOTH_US, _LONG_US = 8_000, 32_000  # of a frame: before pixels are joined, before events are left
_SMALLEST_SIDE = 320  # of the sensor in cells, where pixels are joined for the sake of fewer counts
_SIDE_BITS = (LARGEST_SENSOR - 1).bit_length()
_FRAME_SHIFT = 2 * _SIDE_BITS + 1
_LONGEST_US = 1 << 61
_DEFAULT = ReadOptions()


class Packed(NamedTuple):
    """Counts in few bytes: each stream holds varints (LEB128), deflated by zlib.

    Attributes:
        lengths: How many counts above 0 each frame has.
        gaps: For each of them, how many cells lie between the one before, or the frame's beginning,
            and its own. Cells are numbered ``(row * width + column) * 2 + polarity``.
        counts: Events there, less 1.
        totals: Events of each frame, OFF and ON, shown or not.
    """

    lengths: bytes
    gaps: bytes
    counts: bytes
    totals: bytes


class Cells:
    """Counts of events by frame, cell and polarity, kept as a recording passes.

    A frame lasts 125 µs, and a cell is a pixel. Whenever more than ``most`` counts are above 0,
    frames are joined, four by four at most, up to 8 ms; then rows and columns two by two, as long
    as the longer side keeps 320 cells; then frames once more, to 32 ms. After that, every second
    count is left out, drawn by chance, and every second of those left, and so on. Frames are joined
    two by two, too, whenever they are more than 131,072.

    Args:
        most: Counts above 0 that are kept.
        side: The sensor's longer side in pixels; it grows with the events.

    Attributes:
        step_us: Duration of a frame.
        factor: How many rows and columns of the sensor make one of cells.
        share: One in so many events is kept.
    """

    def __init__(self, most: int = MOST_COUNTS, side: int = 0) -> None:
        self.step_us = SHORTEST_US
        self.factor = 1
        self.share = 1
        self._duration = 0
        self._most = most
        self._side = side
        # Keys (frame, row, column, polarity) in order, and their counts; no frame is in two pieces.
        self._pieces: list[tuple[np.ndarray, np.ndarray]] = []
        self._totals = np.zeros((0, 2), np.int64)

    @property
    def frames(self) -> int:
        """How many frames there are, to the last one with an event or covered."""
        return -(-self._duration // self.step_us)

    def add(self, events: np.ndarray, begin: int) -> None:
        """Take events.

        Args:
            events: [n], n > 0, of `EVENT_DTYPE`, in order of time, none before those taken earlier.
            begin: Of the first frame, in µs.
        """
        self._side = max(self._side, *extent(events))
        self.cover(int(events["t"][-1]) - begin + 1)
        key = (events["t"] - begin) // self.step_us
        first = int(key[0])
        totals = np.bincount((key - first) * 2 + events["p"], minlength=2).astype(np.int64)
        totals = np.pad(totals, (0, len(totals) % 2)).reshape(-1, 2)
        self._totals[first : first + len(totals)] += totals
        for name, bits in (("y", _SIDE_BITS), ("x", _SIDE_BITS), ("p", 1)):
            key <<= bits
            key |= events[name] if name == "p" else events[name] // self.factor
        self._append(*np.unique(key[_drawn(key, self.share)], return_counts=True))
        while self._size() > self._most:
            if self.step_us < _SMOOTH_US:
                self._join(times=min(4, _SMOOTH_US // self.step_us))
            elif self._side >= 2 * self.factor * _SMALLEST_SIDE:
                self._join(sides=2)
            elif self.step_us < _LONG_US:
                self._join(times=min(4, _LONG_US // self.step_us))
            else:
                self.share *= 2
                self._pieces = [
                    (keys[kept], counts[kept])
                    for keys, counts in self._pieces
                    if (kept := _drawn(keys, self.share)).any()
                ]

    def cover(self, duration: int) -> None:
        """Have frames for so many µs, though no event may lie in the last ones."""
        while (duration - 1) // self.step_us >= _MOST_FRAMES:
            self._join(times=2)
        self._duration = max(self._duration, duration)
        missing = self.frames - len(self._totals)
        if missing > 0:
            room = missing + len(self._totals) // 4  # it need not grow with every block
            self._totals = np.pad(self._totals, ((0, room), (0, 0)))

    def packed(self, width: int) -> Packed:
        """Pack the counts.

        Args:
            width: Of the sensor in pixels.
        """
        row = -(-width // self.factor)
        lengths = np.zeros(self.frames, np.int64)
        gaps, counts = _Stream(), _Stream()
        mask = (1 << _SIDE_BITS) - 1
        for keys, numbers in self._pieces:
            frame = keys >> _FRAME_SHIFT
            lengths += np.bincount(frame, minlength=self.frames)
            y, x = keys >> (_SIDE_BITS + 1) & mask, keys >> 1 & mask
            cell = (y * row + x) * 2 + (keys & 1)
            before = np.where(np.diff(frame, prepend=-1) > 0, -1, np.roll(cell, 1))
            gaps.add(cell - before - 1)
            counts.add(numbers - 1)
        each, totals = _Stream(), _Stream()
        each.add(lengths)
        totals.add(self._totals[: self.frames].ravel())
        return Packed(each.close(), gaps.close(), counts.close(), totals.close())

    def _size(self) -> int:
        return sum(len(keys) for keys, _ in self._pieces)

    def _append(self, keys: np.ndarray, counts: np.ndarray) -> None:
        if not len(keys):
            return
        if self._pieces:  # the last frame may go on
            old_keys, old_counts = self._pieces.pop()
            first = np.searchsorted(old_keys, keys[0] >> _FRAME_SHIFT << _FRAME_SHIFT)
            if first:
                self._pieces.append((old_keys[:first], old_counts[:first]))
            if first < len(old_keys):
                keys = np.concatenate([old_keys[first:], keys])
                keys, counts = _summed(keys, np.concatenate([old_counts[first:], counts]))
        self._pieces.append((keys, counts.astype(np.uint32)))

    def _join(self, *, times: int = 1, sides: int = 1) -> None:
        """Join so many frames, rows and columns; both are powers of 2."""
        self.step_us *= times
        self.factor *= sides
        n = -(-len(self._totals) // times)
        totals = np.pad(self._totals, ((0, n * times - len(self._totals)), (0, 0)))
        self._totals = totals.reshape(n, times, 2).sum(1)
        pieces, self._pieces = self._pieces[::-1], []
        mask = (1 << _SIDE_BITS) - 1
        while pieces:
            keys, counts = pieces.pop()
            frame = (keys >> _FRAME_SHIFT) // times
            y, x = (keys >> (_SIDE_BITS + 1) & mask) // sides, (keys >> 1 & mask) // sides
            keys = ((frame << _SIDE_BITS | y) << _SIDE_BITS | x) << 1 | keys & 1
            self._append(*_summed(keys, counts))


@dataclass(frozen=True)
class View:
    """What a page shows of a recording.

    Attributes:
        name: The recording.
        sensor_size: (height, width) in pixels.
        start: Of what is shown, in µs from the recording's first event.
        end: The same of its end; no event lies at or behind it.
        whole: Whether the whole recording is shown.
        events: How many it has.
        on_events: How many of them have polarity 1.
        step_us: Duration of a frame.
        factor: How many rows and columns of the sensor make one of cells.
        share: One in so many events is shown.
        frames: How many there are.
        hot: Hot pixels (y, x) [n, 2], see `hot_pixels`, that with the most events first.
        packed: The counts of each frame.
    """

    name: str
    sensor_size: tuple[int, int]
    start: int
    end: int
    whole: bool
    events: int
    on_events: int
    step_us: int
    factor: int
    share: int
    frames: int
    hot: np.ndarray
    packed: Packed


def view_recording(
    path: str | os.PathLike,
    options: ReadOptions = _DEFAULT,
    *,
    start: int = 0,
    length: int | None = None,
    most: int = MOST_COUNTS,
) -> View:
    """Read a recording once, block by block, and keep what a page shows of it.

    Args:
        path: The recording.
        options: How to read it.
        start: Show it from here on, in µs from its first event.
        length: Show so many µs of it; None shows it to its end.
        most: See `Cells`.

    Raises:
        InputError: The recording cannot be read, see `open_recording` and `check_events`; no event
            lies in the part; a wrong argument; or the sensor's size would have to be assumed, and
            ``options.strict`` is set.
    """
    if start < 0 or (length is not None and length <= 0):
        raise InputError(f"start={start}, length={length}: give a start from 0 on, and a length")
    source = open_recording(path, options)
    cells = Cells(most, max(source.sensor_size or (0,)))
    counts = np.zeros((1, 1), np.int64)
    first, last, n, on_events = None, 0, 0, 0
    end = None if length is None else start + length
    ended = True
    for events in walk(source):
        first = int(events["t"][0]) if first is None else first
        last = int(events["t"][-1]) - first
        if last >= _LONGEST_US:
            raise InputError(f"{source.name}: lasts {last} µs; mend its times")
        bounds = (first + start, first + (last + 1 if end is None else end))
        i, j = np.searchsorted(events["t"], bounds)
        ended = end is None or last < end
        if i < j:
            shown = events[i:j]
            cells.add(shown, first + start)
            counts = _counted(counts, shown)
            n, on_events = n + len(shown), on_events + int(np.count_nonzero(shown["p"]))
        if not ended:
            break
    if not n:
        lasts = f", and the recording lasts {last} µs" if ended else ""
        raise InputError(
            f"{source.name}: no event lies from {start} µs to {end or 'its end'}{lasts}; choose "
            "another part"
        )
    end = last + 1 if ended or end is None else end
    cells.cover(end - start)
    seen = Seen(source.name, source.sensor_size, counts.shape)
    size = agree(source.name, [seen]).said(strict=options.strict)
    counts = np.pad(counts, [(0, size[i] - counts.shape[i]) for i in (0, 1)])
    hot = np.argwhere(hot_pixels(counts, size))
    return View(
        name=source.name,
        sensor_size=size,
        start=start,
        end=end,
        whole=ended and not start,
        events=n,
        on_events=on_events,
        step_us=cells.step_us,
        factor=cells.factor,
        share=cells.share,
        frames=cells.frames,
        hot=hot[np.argsort(-counts[tuple(hot.T)], kind="stable")],
        packed=cells.packed(size[1]),
    )


class _Stream:
    """Varints, deflated as they come."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(9)
        self._parts: list[bytes] = []

    def add(self, values: np.ndarray) -> None:
        """Take whole numbers from 0 on, below 2**35."""
        for i in range(0, len(values), 1 << 18):
            data = _varints(values[i : i + (1 << 18)])
            self._parts.append(self._deflate.compress(data))

    def close(self) -> bytes:
        """Return the whole stream."""
        return b"".join([*self._parts, self._deflate.flush()])


def _varints(values: np.ndarray) -> bytes:
    values = values.astype(np.int64)[:, None]
    shifts = np.arange(0, 35, 7)
    more = values >> (shifts + 7) > 0
    digits = (values >> shifts & 0x7F | more << 7).astype(np.uint8)
    used = (values >> shifts > 0) | (shifts == 0)
    return digits[used].tobytes()


def _drawn(keys: np.ndarray, share: int) -> np.ndarray:
    """Draw one in ``share`` of the keys, a power of 2: of any drawn, half are for its double."""
    if share == 1:
        return np.ones(len(keys), bool)
    mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    return mixed >> np.uint64(40) & np.uint64(share - 1) == 0


def _summed(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put keys in order, each once with the sum of its counts."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    return keys[starts], np.add.reduceat(counts[order], starts)


def _counted(counts: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Add events to the counts [H, W] of pixels, which grow with their extent."""
    missing = [max(0, new - old) for new, old in zip(extent(events), counts.shape, strict=True)]
    if any(missing):
        counts = np.pad(counts, [(0, pixels) for pixels in missing])
    cell = events["y"].astype(np.int64) * counts.shape[1] + events["x"]
    return counts + np.bincount(cell, minlength=counts.size).reshape(counts.shape)
