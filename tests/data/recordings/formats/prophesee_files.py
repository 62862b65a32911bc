"""Prophesee's files, written from the definition of each encoding, and a plain decoder of EVT3."""

import struct
from collections.abc import Sequence

import numpy as np

from tests.data.recordings.damage import Sample
from tests.recording_files import Event, sample_events


def header(encoding: str, *lines: str, end: bool = True) -> bytes:
    all_lines = ["date 2024-01-01", f"format {encoding}", *lines, *(["end"] if end else [])]
    return "".join(f"% {line}\n" for line in all_lines).encode()


def dat1(events: Sequence[Event], head: str = "% Version 1\n% Width 304\n% Height 240\n") -> bytes:
    body = (struct.pack("<II", t, x | y << 9 | p << 17) for t, x, y, p in events)
    return head.encode() + bytes([12, 8]) + b"".join(body)


def groups(events: Sequence[Event], width: int) -> list[tuple[Event, int]]:
    """Join neighbours in time that lie side by side: the first event, and a bit for each."""
    found: list[tuple[Event, int]] = []
    for t, x, y, p in events:
        if found:
            (t0, x0, y0, p0), bits = found[-1]
            if (t0, y0, p0) == (t, y, p) and 0 <= x - x0 < width and not bits >> x - x0:
                found[-1] = found[-1][0], bits | 1 << x - x0
                continue
        found.append(((t, x, y, p), 1))
    return found


def evt21(events: Sequence[Event], *, swapped: bool = False, stated: bool = True) -> bytes:
    """EVT 2.1: the pixels' bits in the lower half of a word of 64 bits, or swapped."""
    body, high = b"", None
    for (t, x, y, p), bits in groups(events, 32):
        if high != (high := t >> 6):
            halves = 0, 8 << 28 | high & 0xFFF_FFFF
            body += struct.pack("<2I", *halves[:: -1 if swapped else 1])
        halves = bits, p << 28 | (t & 63) << 22 | x << 11 | y
        body += struct.pack("<2I", *halves[:: -1 if swapped else 1])
    options = f";endianness={'legacy' if swapped else 'little'}" if stated else ""
    return header(f"EVT21;height=720;width=1280{options}") + body


def evt3_words(events: Sequence[Event]) -> list[int]:
    """EVT 3.0 as a camera writes it: only what changes; groups as words of 12, 12 and 8 bits."""
    words: list[int] = []
    state: dict[str, int | None] = {"high": None, "low": None, "y": None}
    for (t, x, y, p), bits in groups(events, 32):
        if state["high"] != t >> 12:
            words.append(0x8000 | t >> 12 & 0xFFF)
            state |= {"high": t >> 12, "low": None}
        if state["low"] != t & 0xFFF:
            words.append(0x6000 | t & 0xFFF)
        if state["y"] != y:
            words.append(y)
        state |= {"low": t & 0xFFF, "y": y}
        if bits == 1:
            words.append(0x2000 | p << 11 | x)
        else:
            words += [0x3000 | p << 11 | x, 0x4000 | bits & 0xFFF]
            words += [0x4000 | bits >> 12 & 0xFFF, 0x5000 | bits >> 24]
    return words


def evt3(events: Sequence[Event]) -> bytes:
    return of_words(evt3_words(events))


def of_words(words: Sequence[int]) -> bytes:
    return header("EVT3;height=720;width=1280") + np.array(words, "<u2").tobytes()


def plain_evt3(words: Sequence[int]) -> list[Event]:
    """Decode EVT 3.0 word by word, with the clock's turns as Prophesee's OpenEB counts them."""
    events: list[Event] = []
    high = low = y = base = None
    turns = p = 0
    for word in words:
        kind, value = word >> 12, word & 0xFFF
        if kind == 8:
            if high is not None and high - value > 2048:
                turns += 1
            low = low if high == value else 0
            high = value
        elif kind == 6:
            low = value
        elif kind <= 1:
            y = value & 0x7FF if kind == 0 else None
        elif kind == 3:
            base, p = value & 0x7FF, value >> 11
        pixels = []
        if kind == 2:
            pixels = [(value & 0x7FF, value >> 11)]
        elif kind in (4, 5) and base is not None:
            n = 12 if kind == 4 else 8
            pixels = [(base + i, p) for i in range(n) if value >> i & 1]
            base += n
        if high is not None and y is not None:
            t = turns << 24 | high << 12 | low
            events += [(t, x, y, polarity) for x, polarity in pixels]
    return events


def rows_of_events(n: int = 200, seed: int = 0) -> list[Event]:
    """Events in runs that lie side by side, as an edge gives them."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    t = 5
    while len(events) < n:
        t += int(rng.integers(0, 300))
        y, x, p = int(rng.integers(720)), int(rng.integers(1240)), int(rng.integers(2))
        places = np.flatnonzero(rng.random(32) < rng.choice([0.1, 0.5, 1]))
        events += [(t, x + int(i), y, p) for i in places]
    return events[:n]


def _few() -> list[Event]:
    return [tuple(event) for event in sample_events(200, (34, 34)).tolist()]


SAMPLES = {
    "dat1": Sample(".dat", lambda: dat1(_few())),
    "evt21": Sample(".raw", lambda: evt21(rows_of_events())),
    "evt21_swapped": Sample(".raw", lambda: evt21(rows_of_events(), swapped=True, stated=False)),
    "evt3_rows": Sample(".raw", lambda: evt3(rows_of_events())),
}
