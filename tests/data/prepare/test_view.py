"""What a page shows: its counts against a plain loop, its bounds, and parts of recordings."""

import zlib
from collections import Counter

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import EVENT_DTYPE, ReadOptions, write_events
from sj_ottt.data.prepare import view
from sj_ottt.data.prepare.view import Cells, view_recording
from sj_ottt.data.recordings import source
from tests.recording_files import sample_events

MS = 1000


def moving(n=3000, size=(40, 60), step=200, seed=0):
    """Events of a spot that moves, so that pixels fire more than once."""
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT_DTYPE)
    events["t"] = 777 + np.cumsum(rng.integers(0, step, n))
    for name, side in (("y", size[0]), ("x", size[1])):
        middle = np.linspace(side * 0.2, side * 0.8, n)
        events[name] = np.clip(middle + rng.normal(0, 2, n), 0, side - 1).astype(int)
    events["p"] = rng.integers(0, 2, n)
    return events


def varints(data):
    value = shift = 0
    for byte in zlib.decompress(data):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0


def unpacked(packed, width):
    """Counts by (frame, row, column, polarity), with a decoder of its own."""

    gaps, counts, found = varints(packed.gaps), varints(packed.counts), {}
    lengths = list(varints(packed.lengths))
    for frame, length in enumerate(lengths):
        cell = -1
        for _ in range(length):
            cell += next(gaps) + 1
            row, column = divmod(cell // 2, width)
            found[frame, row, column, cell % 2] = next(counts) + 1
    assert next(gaps, None) is None and next(counts, None) is None
    return found, len(lengths)


def by_loop(events, begin, step_us, factor):
    found = Counter()
    for t, x, y, p in events.tolist():
        found[(t - begin) // step_us, y // factor, x // factor, p] += 1
    return dict(found)


@pytest.mark.parametrize("piece", [7, 500, 5000])
@pytest.mark.parametrize(
    ("most", "kind"),
    [
        (10_000, (125, 1, 1)),
        (2_500, (2 * MS, 2, 1)),
        (1_500, (2 * MS, 4, 1)),
        (600, (8 * MS, 4, 1)),
        (300, (8 * MS, 4, 2)),
        (50, (8 * MS, 4, 16)),
    ],
)
def test_counts_are_those_of_a_plain_loop(most, kind, piece, monkeypatch):
    monkeypatch.setattr(view, "_SMALLEST_SIDE", 8)
    monkeypatch.setattr(view, "_SMOOTH_US", 2 * MS)
    monkeypatch.setattr(view, "_LONG_US", 8 * MS)
    events = moving()
    begin = int(events["t"][0])
    cells = Cells(most, 60)
    for i in range(0, len(events), piece):
        cells.add(events[i : i + piece], begin)
    found, frames = unpacked(cells.packed(60), -(-60 // cells.factor))
    whole = by_loop(events, begin, cells.step_us, cells.factor)
    assert found.items() <= whole.items() and len(found) <= most
    assert frames == cells.frames == max(whole)[0] + 1
    totals = Counter()
    for (frame, _, _, p), n in whole.items():
        totals[2 * frame + p] += n
    assert list(varints(cells.packed(60).totals)) == [totals[i] for i in range(2 * frames)]
    assert (cells.step_us, cells.factor, cells.share) == kind
    if cells.share == 1:
        assert found == whole
    else:
        assert len(found) * cells.share == pytest.approx(len(whole), rel=0.3)


def test_counts_are_drawn_alike_everywhere():
    keys = np.random.default_rng(0).integers(0, 1 << 40, 100_000)
    keys[:30_000] = np.arange(30_000)
    for share in (1, 2, 8, 64):
        drawn = view._drawn(keys, share)
        for part in (drawn[:30_000], drawn[30_000:], drawn[:30_000:2]):
            assert part.mean() * share == pytest.approx(1, abs=0.2)
        assert not (view._drawn(keys, 2 * share) & ~drawn).any()


def test_silence_makes_frames_longer_and_costs_nothing():
    events = np.zeros(3, EVENT_DTYPE)
    events["t"] = 5, 1_000_005, 3_600_000_005
    cells = Cells()
    cells.add(events, 5)
    assert (cells.step_us, cells.factor, cells.frames) == (32 * MS, 1, 112_501)
    found, _ = unpacked(cells.packed(1), 1)
    assert found == {(0, 0, 0, 0): 1, (31, 0, 0, 0): 1, (112_500, 0, 0, 0): 1}
    assert len(cells.packed(1).lengths) < 1000
    cells.cover(4 * 3_600_000_000)  # four hours
    assert cells.frames == 112_500 and unpacked(cells.packed(1), 1)[1] == 112_500
    events["t"][2] = 1 << 60
    cells = Cells()
    cells.add(events[:2], 0)
    cells.add(events[2:], 0)
    assert cells.frames <= 1 << 17


def test_numbers_of_every_length_are_packed():
    values = np.array([0, 1, 127, 128, 16_383, 16_384, (1 << 21) - 1, 1 << 21, (1 << 35) - 1])
    stream = view._Stream()
    stream.add(values)
    gaps, lengths = zlib.compress(bytes(len(values))), zlib.compress(bytes([len(values)]))
    read, _ = unpacked(view.Packed(lengths, gaps, stream.close(), b""), 100)
    assert [count - 1 for count in read.values()] == values.tolist()


@pytest.fixture
def recording(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "BLOCK", 100)
    events = moving()
    events[100::7]["x"], events[100::7]["y"] = 50, 3  # a hot pixel
    events["x"][100::7], events["y"][100::7], events["p"][100::7] = 50, 3, 1
    write_events(tmp_path / "one.npz", events)
    return tmp_path / "one.npz", events


def test_the_facts_of_a_recording(recording):
    path, events = recording
    with pytest.warns(UserWarning, match="128 x 128 pixels"):
        seen = view_recording(path)
    duration = int(events["t"][-1] - events["t"][0])
    assert (seen.name, seen.sensor_size, seen.whole) == (str(path), (128, 128), True)
    assert (seen.events, seen.on_events) == (len(events), int(events["p"].sum()))
    assert (seen.start, seen.end) == (0, duration + 1)
    assert (seen.frames - 1) * seen.step_us <= duration < seen.frames * seen.step_us
    assert seen.hot.tolist() == [[3, 50]]
    assert view_recording(path, ReadOptions(sensor_size=(40, 60))).sensor_size == (40, 60)
    with pytest.raises(InputError, match="outside the sensor"):
        view_recording(path, ReadOptions(sensor_size=(40, 50)))
    with pytest.raises(InputError, match="--strict takes none that is assumed"):
        view_recording(path, ReadOptions(strict=True))


@pytest.mark.parametrize("start", [0, 1, 50 * MS])
@pytest.mark.parametrize("length", [None, 1, 99 * MS, 10**9])
def test_a_part_of_a_recording(start, length, recording):
    path, events = recording
    options = ReadOptions(sensor_size=(40, 60))
    t = events["t"] - events["t"][0]
    end = int(t[-1]) + 1 if length is None else min(start + length, int(t[-1]) + 1)
    part = events[(t >= start) & (t < end)]
    if not len(part):
        with pytest.raises(InputError, match=f"no event lies from {start} µs"):
            view_recording(path, options, start=start, length=length)
        return
    seen = view_recording(path, options, start=start, length=length)
    assert (seen.events, seen.start, seen.end) == (len(part), start, end)
    assert seen.whole == (start == 0 and end == t[-1] + 1)
    found, _ = unpacked(seen.packed, 60)
    assert found == by_loop(part, int(events["t"][0]) + start, seen.step_us, 1)


def test_wrong_parts_and_times(recording, monkeypatch):
    path, _ = recording
    for start, length in ((-1, None), (0, 0), (5, -2)):
        with pytest.raises(InputError, match="give a start from 0 on"):
            view_recording(path, start=start, length=length)
    with pytest.raises(InputError, match=r"no event lies .* and the recording lasts \d+ µs"):
        view_recording(path, start=10**9)
    monkeypatch.setattr(view, "_LONGEST_US", 100 * MS)
    with pytest.raises(InputError, match="mend its times"):
        view_recording(path)


def test_memory_does_not_grow_with_the_recording():
    """Ten times the events: no more counts."""
    sizes = []
    for n in (20_000, 200_000):
        cells = Cells(most=5000)
        events = sample_events(n, (200, 300))
        for i in range(0, n, 1000):
            cells.add(events[i : i + 1000], 0)
        sizes.append(sum(keys.nbytes + counts.nbytes for keys, counts in cells._pieces))
    assert max(sizes) <= 5000 * 12
