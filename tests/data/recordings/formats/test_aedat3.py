"""AEDAT 3.1: against SpikingJelly's reader; packets, sources, and files that are cut off."""

import struct

import numpy as np
import pytest
from spikingjelly.datasets.utils import load_aedat_v3

from sj_ottt import InputError
from sj_ottt.data.recordings.readers import read_events
from tests import recording_files as files
from tests.data.recordings.formats.aedat_files import blocks, read

FIRST, END = b"#!AER-DAT3.1\r\n", b"#!END-HEADER\r\n"


def test_spikingjelly_reads_the_same(tmp_path, monkeypatch):
    events = files.sample_events(200, (128, 128))
    events["t"][120:] += 5 << 31
    path = tmp_path / "a.aedat"
    path.write_bytes(files.aedat3(events.tolist()))
    recording, said = read(path, strict=True)
    theirs = load_aedat_v3(path)
    for name in "txyp":
        assert np.array_equal(recording.events[name], theirs[name])
    assert np.array_equal(recording.events, events) and not said
    assert recording.sensor_size == (128, 128)
    parts = blocks(path, monkeypatch)
    assert len(parts) > 10 and np.array_equal(np.concatenate(parts), events)


def test_other_packets_and_events_that_are_not_valid_are_left_out(tmp_path):
    path = tmp_path / "a"
    events = [(5, 1, 2, 1), (6, 3, 4, 0), (7, 20_000, 30_000, 1)]
    frames = struct.pack("<2h6i", 2, 1, 40, 4, 0, 2, 1, 1) + bytes(80)
    special = files.aedat3_packet(events, kind=0)
    empty = struct.pack("<2h6i", 3, 1, 0, 0, 0, 0, 0, 0)
    polarity = files.aedat3_packet(events, invalid=[1])
    path.write_bytes(files.aedat3([]) + special + frames + empty + polarity + frames)
    assert read_events(path).tolist() == [events[0], events[2]]
    # A packet may keep room behind its events.
    roomy = struct.pack("<2h6i", 1, 1, 8, 4, 0, 5, 3, 3) + polarity[28:] + bytes(16)
    path.write_bytes(files.aedat3([]) + roomy + files.aedat3_packet([(9, 1, 1, 0)]))
    assert read_events(path).tolist() == [events[0], events[2], (9, 1, 1, 0)]


@pytest.mark.parametrize(
    ("name", "size"),
    [("DVS128", (128, 128)), ("DAVIS240C", (180, 240)), ("DAVIS346B", (260, 346)), ("new", None)],
)
def test_the_size_is_the_sources(name, size, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(files.aedat3([(1, 2, 3, 1)], f"#Source 0: {name}\r\n".encode()))
    recording, _ = read(path)
    assert recording.sensor_size == size and recording.events.tolist() == [(1, 2, 3, 1)]
    path.write_bytes(files.aedat3([(1, 2, 3, 1)], b""))
    assert read(path)[0].sensor_size is None


def test_the_camera_of_several(tmp_path):
    path = tmp_path / "a"
    left, right = [(1, 2, 3, 1)], [(4, 5, 6, 0)]
    body = files.aedat3_packet(left, 3) + files.aedat3_packet(right, 7)
    lines = b"#Source 7: DAVIS240C\r\n#Source 3: DVS128\r\n"
    path.write_bytes(files.aedat3([], lines) + body)
    with pytest.raises(InputError, match=r"2 cameras: 0 \(DVS128\), 1 \(DAVIS240C\); choose"):
        read(path)
    for camera, events, size in (
        ("DVS128", left, (128, 128)),
        ("0", left, (128, 128)),
        ("DAVIS240C", right, (180, 240)),
    ):
        recording, _ = read(path, camera=camera)
        assert recording.events.tolist() == events and recording.sensor_size == size
    path.write_bytes(files.aedat3([]) + body)
    with pytest.raises(InputError, match="sources 3 and 7, but its header names one camera"):
        read(path)


def test_what_is_refused(tmp_path):
    path = tmp_path / "a"
    for data, words in (
        (files.aedat3([], b"#Format: PNGFrames\r\n"), "format PNGFrames, of which only RAW"),
        (files.aedat3([]) + struct.pack("<2h6i", 1, 1, 8, 4, 0, 1, 2, 2), "no packet of events at"),
        (files.aedat3([]) + struct.pack("<2h6i", 1, 1, 9, 4, 0, 2, 2, 2), "no packet of events at"),
        (files.aedat3([]) + struct.pack("<2h6i", 0, 1, -8, 4, 0, 2, 2, 2), "no packet of events"),
        (FIRST + b"#Source", "within its header"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=words):
            read(path)


def test_cut_off_at_every_byte(tmp_path):
    events = files.sample_events(12, (128, 128)).tolist()
    whole = files.aedat3(events)
    begin = len(files.aedat3([]))
    path = tmp_path / "a.aedat"
    counts = []
    for length in range(begin, len(whole)):
        path.write_bytes(whole[:length])
        recording, said = read(path)
        counts.append(len(recording.events))
        assert recording.events.tolist() == events[: counts[-1]]
        between = length in (begin, begin + 28 + 6 * 8)
        assert bool(said) != between and all("is cut off" in text for text in said)
        if said:
            with pytest.raises(InputError, match=r"is cut off: .* without --strict"):
                read(path, strict=True)
    assert counts == sorted(counts) and set(counts) == set(range(12))
