"""File formats: what the bytes mean, and how a file is recognized."""

import struct
import sys
from functools import partial

import h5py
import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import (
    EVENT_DTYPE,
    EventFolder,
    check_events,
    read_events,
    read_recording,
)
from sj_ottt.data.recordings.formats.common import Unwrap
from sj_ottt.data.recordings.readers import READERS
from tests import recording_files as files

FORMATS = {
    "aedat2": (partial(files.aedat2, chip="DAVIS240C"), ".aedat", (180, 240)),
    "aedat3": (files.aedat3, ".aedat", (128, 128)),
    "aedat4": (files.aedat4, ".aedat4", (260, 346)),
    "aedat4_lz4": (files.aedat4_lz4, ".aedat4", (260, 346)),
    "aedat4_zstd": (files.aedat4_zstd, ".aedat", (260, 346)),
    "dat": (files.dat, ".dat", (240, 304)),
    "evt2": (files.evt2, ".raw", (720, 1280)),
    "evt3": (files.evt3, ".raw", (720, 1280)),
    "dsec": (files.dsec, ".h5", None),
    "prophesee_hdf5": (files.prophesee_hdf5, ".hdf5", (480, 640)),
    "csv": (files.csv, ".csv", None),
    "npz": (files.npz, ".npz", None),
    "nmnist": (files.nmnist, ".bin", (34, 34)),
}
WRITE_TO_PATH = ("dsec", "prophesee_hdf5", "npz")


@pytest.fixture
def encode(tmp_path):
    """Return bytes of events in a named format."""

    def to_bytes(name, events):
        write, ending, _ = FORMATS[name]
        events = [tuple(event) for event in np.asarray(events, EVENT_DTYPE).tolist()]
        if name in WRITE_TO_PATH:
            write = files.by_path(write, tmp_path, ending)
        return write(events)

    return to_bytes


def save(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_events_and_size(name, encode, tmp_path):
    size = (34, 34) if name == "nmnist" else (100, 120)
    events = files.sample_events(size=size)
    path = save(tmp_path, "recording" + FORMATS[name][1], encode(name, events))
    recording = read_recording(path)
    assert recording.events.dtype == EVENT_DTYPE
    assert np.array_equal(recording.events, events)
    assert recording.sensor_size == FORMATS[name][2]


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"nmnist"}))
def test_content_decides_whatever_the_ending(name, encode, tmp_path):
    events = files.sample_events(50)
    for ending in {row[1] for row in FORMATS.values()} | {""}:
        path = save(tmp_path, "recording" + ending, encode(name, events))
        assert np.array_equal(read_events(path), events), ending


@pytest.mark.parametrize("name", ["dat", "evt2", "evt3", "aedat4", "csv", "npz", "dsec"])
def test_large_sensors(name, encode, tmp_path):
    events = [(10, 1279, 719, 1), (20, 2047, 3, 0), (5_000, 0, 0, 1)]
    assert read_events(save(tmp_path, "a", encode(name, events))).tolist() == events


@pytest.mark.parametrize(
    ("name", "period"),
    [("aedat2", 2**32), ("aedat3", 2**31), ("dat", 2**32), ("evt2", 2**34), ("evt3", 2**24)],
)
def test_clocks_that_go_round(name, period, encode, tmp_path):
    """Two turns; no step but those is longer than half the range."""
    t = [-3000, -10, 10, 5000, period // 3, 2 * period // 3, period - 100, period + 200]
    events = [(period + time, 3, 4, i % 2) for i, time in enumerate(t)]
    assert read_events(save(tmp_path, "a", encode(name, events))).tolist() == events


def test_unwrap_is_numpys():
    clock = np.random.default_rng(0).integers(0, 2**32, 1000).astype(np.uint32)
    assert np.array_equal(Unwrap(32)(clock), np.unwrap(clock.astype(np.int64), period=2**32))
    assert Unwrap(32)(clock[:0]).tolist() == []


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"nmnist"}))
def test_times_that_run_backwards_are_named(name, encode, tmp_path):
    events = files.sample_events(20)
    events["t"][7] += 100_000
    path = save(tmp_path, "a", encode(name, events))
    with pytest.raises(InputError, match=rf"{path}: time runs backwards at event 8"):
        check_events(read_events(path), path, (720, 1280))


@pytest.mark.parametrize("name", FORMATS)
def test_empty_and_header_only(name, encode, tmp_path):
    path = save(tmp_path, "empty" + FORMATS[name][1], b"")
    if name == "nmnist":  # without a mark, an empty file is an empty recording
        assert len(read_events(path)) == 0
    else:
        with pytest.raises(InputError, match="is empty"):
            read_events(path)


def test_hdf5_compressions_and_layouts(tmp_path):
    import hdf5plugin

    events = files.sample_events(500)
    files.dsec(events.tolist(), tmp_path / "a.h5", offset=3, **hdf5plugin.Blosc(), chunks=(100,))
    assert np.array_equal(read_events(tmp_path / "a.h5"), events)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["frames"] = np.zeros(3)
    with pytest.raises(InputError, match=r"b\.h5: HDF5 without events/t .*it holds frames"):
        read_events(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        for name in "txyp":
            file.create_dataset(f"events/{name}", (10**12,), "u2", chunks=(1000,))
    with pytest.raises(InputError, match="states 8000000000000 bytes of events in a file of"):
        read_events(tmp_path / "c.h5")
    data = (tmp_path / "a.h5").read_bytes()
    blosc = struct.pack("<HH", 32001, 0)[:2]
    assert blosc in data
    ecf = save(tmp_path, "ecf.h5", data.replace(blosc, struct.pack("<H", 0x8ECF)))
    with pytest.raises(InputError, match=r"ecf\.h5: compressed with HDF5's ECF.*hdf5_ecf"):
        read_events(ecf)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("aedat4_lz4", "lz4.frame"),
        ("aedat4_zstd", "zstandard"),
        ("dsec", "h5py"),
        ("dsec", "hdf5plugin"),
    ],
)
def test_a_missing_package_is_named(name, package, encode, tmp_path, monkeypatch):
    path = save(tmp_path, "a", encode(name, files.sample_events(9)))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as error:
        read_events(path)
    assert package in str(error.value) and 'pip install "sj-ottt[events]"' in str(error.value)


def test_reading_npz_needs_no_package(encode, tmp_path, monkeypatch):
    for package in ("lz4.frame", "zstandard", "h5py", "hdf5plugin"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("npz", "nmnist", "aedat2", "aedat4", "dat", "evt2", "evt3", "csv"):
        path = save(tmp_path, "a" + FORMATS[name][1], encode(name, [(7, 1, 2, 1)]))
        assert read_events(path).tolist() == [(7, 1, 2, 1)]


def test_a_folder_takes_the_stated_size(tmp_path):
    for i in range(4):
        folder = tmp_path / "data" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        save(folder, f"{i}.dat", files.dat(files.sample_events(40, (30, 30), i).tolist()))
    assert EventFolder(tmp_path / "data", 2, cache_dir=tmp_path).sensor_size == (240, 304)
    files.npz([(1, 310, 2, 1), (2, 3, 4, 0)], tmp_path / "data" / "class0" / "wide.npz")
    assert EventFolder(tmp_path / "data", 2, cache_dir=tmp_path).sensor_size == (240, 311)


def test_unknown_formats_are_listed(tmp_path):
    with pytest.raises(InputError) as error:
        read_events(save(tmp_path, "a.avi", b"\x00\x01RIFF"))
    assert all(reader.name in str(error.value) for reader in READERS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"hello\n", "name the columns in a first line: t,x,y,p"),
        ("a.dat", b"t,x\n", "truncated or misnamed"),
    ],
)
def test_files_without_the_mark_of_their_ending(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(InputError, match=message):
        read_events(tmp_path / name)
