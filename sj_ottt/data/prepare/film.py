"""Frames to look at, kept of a recording as it passes: few and coarse, whatever its length."""

import numpy as np

__all__ = ["Film", "fitted"]

_FRAMES = 64
_SHORTEST_US, _LONGEST_US = 1_000, 32_000  # of a frame: a millisecond, doubled five times
_HOP = _FRAMES // 4
_LARGEST_SIDE = 320


class Film:
    """The busiest two seconds of a recording, and the busiest 32 ms, in 64 coarse frames.

    Frames begin with the first event and last 1 ms; whenever 64 are full, they are joined two by
    two, up to 32 ms. From then on, the oldest 16 go for every 16 that come, and the 64 with the
    most events are kept. Pixels are joined two by two likewise, until no side has more than 320.

    Args:
        sensor_size: (height, width) in pixels; None grows with the events.

    Attributes:
        step_us: Duration of a frame.
        factor: How many rows and columns of the sensor make one of a frame.
    """

    def __init__(self, sensor_size: tuple[int, int] | None = None) -> None:
        self.step_us = _SHORTEST_US
        self.factor = 1
        self._counts = np.zeros((_FRAMES, 2, 1, 1), np.int32)
        self._begin: int | None = None  # of the first frame, in µs
        self._used = 0
        self._slid = False
        self._motion, self._still = (0, self._counts[:0], 1), (0, self._counts[0], 1)
        if sensor_size is not None:
            self._make_room(*sensor_size)

    def add(self, events: np.ndarray) -> None:
        """Take events [n], n > 0, in order of time, none before those taken earlier."""
        if self._begin is None:
            self._begin = int(events["t"][0])
        self._make_room(int(events["y"].max()) + 1, int(events["x"].max()) + 1)
        while len(events):
            here = int(np.searchsorted(events["t"], self._begin + _FRAMES * self.step_us))
            if here:
                self._count(events[:here])
                events = events[here:]
            if len(events):
                self._forward(int(events["t"][0]))

    def motion(self) -> tuple[np.ndarray, int]:
        """Return the frames, int32 [T, 2, H, W], T at most 64, and their `factor`."""
        if self._slid:
            self._evaluate()
            _, counts, factor = self._motion
            return counts, factor
        return self._counts[: self._used], self.factor

    def still(self) -> tuple[np.ndarray, int]:
        """Return the busiest 32 ms as one frame, int32 [2, H, W], and its `factor`."""
        self._evaluate()
        _, counts, factor = self._still
        return counts, factor

    def _count(self, events: np.ndarray) -> None:
        assert self._begin is not None
        _, _, height, width = self._counts.shape
        frame = (events["t"] - self._begin) // self.step_us
        first, last = int(frame[0]), int(frame[-1])
        cell = (frame - first) * 2 + events["p"]
        cell = (cell * height + events["y"] // self.factor) * width + events["x"] // self.factor
        n = last + 1 - first
        counts = np.bincount(cell, minlength=n * 2 * height * width)
        self._counts[first : last + 1] += counts.reshape(n, 2, height, width).astype(np.int32)
        self._used = max(self._used, last + 1)

    def _forward(self, t: int) -> None:
        """Move on towards a frame of time ``t``, which lies behind the last one."""
        assert self._begin is not None
        if self.step_us < _LONGEST_US:
            pairs = self._counts.reshape(_FRAMES // 2, 2, *self._counts.shape[1:])
            self._counts[: _FRAMES // 2] = pairs.sum(1)
            self._counts[_FRAMES // 2 :] = 0
            self._used = -(-self._used // 2)
            self.step_us *= 2
            return
        self._evaluate()
        self._slid = True
        hop_us = _HOP * self.step_us
        hops = max(1, (t - self._begin) // hop_us - _FRAMES // _HOP + 1)
        kept = max(0, _FRAMES - hops * _HOP)
        self._counts[:kept] = self._counts[_FRAMES - kept :].copy()
        self._counts[kept:] = 0
        self._used = kept
        self._begin += hops * hop_us

    def _evaluate(self) -> None:
        """Keep the frames as the busiest ones where they are."""
        per_frame = self._counts.sum((1, 2, 3), dtype=np.int64)
        if (total := int(per_frame.sum())) > self._motion[0]:
            self._motion = total, self._counts.copy(), self.factor
        joined = _LONGEST_US // self.step_us
        sums = np.convolve(per_frame, np.ones(joined, np.int64), "valid")
        first = int(sums.argmax())
        if (most := int(sums[first])) > self._still[0]:
            still = self._counts[first : first + joined].sum(0, dtype=np.int32)
            self._still = most, still, self.factor

    def _make_room(self, height: int, width: int) -> None:
        """Have frames for so many rows and columns of the sensor."""
        while max(height, width) > self.factor * _LARGEST_SIDE:
            self._counts = _coarser(self._counts)
            self.factor *= 2
        missing = [
            max(0, -(-pixels // self.factor) - cells)
            for pixels, cells in zip((height, width), self._counts.shape[2:], strict=True)
        ]
        if any(missing):
            self._counts = np.pad(self._counts, ((0, 0), (0, 0), *((0, n) for n in missing)))


def fitted(
    counts: np.ndarray, factor: int, sensor_size: tuple[int, int], wanted: int
) -> np.ndarray:
    """Bring frames to the coarseness and size of others.

    Args:
        counts: [..., H, W], of ``factor``.
        factor: How many rows and columns of the sensor make one of theirs.
        sensor_size: (height, width) in pixels.
        wanted: The same that is wanted: ``factor``, or that doubled so many times.

    Returns:
        [..., H', W'] for the whole sensor.
    """
    while factor < wanted:
        counts, factor = _coarser(counts), 2 * factor
    missing = [
        -(-pixels // factor) - cells
        for pixels, cells in zip(sensor_size, counts.shape[-2:], strict=True)
    ]
    return np.pad(counts, (*((0, 0),) * (counts.ndim - 2), *((0, n) for n in missing)))


def _coarser(counts: np.ndarray) -> np.ndarray:
    """Join rows and columns [..., H, W] two by two."""
    odd = [(0, cells % 2) for cells in counts.shape[-2:]]
    counts = np.pad(counts, (*((0, 0),) * (counts.ndim - 2), *odd))
    *outer, height, width = counts.shape
    return counts.reshape(*outer, height // 2, 2, width // 2, 2).sum((-3, -1), dtype=np.int32)
