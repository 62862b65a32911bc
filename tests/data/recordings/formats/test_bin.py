"""N-MNIST's and N-Caltech101's ``.bin``."""

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import check_events, read_events, read_recording
from sj_ottt.data.recordings.events import extent, standard_sensor
from sj_ottt.data.recordings.formats import common
from sj_ottt.data.recordings.source import ReadOptions
from tests import recording_files as files
from tests.data.recordings.damage import cut_everywhere

OVERFLOW = bytes([0, 240, 0, 0, 0])


def save(folder, data):
    path = folder / "a.bin"
    path.write_bytes(data)
    return path


def test_a_real_recording_of_ncaltech101(camera_files):
    path = camera_files / "real" / "ncaltech101_faces_easy_0001.bin"
    events, stated = read_recording(path, ReadOptions(strict=True))
    assert len(events) == 67_445 and stated is None
    assert (events["t"][0], events["t"][-1]) == (6, 299_364)
    assert (events["x"].min(), events["x"].max()) == (0, 150)
    assert (events["y"].min(), events["y"].max()) == (0, 172)
    assert standard_sensor(*extent(events)) == (180, 240)
    check_events(events, path, (180, 240))


def test_nmnist_is_told_by_where_its_events_are(tmp_path):
    for events, size in (
        ([(1, 33, 33, 1), (2, 0, 0, 0)], (34, 34)),
        ([(1, 33, 33, 1), (2, 34, 0, 0)], None),
        ([(1, 33, 33, 1)] * 200_000 + [(2, 0, 34, 0)], None),  # the last of several blocks
        ([], None),
    ):
        recording = read_recording(save(tmp_path, files.nmnist(events)))
        assert recording.sensor_size == size and recording.events.tolist() == events
    path = save(tmp_path, files.nmnist([(1, 2, 3, 1)]) + OVERFLOW)
    assert read_recording(path).sensor_size == (34, 34)


def test_overflows_across_blocks(tmp_path, monkeypatch):
    data, events = b"", []
    for turn in range(5):
        part = [(turn * 100 + i, i, turn, i % 2) for i in range(turn + 1)]
        data += files.nmnist(part) + OVERFLOW * 2
        events += [(t + turn * 2 * 8192, x, y, p) for t, x, y, p in part]
    path = save(tmp_path, data)
    for block, piece in ((1 << 20, 1 << 18), (7, 1 << 18), (1 << 20, 15), (1, 5)):
        monkeypatch.setattr(common, "BLOCK", block)
        monkeypatch.setattr(common, "_PIECE_BYTES", piece)
        assert read_events(path).tolist() == events


def test_cut_off_anywhere(tmp_path):
    events = [tuple(event) for event in files.sample_events(9, (34, 34)).tolist()]
    data = files.nmnist(events)
    found = cut_everywhere(data, ".bin", tmp_path)
    assert found == {length: length // 5 for length in range(len(data))}
    for length in range(11, 15):
        path = save(tmp_path, data[:length])
        with pytest.warns(UserWarning, match=f"a.bin: is cut off: {length - 10} bytes are left"):
            assert len(read_events(path)) == 2
        with pytest.raises(InputError, match="is cut off"):
            read_events(path, ReadOptions(strict=True))


def test_the_last_bits_of_the_clock(tmp_path):
    events = [(0x7F_FFFE, 255, 239, 1), (0x7F_FFFF, 255, 239, 0)]
    assert np.array_equal(read_events(save(tmp_path, files.nmnist(events))).tolist(), events)
