"""Windows of long recordings: where they begin, and the list of those in a sliced data set."""

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.events import EVENT_DTYPE
from sj_ottt.data.recordings.folders import SLICES
from sj_ottt.data.recordings.label_table import Stretch
from sj_ottt.errors import InputError


@dataclass(frozen=True)
class Window:
    """One sample: a recording's events from ``start`` up to, not including, ``start + length``.

    Attributes:
        recording: The path of the recording.
        session: The session that it belongs to.
        label: The class.
        start: In µs from the recording's first event.
        length: In µs.
        events: How many events there are.
    """

    recording: str
    session: str
    label: str
    start: int
    length: int
    events: int


def window_starts(start: int, end: int, window: int, stride: int) -> range:
    """Return where windows begin that lie wholly within [``start``, ``end``), ``stride`` apart."""
    return range(start, end - window + 1, stride)


def stretch_windows(
    chunks: Iterable[np.ndarray], stretches: Sequence[Stretch], length: int, stride: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Cut the labelled parts of a stream into windows, as it passes.

    Args:
        chunks: Events in order of time, in pieces of any size; all are taken.
        stretches: In order of time, and apart.
        length: Of a window in µs.
        stride: From one window's start to the next one's, in µs.

    Yields:
        The number of the stretch, the window's start in µs from the stream's first event, and its
        events (with times as they were). A window may reach beyond the stream's last event where
        its stretch says so, but does not begin there.
    """
    places = (
        (number, start)
        for number, s in enumerate(stretches)
        for start in (
            itertools.count(s.start, stride)
            if s.end is None
            else window_starts(s.start, s.end, length, stride)
        )
    )
    place = next(places, None)
    pending: list[np.ndarray] = []
    begin: int | None = None
    now = -1
    for chunk in chunks:
        if not len(chunk):
            continue
        begin = int(chunk["t"][0]) if begin is None else begin
        now = int(chunk["t"][-1]) - begin
        pending.append(chunk)
        if place is None or place[1] > now:
            pending.clear()
        # The next chunk may hold more events of the last one's very µs.
        elif place[1] + length <= now:
            events = np.concatenate(pending)
            t = events["t"] - begin
            while place is not None and place[1] + length <= now:
                first, last = np.searchsorted(t, (place[1], place[1] + length))
                yield *place, events[first:last]
                place = next(places, None)
            first = len(events) if place is None else int(np.searchsorted(t, place[1]))
            pending[:] = [events[first:].copy()]
    events = np.concatenate([np.empty(0, EVENT_DTYPE), *pending])
    t = events["t"] - (begin or 0)
    while place is not None and place[1] <= now:
        number, start = place
        if stretches[number].end is None and start + length > now + 1:
            return
        first, last = np.searchsorted(t, (start, start + length))
        yield number, start, events[first:last]
        place = next(places, None)


def read_slices(root: Path) -> dict[str, Window] | None:
    """Return the window that each file of a sliced data set is; None for any other data set.

    Raises:
        InputError: The list of windows is damaged.
    """
    path = root / SLICES
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["file"]: _window(row) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is damaged ({type(error).__name__}: {error}); slice the recordings again"
        ) from error


def _window(row: dict[str, str]) -> Window:
    start = int(row["start"])
    origin = row["recording"], row["session"], row["label"]
    return Window(*origin, start, int(row["end"]) - start, int(row["events"]))
