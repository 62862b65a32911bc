"""Text that may still grow, and how events that come piece by piece are cut into windows."""

import io
import itertools
import os
import select
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.formats import text
from sj_ottt.data.recordings.readers import READERS, SNIFFED_BYTES
from sj_ottt.data.recordings.source import REORDERED_US, Source
from sj_ottt.errors import InputError

__all__ = ["WHOLE", "Live", "follow", "windows"]

_PIECE = 1 << 20
_WAIT_S = 0.05
_MOST_EMPTY = 10_000_000
WHOLE = 1 << 62
"""A window that no recording fills: all of it is one sample."""


def follow(path: str | Path, idle: float | None = None) -> Source:
    """Read text that may still grow, or standard input; see `formats.text` for its lines.

    Args:
        path: The file; ``"-"`` for standard input.
        idle: End when nothing has come for so many seconds; None waits for ever. Standard input
            ends when its writer closes it, too.

    Raises:
        InputError: The file cannot be read or is of a binary format, or ``idle`` is below 0.
    """
    if idle is not None and not idle >= 0:
        raise InputError(f"idle={idle}: give a number of seconds from 0 on")
    if str(path) == "-":
        stdin = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
        return Source("standard input", _pieces(stdin, "standard input", idle, ends=True))
    try:
        file = open(path, "rb", buffering=0, opener=_open)  # noqa: SIM115, closed at its end
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    # A pipe can be read only once, and is text whatever it begins with.
    head = b""
    if Path(path).is_file():
        head = file.read(SNIFFED_BYTES)
        file.seek(0)
    binary = (r for r in READERS if r.name != "text" and r.sniff and r.sniff(head))
    if reader := next(binary, None):
        file.close()
        raise InputError(
            f"{path}: is a recording of the format {reader.name}, but a stream is text: predict "
            "without --live"
        )
    return Source(str(path), _pieces(file, str(path), idle))


def _open(path: str, flags: int) -> int:
    """Open a file; a pipe without waiting for its writer, where the system can."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _pieces(
    file: io.RawIOBase, name: str, idle: float | None, *, ends: bool = False
) -> Iterator[np.ndarray]:
    """Give the events of a file as it grows, until it is idle, or at its end where it ``ends``."""
    stream = text.TextStream(name)
    with file:
        grown = time.monotonic()
        while True:
            # Of a pipe, None is silence, and no bytes are the end.
            piece = file.read(_PIECE) if _has_come(file) else None
            if piece:
                grown = time.monotonic()
                yield stream.feed(piece)
            elif (ends and piece is not None) or (
                idle is not None and time.monotonic() - grown >= idle
            ):
                yield stream.feed(b"", last=True)
                return
            elif piece is not None:
                time.sleep(_WAIT_S)


def _has_come(file: io.RawIOBase) -> bool:
    """Wait a moment for a pipe to hold something; whether it does, or cannot be asked."""
    try:
        return bool(select.select([file], [], [], _WAIT_S)[0])
    except (OSError, ValueError):  # Windows asks sockets only, and others the first 1024 files
        return True


class Live:
    """A stream as it comes, in parts in which time runs on.

    Events up to `REORDERED_US` late are put in order, as far as the window under way allows: what
    belongs to one that is over counts at the start of this one. Where time runs back by more, as
    where a camera starts anew, so does the stream, with another part.

    Args:
        source: The stream.
        length: Of its windows, which follow one another, in µs.
        strict: Refuse events that run back.

    Attributes:
        events: How many the present part has given.
        back: By how many µs time ran back at its end; 0 where there is none, or the stream's.
    """

    def __init__(self, source: Source, length: int, *, strict: bool) -> None:
        self.events = self.back = 0
        self._name, self._length, self._strict = source.name, length, strict
        self._chunks = (chunk for chunk in source.chunks if len(chunk))
        self._next: np.ndarray | None = None
        self._said = False

    def parts(self) -> Iterator[Iterator[np.ndarray]]:
        """Give the chunks of each part, for `windows`; take all of them before the next part.

        Raises:
            InputError: Events run back, and ``strict`` is set.
        """
        self._next = next(self._chunks, None)
        while self._next is not None:
            self.events = self.back = 0
            first, self._next = self._next, None
            yield self._part(first)

    def _part(self, first: np.ndarray) -> Iterator[np.ndarray]:
        begin = newest = int(first["t"][0])
        for chunk in itertools.chain([first], self._chunks):
            t = chunk["t"]
            if t[0] < newest or (t[1:] < t[:-1]).any():
                late = np.maximum(np.maximum.accumulate(t), newest) - t
                self._refuse(int(late[late > 0][0]))
                if (far := late > REORDERED_US).any():
                    n = int(far.argmax())
                    self.back, self._next = int(late[n]), chunk[n:]
                    chunk, late = chunk[:n], late[:n]
                if late.any():
                    self._warn(int(late.max()))
                    under_way = newest - (newest - begin) % self._length
                    chunk = chunk.copy()
                    chunk["t"] = np.maximum(chunk["t"], under_way)
                    chunk = chunk[np.argsort(chunk["t"], kind="stable")]
            if len(chunk):
                newest = max(newest, int(chunk["t"][-1]))
                self.events += len(chunk)
                yield chunk
            if self.back:
                return

    def _refuse(self, late: int) -> None:
        if self._strict:
            raise InputError(
                f"{self._name}: time runs backwards by {late} µs; mend what writes the stream, or "
                f"read it without --strict, which puts steps of up to {REORDERED_US // 1000} ms in "
                "order, and starts anew at longer ones"
            )

    def _warn(self, late: int) -> None:
        """Say once that events are put in order: a stream may have no end to say it at."""
        if not self._said:
            warnings.warn(
                f"{self._name}: events come late, the first ones by up to {late} µs; those of up "
                f"to {REORDERED_US // 1000} ms are put in order",
                stacklevel=2,
            )
        self._said = True


def windows(
    chunks: Iterable[np.ndarray], length: int, stride: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Cut a stream into windows that begin ``stride`` apart, from its first event on.

    Args:
        chunks: Events in order of time; they may run back within a window that is not yet over.
        length: Of a window in µs. One that the stream ends in is left out, unless it is the first.
        stride: In µs.

    Yields:
        The window's start and end in µs from the first event, and its events (with times as they
        were). A stream shorter than a window ends with its last event.
    """
    pending: list[np.ndarray] = []
    begin: int | None = None
    start = newest = 0

    def complete(begin: int, until: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Cut the windows that end by ``until``, and forget what lies before the next one."""
        nonlocal start
        if start + length > until:
            return
        if until - start > _MOST_EMPTY * stride + length:
            raise InputError(
                f"time jumps by about {(until - start) / 1e6:g} s, which are more than "
                f"{_MOST_EMPTY:,} windows; mend the times, or give a longer window"
            )
        events = _joined(pending)
        t = events["t"] - begin
        while start + length <= until:
            first, last = np.searchsorted(t, (start, start + length))
            yield start, start + length, events[first:last]
            start += stride
        pending[:] = [events[np.searchsorted(t, start) :].copy()]

    for chunk in chunks:
        if len(chunk):
            begin = int(chunk["t"][0]) if begin is None else begin
            pending.append(chunk)
            newest = max(newest, int(chunk["t"][-1]) - begin)
            # The next chunk may hold more events of the last one's very µs.
            yield from complete(begin, newest)
    if begin is None:
        return
    yield from complete(begin, newest + 1)
    if start == 0:
        yield 0, newest + 1, _joined(pending)


def _joined(pending: list[np.ndarray]) -> np.ndarray:
    """Return the events of chunks, each in order of time, in order of time."""
    events = np.concatenate(pending)
    if any(a["t"][-1] > b["t"][0] for a, b in itertools.pairwise(c for c in pending if len(c))):
        events = events[np.argsort(events["t"], kind="stable")]
    return events
