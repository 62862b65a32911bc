"""Event Stream files, written byte by byte from the format's definition."""

import struct
from collections.abc import Sequence

from tests.data.recordings.damage import Sample
from tests.recording_files import Event, sample_events

HEIGHT, WIDTH = 240, 304


def es(events: Sequence[Event], kind: str, version: int, measures: Sequence[int] = ()) -> bytes:
    """Write events; before those at the places ``measures`` goes a measurement of brightness."""
    code = {"DVS": 0, "ATIS": 1}[kind] + (version == 2)
    data = b"Event Stream" + (bytes([1, 0, code]) if version == 1 else bytes([2, 0, 0, code]))
    if version == 2:
        data += struct.pack("<2H", WIDTH, HEIGHT)
    before = 0
    for i, (t, x, y, p) in enumerate(events):
        if i in measures:
            data += record(kind, version, 0, WIDTH - 1, 0, 1 - p, measure=1)
        data += pause(kind, version, t - before)
        longest = LONGEST[kind, version]
        data += record(kind, version, (t - before) % longest, x, HEIGHT - 1 - y, p)
        before = t
    return data


LONGEST = {("DVS", 1): 15, ("ATIS", 1): 31, ("DVS", 2): 127, ("ATIS", 2): 63}


def pause(kind: str, version: int, us: int) -> bytes:
    """Bytes that stand for all but the rest of a time by the longest that an event can state."""
    times = us // LONGEST[kind, version]
    at_once, byte = {
        ("DVS", 1): (15, lambda k: k << 4 | 15),
        ("ATIS", 1): (7, lambda k: k << 5 | 31),
        ("DVS", 2): (1, lambda k: 254 + k),
        ("ATIS", 2): (3, lambda k: 252 + k),
    }[kind, version]
    whole, rest = divmod(times, at_once)
    return bytes([byte(at_once)] * whole + [byte(rest)] * (rest > 0))


def reset(kind: str, version: int) -> bytes:
    """Bytes that bring a reader that lost its place back into step."""
    byte = {("DVS", 1): 15, ("ATIS", 1): 31, ("DVS", 2): 254, ("ATIS", 2): 252}[kind, version]
    return bytes([byte] * (3 if version == 1 else 5))


def record(kind: str, version: int, t: int, x: int, y: int, p: int, measure: int = 0) -> bytes:
    match kind, version:
        case "DVS", 1:
            return (t | x << 4 | y << 14 | p << 23).to_bytes(3, "little")
        case "ATIS", 1:
            return (t | x << 5 | y << 14 | measure << 22 | p << 23).to_bytes(3, "little")
        case "DVS", 2:
            return struct.pack("<B2H", t << 1 | p, x, y)
        case _:
            return struct.pack("<B2H", t << 2 | p << 1 | measure, x, y)


def _few() -> list[Event]:
    return [tuple(event) for event in sample_events(200, (HEIGHT, WIDTH)).tolist()]


SAMPLES = {
    "es_dvs": Sample(".es", lambda: es(_few(), "DVS", 2)),
    "es_atis": Sample(".es", lambda: es(_few(), "ATIS", 2, range(0, 200, 3))),
    "es_1": Sample(".es", lambda: es(_few(), "ATIS", 1)),
}
