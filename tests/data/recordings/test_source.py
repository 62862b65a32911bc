"""Blocks of events: gathered in one array, put in order across their borders."""

import itertools
import tracemalloc
import warnings

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import EVENT_DTYPE, ReadOptions, open_recording, read_recording
from sj_ottt.data.recordings import source
from sj_ottt.data.recordings.events import standard_sensor
from sj_ottt.data.recordings.formats.common import Unwrap, record_blocks
from sj_ottt.data.recordings.source import REORDERED_US, gather, in_order
from tests import recording_files as files


def at(times) -> np.ndarray:
    """Events at these times, numbered by x in the order given."""
    events = np.zeros(len(times), EVENT_DTYPE)
    events["t"], events["x"] = times, np.arange(len(times)) % 30_000
    return events


def cut(events, rng, longest=40):
    ends = np.cumsum(rng.integers(0, longest, 2 * len(events)))
    return np.split(events, ends[ends < len(events)])


@pytest.mark.parametrize("seed", range(6))
def test_small_steps_back_are_put_in_order(seed):
    """Times jittered by less than the bound come out as one stable sort gives them."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 400_000, 1500)) - rng.integers(0, REORDERED_US, 1500)
    events = at(times)
    back = np.maximum.accumulate(times) - times
    with pytest.warns(UserWarning, match=f"a: {(back > 0).sum()} events ran back by up to") as said:
        found = gather(in_order(cut(events, rng), "a", strict=False))
    assert f"{back.max()} µs" in str(said[0].message) and len(said) == 1
    assert np.array_equal(found, events[np.argsort(times, kind="stable")])
    with pytest.raises(InputError, match=r"a: time runs backwards by .* --strict"):
        gather(in_order(cut(events, rng), "a", strict=True))


def test_order_leaves_alone_what_is_in_order_or_far_back():
    rng = np.random.default_rng(0)
    rising = at(np.sort(rng.integers(0, 100_000, 1000)))
    far = at([0, 5, 3, 50_000, 50_000 - REORDERED_US - 1, 60_000, 59_999])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(gather(in_order(cut(rising, rng), "a", strict=True)), rising)
        assert np.array_equal(gather(in_order([far], "a", strict=False)), far)
        assert len(gather(in_order([], "a", strict=True))) == 0
    # What is ahead of the step far back is in order; behind it, nothing is touched.
    with pytest.warns(UserWarning, match="1 events ran back by up to 2 µs"):
        found = gather(in_order([far[:3], far[3:]], "a", strict=False))
    assert found["t"].tolist() == [0, 3, 5, *far["t"][3:].tolist()]


def test_order_holds_back_a_bounded_number(monkeypatch):
    """Events of one time for ever, as a file without times would give."""
    monkeypatch.setattr(source, "BLOCK", 1000)
    taken = itertools.count()
    blocks = (at(np.full(500, 7 + 0 * next(taken))) for _ in range(100))
    ahead = 0
    for n, chunk in enumerate(in_order(blocks, "a", strict=False)):
        ahead = max(ahead, next(taken) - n)
        assert len(chunk) <= 1500
        if n == 50:
            break
    assert ahead < 60


def test_gather_grows_in_place():
    block = at(np.arange(1 << 16))
    n = 60
    tracemalloc.start()
    events = gather(block for _ in range(n))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(events) == n * len(block) and events["t"][-1] == len(block) - 1
    assert peak < 18 * len(events)


@pytest.mark.parametrize("bits", [8, 24, 32])
def test_unwrap_block_by_block_is_numpys(bits):
    rng = np.random.default_rng(bits)
    clock = rng.integers(0, 1 << bits, 1000).astype(np.uint32)
    expected = np.unwrap(clock.astype(np.int64), period=1 << bits)
    assert np.array_equal(Unwrap(bits)(clock), expected)
    blocks = Unwrap(bits)
    assert np.array_equal(np.concatenate([blocks(b) for b in cut(clock, rng)]), expected)


def test_records_that_are_cut_off(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"head" + bytes(range(23)))
    args = (path, 4, np.dtype(">u4"), "word")
    with pytest.warns(UserWarning, match="a: is cut off: 3 bytes are left behind the last whole w"):
        blocks = list(record_blocks(*args, ReadOptions()))
    assert blocks[0].tolist() == [int.from_bytes(range(i, i + 4)) for i in range(0, 20, 4)]
    with pytest.raises(InputError, match=r"a: is cut off: 3 bytes .* without --strict"):
        list(record_blocks(*args, ReadOptions(strict=True)))


@pytest.mark.parametrize(
    ("extent", "size"),
    [
        ((1, 1), (34, 34)),
        ((34, 34), (34, 34)),
        ((34, 35), (128, 128)),
        ((173, 151), (180, 240)),
        ((181, 10), (260, 346)),
        ((10, 347), (480, 640)),
        ((720, 1280), (720, 1280)),
        ((721, 2000), (721, 2000)),
    ],
)
def test_standard_sensors(extent, size):
    assert standard_sensor(*extent) == size


def test_the_users_word_on_the_sensor_wins(tmp_path):
    path = tmp_path / "a.dat"
    path.write_bytes(files.dat([(1, 2, 3, 1)]))
    assert read_recording(path).sensor_size == (240, 304)
    assert open_recording(path, ReadOptions(sensor_size=(480, 640))).sensor_size == (480, 640)
    for size in ((0, 3), (1, 2, 3), (40_000, 1)):
        with pytest.raises(InputError, match="sensor_size="):
            ReadOptions(sensor_size=size)
    with pytest.raises(InputError, match="time_unit='h': choose one of us, ns, ms, s"):
        ReadOptions(time_unit="h")
