"""Where events come from, block by block; how to read them; and all of them in one array."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sj_ottt.data.recordings.events import EVENT_DTYPE
from sj_ottt.errors import InputError

__all__ = ["BLOCK", "REORDERED_US", "ReadOptions", "Source", "gather", "in_order", "in_proportion"]

BLOCK = 1 << 20
"""About how many events a block holds at most."""

REORDERED_US = 10_000
"""Events that run back by so many µs at most are put in order."""

# Events that a byte can hold: EVT3 holds 6. Fewer than a few million fill no memory.
_DENSEST, _FEW = 10, 1 << 24
_UNITS = ("us", "ns", "ms", "s")
_BYTES = np.dtype((np.void, EVENT_DTYPE.itemsize))
_LARGEST_SIDE = 1 << 15  # what EVENT_DTYPE holds


class Source(NamedTuple):
    """Where events come from.

    Attributes:
        name: What messages call it.
        chunks: Events [n] of `EVENT_DTYPE`, in pieces of any size.
        sensor_size: (height, width) where that is stated; else None.
        expected: About how many events there are, for a progress bar; None where that is unknown.
        stored: Bytes of the file that they are in; None where there is none.
    """

    name: str
    chunks: Iterable[np.ndarray]
    sensor_size: tuple[int, int] | None = None
    expected: int | None = None
    stored: int | None = None


@dataclass(frozen=True)
class ReadOptions:
    """How to read a recording.

    Attributes:
        strict: Refuse what is otherwise repaired, or assumed, with a warning.
        sensor_size: (height, width) of the sensor in pixels; None takes what the file states.
        camera: Which of several cameras in a file, by its name or its number from 0 on.
        time_unit: Unit of the file's times where its format leaves that open: ``"us"``, ``"ns"``,
            ``"ms"`` or ``"s"``; None tells it by what the file holds.

    Raises:
        InputError: A wrong size or unit.
    """

    strict: bool = False
    sensor_size: tuple[int, int] | None = None
    camera: str | None = None
    time_unit: str | None = None

    def __post_init__(self) -> None:
        if self.sensor_size is not None:
            size = tuple(self.sensor_size)
            if len(size) != 2 or not all(0 < side < _LARGEST_SIDE for side in size):
                raise InputError(
                    f"sensor_size={self.sensor_size!r}: give (height, width) in pixels, two whole "
                    "numbers above 0"
                )
            object.__setattr__(self, "sensor_size", size)
        if self.time_unit is not None and self.time_unit not in _UNITS:
            raise InputError(f"time_unit={self.time_unit!r}: choose one of {', '.join(_UNITS)}")


def in_proportion(source: Source) -> Iterator[np.ndarray]:
    """Give the blocks of a source that is to be held in memory as a whole.

    Raises:
        InputError: The file unpacks to far more events than a recording of its size holds.
    """
    n = 0
    for chunk in source.chunks:
        n += len(chunk)
        if source.stored is not None and n > max(_FEW, _DENSEST * source.stored):
            raise InputError(
                f"{source.name}: unpacks to more than {n - len(chunk)} events, far more than a "
                f"recording of {source.stored} bytes holds; if they are meant, cut it into windows"
            )
        yield chunk


def gather(chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Return all events in one array, which grows in place: 13 bytes an event, 17 at the peak."""
    events = np.empty(0, EVENT_DTYPE)
    n = 0
    for chunk in chunks:
        if n + len(chunk) > len(events):
            # In place: joining the pieces at the end would take the memory twice.
            events.resize(max(n + len(chunk), len(events) * 5 // 4), refcheck=False)
        # As bytes: numpy copies records field by field, which takes twenty times as long.
        events.view(_BYTES)[n : n + len(chunk)] = np.ascontiguousarray(chunk).view(_BYTES)
        n += len(chunk)
    events.resize(n, refcheck=False)
    return events


def in_order(chunks: Iterable[np.ndarray], name: str, *, strict: bool) -> Iterator[np.ndarray]:
    """Put events into order that run back by `REORDERED_US` at most, across blocks too.

    From an event that runs back by more, all stay as they are. At the end, a warning says how many
    ran back. No more than two blocks are held back.

    Args:
        chunks: Events [n] of `EVENT_DTYPE`.
        name: What messages call the recording.
        strict: Refuse events that run back.

    Raises:
        InputError: Events run back, and ``strict`` is set.
    """
    held: list[np.ndarray] = []  # in order; later ones may still have to go before these
    newest, moved, furthest = -(1 << 62), 0, 0
    chunks = iter(chunks)
    for chunk in chunks:
        if not len(chunk):
            continue
        t = np.ascontiguousarray(chunk["t"])
        most = 0
        if t[0] < newest or (t[1:] < t[:-1]).any():
            latest = np.maximum(np.maximum.accumulate(t), newest)
            back = latest - t
            most = int(back.max())
        newest = max(newest, int(t.max() if most else t[-1]))
        if most:
            if strict:
                raise InputError(
                    f"{name}: time runs backwards by {most} µs; sort the events by t, or read it "
                    "without --strict, which puts steps of up to "
                    f"{REORDERED_US // 1000} ms in order"
                )
            if most > REORDERED_US:
                yield from held
                held = []
                yield chunk
                break
            moved, furthest = moved + int(np.count_nonzero(back)), max(furthest, most)
            chunk = np.concatenate([*held, chunk])
            held = [chunk[np.argsort(chunk["t"], kind="stable")]]
        else:
            held.append(chunk)
        while held:
            first = held[0]
            waiting = sum(map(len, held))
            n = int(np.searchsorted(first["t"], newest - REORDERED_US, "right"))
            # Many events of one time must not fill the memory.
            n = min(len(first), max(n, waiting - BLOCK))
            if n:
                yield first[:n]
            if n < len(first):
                held[0] = first[n:]
                break
            held.pop(0)
    yield from held
    yield from chunks
    if moved:
        warnings.warn(
            f"{name}: {moved} events ran back by up to {furthest} µs and were put in order",
            stacklevel=2,
        )
