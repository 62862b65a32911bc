"""EVT 3.0: words of 16 bits, each of which changes a part of what the next event is made of.

A word's type is in bits 12-15, its value in the bits below:

- 0: the row y (bits 0-10); 1: the same of an event that is no change of brightness, left out here;
- 2: an event at column x (bits 0-10), with its polarity in bit 11;
- 3: polarity and column, as in 2, of the first of the pixels of the words that follow;
- 4, 5: bit i says whether the i-th of the next 12 (4) or 8 (5) pixels fired;
- 6, 8: the lower (6) and upper (8) 12 bits of the time. The lower ones are 0 where the upper ones
  change, until the next word 6.

Events before the first time, row or (in words 4 and 5) column are left out, and words of other
types (triggers) are passed over. The clock of 24 bits goes round every 16.8 s; see `_Turns`.
"""

from typing import ClassVar

import numpy as np

from sj_ottt.data.recordings.formats.prophesee.vectors import set_bits, table

_KINDS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 14, 15)
_EVENT, _BASE, _LOW, _HIGH = 2, 3, 6, 8
# By type: how many pixels a word tells of, and the bits that tell.
_PIXELS = np.zeros(16, np.int64)
_PIXELS[4:6] = 12, 8
_BITS = np.zeros(16, "<u2")
_BITS[4:6] = 0xFFF, 0xFF
_NONE = -1
_NO_COLUMN = -(1 << 40)
_BEYOND_ALL = 0x7FFF
_HALF = 1 << 11
_LATE = (1 << 12) - 16


class Evt3:
    """Decodes EVT 3.0, one piece after another."""

    dtype: ClassVar[np.dtype] = np.dtype("<u2")

    def __init__(self) -> None:
        self._t, self._y = _NONE, _NONE
        self._high = _NONE  # with the turns of the clock
        self._x, self._p = _NO_COLUMN, 0  # of the pixel where the next word 4 or 5 begins
        self._turns = _Turns()

    def __call__(self, words: np.ndarray) -> np.ndarray:
        """Return the events [n] of `EVENT_DTYPE` in the next words [m]."""
        kinds = (words >> 12).astype(np.uint8)
        # Those that hold events, and those that say where the next ones are.
        at = np.flatnonzero((kinds >= _EVENT) & (kinds < _LOW))
        t, y = self._times(words, kinds, at), self._rows(words, kinds, at)
        words, kinds = words.take(at), kinds.take(at)
        if (kinds == _EVENT).all():
            x, p = words & 0x7FF, words >> 11 & 1
        else:
            x, p, bits = self._pixels(words, kinds)
            word, pixel = set_bits(bits)
            t, y, p = t.take(word), y.take(word), p.take(word)
            pixel += x.take(word)
            x = np.minimum(pixel, _BEYOND_ALL)
        events = table(t, x, y, p)
        if min(column.min(initial=0) for column in (t, x, y)) < 0:
            events = events[(t >= 0) & (x >= 0) & (y >= 0)]
        return events

    def is_known(self, words: np.ndarray) -> np.ndarray:
        """Whether words [n] are of a type that there is, bool [n]."""
        return np.isin(words >> 12, _KINDS)

    def _rows(self, words: np.ndarray, kinds: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return the row that holds for each of the words at ``at``; -1 where there is none."""
        is_row = kinds <= 1
        stated = words.take(np.flatnonzero(is_row))
        rows = np.empty(len(stated) + 1, np.int16)
        rows[0], rows[1:] = self._y, stated & 0x7FF
        rows[1:][stated > 0xFFF] = _NONE
        self._y = int(rows[-1])
        return rows.take(_count(is_row).take(at))

    def _times(self, words: np.ndarray, kinds: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return the time that holds for each of the words at ``at``; -1 where there is none."""
        highs = np.flatnonzero(kinds == _HIGH)
        values = words.take(highs).astype(np.int64) & 0xFFF
        last = _NONE if self._high == _NONE else self._high & 0xFFF
        changed = np.flatnonzero(np.diff(values, prepend=last))
        highs, values = highs.take(changed), self._turns(values.take(changed))
        is_time = kinds == _LOW
        is_time[highs] = True
        count = _count(is_time)
        times = np.empty(int(count[-1:].sum()) + 1, np.int64)
        times[0], times[1:] = self._t, words.take(np.flatnonzero(is_time)) & 0xFFF
        # The upper bits hold from their word to the next one.
        first = count.take(highs)
        times[first] = 0
        lengths = np.diff(first, prepend=1, append=len(times))
        upper = np.concatenate(([self._high], values))
        times[1:] += np.repeat(upper << 12, lengths)
        if self._high == _NONE:
            times[: 1 + lengths[0]] = _NONE
        self._high, self._t = int(upper[-1]), int(times[-1])
        return times.take(count.take(at))

    def _pixels(self, words: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return each word's first column, its polarity, and the bits of the pixels that fired."""
        is_base = kinds == _BASE
        bases = words.take(np.flatnonzero(is_base))
        # Each word begins where the one before it ended, and a base puts that elsewhere.
        pixels = _PIXELS.take(kinds)
        end = np.add.accumulate(pixels)
        start = end - pixels
        origins = np.concatenate(([self._x], (bases & 0x7FF) - start[is_base]))
        polarities = np.concatenate(([self._p], bases >> 11 & 1)).astype(np.int8)
        count = _count(is_base)
        x, p = origins.take(count) + start, polarities.take(count)
        self._x, self._p = int(origins[-1] + end[-1]), int(polarities[-1])
        bits = words & _BITS.take(kinds)
        singles = np.flatnonzero(kinds == _EVENT)
        single = words.take(singles)
        x[singles], p[singles], bits[singles] = single & 0x7FF, single >> 11 & 1, 1
        return x, p, bits


class _Turns:
    """Undoes the overflows of the time's upper 12 bits.

    A fall by more than half their range is one, and a rise by so much right behind it takes it
    back: a late time from before the overflow, or a damaged one. So does a rise by all but 65 ms of
    the range. Any other is a pause without events, and a fall right behind it no overflow, but the
    end of a damaged time.
    """

    def __init__(self) -> None:
        self._last = _NONE
        self._turns = 0
        self._since = 2  # times since the last step by more than half
        self._by_fall = False  # whether those that followed at once on each other began with a fall

    def __call__(self, highs: np.ndarray) -> np.ndarray:
        """Return the next upper bits, int64 [n], with the turns of the clock above them."""
        if not len(highs):
            return highs
        first = int(highs[0]) if self._last == _NONE else self._last
        steps = np.diff(highs, prepend=first)
        turns = np.zeros(len(highs), np.int64)
        before = -self._since
        for i in np.flatnonzero(np.abs(steps) > _HALF).tolist():
            if i != before + 1:
                self._by_fall = bool(steps[i] < 0 or steps[i] > _LATE)
            if self._by_fall:
                turns[i] = -np.sign(steps[i])
            before = i
        turns = np.cumsum(turns) + self._turns
        self._last, self._turns, self._since = int(highs[-1]), int(turns[-1]), len(highs) - before
        return highs + (turns << 12)


def _count(marks: np.ndarray) -> np.ndarray:
    """Return how many of the marks, bool [n], there are up to each one, int32 [n]."""
    return np.add.accumulate(marks.view(np.uint8), dtype=np.int32)
