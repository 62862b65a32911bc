"""MATLAB's files: structures, vectors and tables against SciPy's writer; counting from 1; cuts."""

import tracemalloc
import warnings

import h5py
import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import ReadOptions, open_recording, read_events
from sj_ottt.data.recordings.formats.arrays import npy
from tests.data.recordings.formats.mat_files import big_endian, columns, mat
from tests.data.recordings.formats.npz_files import rows
from tests.recording_files import sample_events

EVENTS = sample_events(150)
PLAIN = columns(EVENTS, "t x y p")
NESTED = {
    "data": {"polarity": columns(EVENTS, "timeStamp x y polarity", kind=int), "info": "DAVIS"}
}

FILES = {
    "structure": mat(TD=columns(EVENTS)),
    "integers": mat(TD=columns(EVENTS, kind=np.int32), note="text", size=[3, 4]),
    "nested": mat(aedat=NESTED),
    "nested plain": mat(False, other=np.eye(3), aedat=NESTED),
    "variables": mat(**columns(EVENTS, "time x y pol")),
    "table": mat(events=rows(EVENTS, "xytp", "f8"), other=np.zeros((9, 4))),
    "plain": mat(False, **PLAIN),
    "big endian": big_endian(mat(False, **PLAIN)),
    "seconds": mat(**PLAIN | {"t": EVENTS["t"] / 1e6}),
}


def save(folder, data, name="a.mat"):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path, monkeypatch):
    path = save(tmp_path, FILES[name])
    for block in (1 << 20, 64, 7):
        monkeypatch.setattr(npy, "BLOCK", block)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(read_events(path, ReadOptions(strict=True)), EVENTS)
        assert max(map(len, open_recording(path).chunks)) <= block


def test_counting_from_one_is_said(tmp_path):
    path = save(tmp_path, mat(TD=columns(EVENTS, first=1, kind=np.uint32)))
    with pytest.warns(UserWarning, match="polarities are 1 and 2, so x and y are taken to count"):
        assert np.array_equal(read_events(path), EVENTS)
    with pytest.raises(InputError, match="--strict refuses; save x and y from 0"):
        read_events(path, ReadOptions(strict=True))


def test_version_7_3(tmp_path):
    """HDF5 behind 512 bytes, vectors with a second side."""
    path = tmp_path / "a.mat"
    for across in (False, True):
        with h5py.File(path, "w", userblock_size=512) as file:
            for name, values in columns(EVENTS, first=1).items():
                file[f"TD/{name}"] = values.T if across else values
        data = path.read_bytes()
        path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + data[128:])
        with pytest.warns(UserWarning, match="polarities are 1 and 2"):
            assert np.array_equal(read_events(path), EVENTS)


def test_what_is_refused(tmp_path):
    two = {"left": columns(EVENTS), "right": columns(EVENTS[::2])}
    path = save(tmp_path, mat(**two))
    with pytest.raises(InputError, match=r"several cameras \(left, right\); choose one with --cam"):
        read_events(path)
    assert np.array_equal(read_events(path, ReadOptions(camera="right")), EVENTS[::2])
    for data, words in (
        (mat(TD=columns(EVENTS) | {"x": np.zeros(9)}), "t, x, y and p differ in length"),
        (mat(a=np.zeros(9), b="text"), r"without vectors t, x, y and p \(it holds a\)"),
        (mat(TD=columns(EVENTS) | {"x": EVENTS["x"] * 1j}), "without vectors"),
        (mat(TD=columns(EVENTS) | {"x": EVENTS["x"] + 0.5}), "event 0: column x holds fractions"),
        (mat(), "without vectors"),
        (b"MATLAB 5.0 MAT-file".ljust(200), "does not begin as a file of the format MATLAB"),
    ):
        with pytest.raises(InputError, match=words):
            read_events(save(tmp_path, data))


@pytest.mark.parametrize("name", ["structure", "plain", "table"])
def test_cut_off_everywhere(name, tmp_path):
    data, counts = FILES[name], set()
    for length in range(1, len(data), 23):
        path = save(tmp_path, data[:length])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                events = read_events(path)
            except InputError as error:
                assert str(path) in str(error)
                continue
        assert np.array_equal(events, EVENTS[: len(events)])
        if len(events) < 150:
            assert any("of 150 events are there" in str(w.message) for w in said)
        counts.add(len(events))
    assert len(counts) > 2


def test_lengths_that_lie_allocate_nothing(tmp_path):
    data = FILES["plain"].replace(b"\x96\0\0\0\1\0\0\0", b"\x96\0\0\x7f\1\0\0\0")
    assert data != FILES["plain"]
    bomb = mat(a=np.zeros(30_000_000, "u1"), TD=columns(EVENTS))
    tracemalloc.start()
    with pytest.raises(InputError, match="truncated or damaged MATLAB file"):
        read_events(save(tmp_path, data))
    assert len(read_events(save(tmp_path, bomb))) == 150
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
