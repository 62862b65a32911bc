"""EVT 2.0 and EVT 2.1: words of 32 bits, alone or with 32 bits that say which pixels fired.

A word's type is in bits 28-31: 0 OFF, 1 ON (time in bits 22-27, x in bits 11-21, y in bits 0-10),
8 the time's upper 28 bits, which are unwrapped. Events before the first such word have no time and
are left out; words of other types (triggers) are passed over.

In EVT 2.1, x is the first of 32 pixels, and bit i of 32 more bits says whether pixel x + i fired.
Those bits come first, or, in the files of an IMX636 (``endianness=legacy``), second.
"""

from typing import ClassVar

import numpy as np

from sj_ottt.data.recordings.formats.common import Unwrap
from sj_ottt.data.recordings.formats.prophesee.vectors import set_bits, table

_KINDS = (0, 1, 8, 10, 14, 15)
_TIME = 8


class Evt2:
    """Decodes EVT 2.0, one piece after another."""

    dtype: ClassVar[np.dtype] = np.dtype("<u4")

    def __init__(self) -> None:
        self._clock = Unwrap(28)
        self._high: int | None = None

    def __call__(self, words: np.ndarray) -> np.ndarray:
        """Return the events [n] of `EVENT_DTYPE` in the next words [m]."""
        _, *columns = self._columns(words)
        return table(*columns)

    def is_known(self, words: np.ndarray) -> np.ndarray:
        """Whether words [n] are of a type that there is, bool [n]."""
        return np.isin(words >> 28, _KINDS)

    def _columns(self, words: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the indices of the words that hold events, and their t, x, y and p."""
        kinds = words >> 28
        at, times = np.flatnonzero(kinds <= 1), np.flatnonzero(kinds == _TIME)
        highs = self._clock(words.take(times) & 0x0FFF_FFFF) << 6
        before = np.searchsorted(at, times)
        if self._high is None:
            untimed = int(before[0]) if len(times) else len(at)
            at, before = at[untimed:], before - untimed
        lengths = np.diff(before, prepend=0, append=len(at))
        t = np.repeat(np.concatenate(([self._high or 0], highs)), lengths)
        if len(highs):
            self._high = int(highs[-1])
        words = words.take(at)
        t += words >> 22 & 0x3F
        return at, t, words >> 11 & 0x7FF, words & 0x7FF, words >> 28


class Evt21(Evt2):
    """Decodes EVT 2.1, one piece after another.

    Args:
        swapped: Whether the word comes before the bits of its pixels.
    """

    dtype: ClassVar[np.dtype] = np.dtype("<u8")

    def __init__(self, swapped: bool = False) -> None:
        super().__init__()
        self._word = 0 if swapped else 1

    def __call__(self, words: np.ndarray) -> np.ndarray:
        """Return the events [n] of `EVENT_DTYPE` in the next words [m]."""
        pairs = words.view("<u4").reshape(-1, 2)
        at, t, x, y, p = self._columns(pairs[:, self._word])
        word, pixel = set_bits(pairs[:, 1 - self._word].take(at))
        return table(t.take(word), x.take(word) + pixel, y.take(word), p.take(word))

    def is_known(self, words: np.ndarray) -> np.ndarray:
        """Whether words [n] are of a type that there is, bool [n]."""
        return super().is_known(words.view("<u4").reshape(-1, 2)[:, self._word])
