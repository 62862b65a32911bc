"""Text that may still grow, and how events that come piece by piece are cut into windows."""

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.formats import text
from sj_ottt.data.recordings.readers import READERS, SNIFFED_BYTES
from sj_ottt.data.recordings.source import Source
from sj_ottt.errors import InputError

__all__ = ["WHOLE", "follow", "windows"]

_PIECE = 1 << 20
_WAIT_S = 0.05
_MOST_EMPTY = 10_000_000
WHOLE = 1 << 62
"""A window that no recording fills: all of it is one sample."""


def follow(path: str | Path, idle: float | None = None) -> Source:
    """Read text that may still grow, or standard input; see `formats.text` for its lines.

    Args:
        path: The file; ``"-"`` for standard input.
        idle: End when a file has not grown for so many seconds; None waits for ever. Standard
            input ends when its writer closes it.

    Raises:
        InputError: The file cannot be read or is of a binary format, or ``idle`` is below 0.
    """
    if idle is not None and not idle >= 0:
        raise InputError(f"idle={idle}: give a number of seconds from 0 on")
    if str(path) == "-":
        stdin = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
        return Source("standard input", _pieces(stdin, "standard input", 0))
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115, closed at its end
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


def _pieces(file: io.RawIOBase, name: str, idle: float | None) -> Iterator[np.ndarray]:
    stream = text.TextStream(name)
    with file:
        grown = time.monotonic()
        while True:
            if piece := file.read(_PIECE):
                grown = time.monotonic()
                yield stream.feed(piece)
            elif idle is not None and time.monotonic() - grown >= idle:
                yield stream.feed(b"", last=True)
                return
            else:
                time.sleep(_WAIT_S)


def windows(
    chunks: Iterable[np.ndarray], length: int, stride: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Cut a stream into windows that begin ``stride`` apart, from its first event on.

    Args:
        chunks: Events in order of time.
        length: Of a window in µs. One that the stream ends in is left out, unless it is the first.
        stride: In µs.

    Yields:
        The window's start and end in µs from the first event, and its events (with times as they
        were). A stream shorter than a window ends with its last event.
    """
    pending: list[np.ndarray] = []
    begin: int | None = None
    start = 0

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
        events = np.concatenate(pending)
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
            # The next chunk may hold more events of the last one's very µs.
            yield from complete(begin, int(chunk["t"][-1]) - begin)
    if begin is None:
        return
    if len(pending[-1]):
        yield from complete(begin, int(pending[-1]["t"][-1]) - begin + 1)
    if start == 0:
        events = np.concatenate(pending)
        yield 0, int(events["t"][-1]) - begin + 1, events
