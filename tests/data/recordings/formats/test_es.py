"""Event Stream files of both versions, of DVS and ATIS events."""

import warnings

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import read_events, read_recording
from sj_ottt.data.recordings.formats import common
from sj_ottt.data.recordings.readers import open_recording
from sj_ottt.data.recordings.source import ReadOptions
from tests.data.recordings.damage import cut_everywhere
from tests.data.recordings.formats.es_files import HEIGHT, WIDTH, es, pause, record, reset
from tests.recording_files import sample_events

KINDS = [("DVS", 1), ("ATIS", 1), ("DVS", 2), ("ATIS", 2)]
SIZE = ReadOptions(strict=True, sensor_size=(HEIGHT, WIDTH))


def some_events(n: int, longest: int = 300, seed: int = 0) -> list:
    events = sample_events(n, (HEIGHT, WIDTH), seed)
    steps = np.random.default_rng(seed).integers(0, longest, n)
    events["t"] = np.cumsum(steps) + 5
    # Coordinates whose bytes look like a pause.
    events["x"][::3], events["y"][::3] = 255, HEIGHT - 1 - 239
    return [tuple(event) for event in events.tolist()]


def save(folder, data):
    path = folder / "a.es"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("kind", "version"), KINDS)
@pytest.mark.parametrize("longest", [3, 1000])
def test_by_blocks_of_any_size(kind, version, longest, tmp_path, monkeypatch):
    events = some_events(150, longest)
    data = es(events, kind, version, range(0, 150, 4) if kind == "ATIS" else ())
    path = save(tmp_path, data + reset(kind, version))
    for block, piece in ((1 << 20, 1 << 18), (7, 1 << 18), (1 << 20, 11), (40, 3)):
        monkeypatch.setattr(common, "BLOCK", block)
        monkeypatch.setattr(common, "_PIECE_BYTES", piece)
        recording = read_recording(path, SIZE)
        assert recording.events.tolist() == events
        assert recording.sensor_size == (HEIGHT, WIDTH)
    assert open_recording(path, SIZE).expected >= len(events)


@pytest.mark.parametrize(("kind", "version"), KINDS)
def test_resets_between_events_do_nothing(kind, version, tmp_path):
    first, second = [(9, 1, 2, 1)], [(9, 3, 4, 0)]
    data = es(first, kind, version) + reset(kind, version)
    data += pause(kind, version, 1000) + record(kind, version, 2, 3, HEIGHT - 1 - 4, 0)
    longest = {("DVS", 1): 15, ("ATIS", 1): 31, ("DVS", 2): 127, ("ATIS", 2): 63}[kind, version]
    second = [(9 + 1000 // longest * longest + 2, 3, 4, 0)]
    assert read_events(save(tmp_path, data), SIZE).tolist() == first + second


@pytest.mark.parametrize(("kind", "version"), KINDS)
def test_cut_off_anywhere(kind, version, tmp_path):
    events = some_events(8)
    data = es(events, kind, version)
    header = 15 if version == 1 else 20
    found = cut_everywhere(data, ".es", tmp_path)
    assert all(found[length] is None for length in range(header))
    counts = [found[length] for length in range(header, len(data))]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 7
    path = save(tmp_path, data[:-1])
    with pytest.raises(InputError, match=r"is cut off: [24] bytes are left behind the last whole"):
        read_events(path, SIZE)
    with pytest.warns(UserWarning, match="is cut off"):
        assert read_events(path, ReadOptions(sensor_size=(HEIGHT, WIDTH))).tolist() == events[:7]


def test_the_sensor_of_version_1(tmp_path):
    events = some_events(20)
    path = save(tmp_path, es(events, "ATIS", 1))
    with pytest.warns(UserWarning, match=r"taken for an ATIS's 240 x 304; give the sensor's size"):
        recording = read_recording(path)
    assert recording.sensor_size == (240, 304) and recording.events.tolist() == events
    with pytest.raises(InputError, match="states no size"):
        read_events(path, ReadOptions(strict=True))
    path = save(tmp_path, es(events, "DVS", 1))
    with pytest.warns(UserWarning, match="states no size, so rows stay counted from the bottom"):
        recording = read_recording(path)
    upright = [(t, x, HEIGHT - 1 - y, p) for t, x, y, p in events]
    assert recording.sensor_size is None and recording.events.tolist() == upright
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_events(path, ReadOptions(sensor_size=(240, 304))).tolist() == events


def test_what_is_refused(tmp_path):
    head = es([], "DVS", 2)
    for data, words in (
        (b"Event Stream", "of version none, of which only 1 and 2"),
        (b"Event Stream" + bytes([0, 1, 0]), "of version 0.1, of which only 1 and 2"),
        (b"Event Stream" + bytes([3, 0, 0]) + head[15:], "of version 3.0, of which only"),
        (head[:17], "without its whole header"),
        (head[:15] + bytes([0]) + head[16:], "of generic events, of which only DVS and ATIS"),
        (head[:15] + bytes([4]) + head[16:], "of color events, of which only DVS and ATIS"),
        (head[:15] + bytes([9]) + head[16:], "of number 9 events, of which only DVS and ATIS"),
        (b"Event Stream" + bytes([1, 0, 3]), "of color events"),
        (head[:16] + bytes(4), "states a sensor of height 0 and width 0"),
        (head + record("DVS", 2, 0, WIDTH, 5, 1), "x=304, y=5 from the bottom lies outside"),
        (head + record("DVS", 2, 0, 5, 65535, 1), "lies outside the sensor of height 240"),
    ):
        with pytest.raises(InputError, match=words):
            read_events(save(tmp_path, data))
