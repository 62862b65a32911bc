"""Where the windows of a recording begin, and how a stream is cut into windows."""

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import EVENT_DTYPE
from sj_ottt.data.recordings import streams
from sj_ottt.data.recordings.label_table import Stretch
from sj_ottt.data.recordings.source import REORDERED_US
from sj_ottt.data.recordings.windows import stretch_windows, window_starts
from tests.inference.recordings import WINDOW, band


def test_window_starts():
    assert list(window_starts(0, 500, 200, 100)) == [0, 100, 200, 300]
    assert list(window_starts(7, 206, 200, 100)) == []
    assert list(window_starts(7, 207, 200, 100)) == [7]


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize(("length", "stride"), [(30, 30), (30, 10), (20, 50)])
def test_windows_of_any_pieces(piece, length, stride):
    rng = np.random.default_rng(1)
    events = np.zeros(400, EVENT_DTYPE)
    events["t"] = 1000 + np.sort(rng.integers(0, 200, 400))
    events["t"][0], events["x"] = 1000, np.arange(400)
    chunks = [events[i : i + piece] for i in range(0, 400, piece)]
    found = list(streams.windows(chunks, length, stride))
    t = events["t"] - 1000
    starts = range(0, int(t[-1]) + 2 - length, stride)
    assert [(start, end) for start, end, _ in found] == [(s, s + length) for s in starts]
    for start, _, part in found:
        assert np.array_equal(part, events[(t >= start) & (t < start + length)])


@pytest.mark.parametrize("piece", [1, 7, 400])
def test_events_that_come_late_are_put_in_order_and_none_is_lost(piece):
    rng = np.random.default_rng(2)
    events = np.zeros(400, EVENT_DTYPE)
    events["t"] = np.sort(rng.integers(0, 20 * REORDERED_US, 400))
    come = np.argsort(events["t"] + rng.integers(0, REORDERED_US, 400), kind="stable")
    late = events[come]
    chunks = [late[i : i + piece] for i in range(0, 400, piece)]
    length = 3 * REORDERED_US
    live = streams.Live(streams.Source("camera", chunks), length, strict=False)
    with pytest.warns(UserWarning, match=r"camera: events come late.* put in order") as said:
        (found,) = (list(streams.windows(part, length, length)) for part in live.parts())
    assert len(said) == 1 and live.back == 0
    in_windows = sum(len(part) for *_, part in found)
    assert 0 <= 400 - in_windows < 100  # the rest of the last window
    assert all((np.diff(part["t"]) >= 0).all() for *_, part in found)
    if piece == 400:  # known at once, each is where it belongs
        t = events["t"] - late["t"][0]
        for start, end, part in found[1:]:
            assert np.array_equal(part["t"], events["t"][(t >= start) & (t < end)])
    with pytest.raises(InputError, match=r"time runs backwards by \d+ µs.* without --strict"):
        for part in streams.Live(streams.Source("camera", chunks), length, strict=True).parts():
            list(part)


@pytest.mark.parametrize("piece", [1, 7, 400])
def test_a_stream_starts_anew_where_its_clock_does(piece):
    events = np.zeros(400, EVENT_DTYPE)
    events["t"] = np.concatenate([5000 + np.arange(150), np.arange(100), np.arange(150)]) * 1000
    chunks = [events[i : i + piece] for i in range(0, 400, piece)]
    live = streams.Live(streams.Source("camera", chunks), 40_000, strict=False)
    found, ends = [], []
    for part in live.parts():
        windows = streams.windows(part, 40_000, 40_000)
        found.append([(start, len(inside)) for start, _, inside in windows])
        ends.append((live.events, live.back))
    assert found == [[(40_000 * i, 40) for i in range(n)] for n in (3, 2, 3)]
    assert ends == [(150, 5_149_000), (100, 99_000), (150, 0)]


def test_windows_of_short_and_empty_streams():
    events = band(0)
    ((*place, whole),) = streams.windows([events[:5], events[5:]], 10**9, 10**9)
    assert place == [0, WINDOW] and np.array_equal(whole, events)
    assert list(streams.windows([events[:0]], 5, 5)) == []


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize(("length", "stride"), [(30, 30), (30, 10), (20, 50), (300, 1)])
@pytest.mark.parametrize("last_end", [None, 200, 230])
def test_windows_of_stretches_of_any_pieces(piece, length, stride, last_end):
    rng = np.random.default_rng(1)
    events = np.zeros(400, EVENT_DTYPE)
    events["t"] = 1000 + np.sort(rng.integers(0, 200, 400))
    events["t"][[0, -1]], events["x"] = (1000, 1199), np.arange(400)
    bounds = [(0, 45), (45, 46), (60, 120), (130, last_end)]
    stretches = [Stretch(start, end, "a", "") for start, end in bounds]
    chunks = [events[i : i + piece] for i in range(0, 400, piece)]
    taken = []
    passing = (taken.append(len(chunk)) or chunk for chunk in chunks)
    found = list(stretch_windows(passing, stretches, length, stride))
    assert sum(taken) == 400  # whoever counts on the way sees all
    t = events["t"] - 1000
    places = [
        (number, start)
        for number, (begin, end) in enumerate(bounds)
        for start in range(begin, (200 if end is None else end) - length + 1, stride)
        if start < 200
    ]
    assert [(number, start) for number, start, _ in found] == places
    for _, start, part in found:
        assert np.array_equal(part, events[(t >= start) & (t < start + length)])
    assert list(stretch_windows([], stretches, length, stride)) == []
