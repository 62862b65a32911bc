"""HDF5: every layout, in slices; several cameras; sizes; damage."""

import struct
import warnings

import h5py
import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import ReadOptions, open_recording, read_events, read_recording
from sj_ottt.data.recordings.formats.arrays import hdf5, table
from tests.data.recordings.damage import cut_everywhere
from tests.data.recordings.formats.hdf5_files import CHOICE, LAYOUTS, columns, mvsec, to_bytes
from tests.recording_files import prophesee_hdf5, sample_events

EVENTS = sample_events(150)


def write(folder, fill, events=EVENTS, name="a.h5"):
    path = folder / name
    path.write_bytes(to_bytes(lambda file: fill(file, events)))
    return path


def read(path, **options):
    """Read without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_recording(path, ReadOptions(**options))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("v2e_events_Nx4.h5", None),
        ("event_utils_xs_ys_ts_ps.h5", (260, 346)),
        ("structured_events.h5", None),
    ],
)
def test_real_files(camera_files, name, size):
    events, stated = read(camera_files / "wrong" / name, strict=True)
    truth = np.load(camera_files / "wrong" / "v2e_truth.npy")
    assert len(events) == 6676 and stated == size
    for field in "xyp":
        assert np.array_equal(events[field], truth[field])
    # v2e cuts seconds in floating point to whole µs, so that some of its own are 1 µs early.
    late = (truth["t"] - truth["t"][0]) - (events["t"] - events["t"][0])
    assert set(late.tolist()) == ({0, 1} if name.startswith("v2e") else {0})


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, tmp_path, monkeypatch):
    fill, size = LAYOUTS[name]
    path = write(tmp_path, fill)
    for block in (1 << 20, 64, 7):
        monkeypatch.setattr(hdf5, "BLOCK", block)
        monkeypatch.setattr(table, "BLOCK", block)
        options = ReadOptions(strict=True, camera=CHOICE.get(name))
        events, stated = read_recording(path, options)
        assert np.array_equal(events, EVENTS) and stated == size
        assert open_recording(path, options).expected == 150


def test_several_cameras(tmp_path):
    path = write(tmp_path, mvsec)
    with pytest.raises(InputError, match=r"several cameras \(davis/left/events, davis/right/ev"):
        read_events(path)
    moved = EVENTS.copy()
    moved["x"] += 1
    for camera in ("right", "1", "davis/right/events"):
        assert np.array_equal(read(path, camera=camera).events, moved)
    for camera, words in (("2", "is none"), ("up", "is none"), ("davis", "is more than one")):
        with pytest.raises(InputError, match=rf"camera='{camera}' {words} of its cameras \(davis"):
            read_events(path, ReadOptions(camera=camera))


def test_sizes(tmp_path):
    def stating(**attributes):
        def fill(file, events):
            columns(file, "events", events)
            for name, value in attributes.items():
                file["events"].attrs[name] = value

        return write(tmp_path, fill)

    assert read(stating(height=480, width=640)).sensor_size == (480, 640)
    assert read(stating(height=[480], width=np.float64(640))).sensor_size == (480, 640)
    assert read(stating(geometry="1280x720")).sensor_size == (720, 1280)
    assert read(stating(resolution=np.array([128, 128]))).sensor_size == (128, 128)
    assert read(stating(geometry="large", height="many")).sensor_size is None
    assert read(stating(height=-1, width=10**12)).sensor_size is None
    turned = stating(sensor_resolution=(346, 260))
    with pytest.warns(UserWarning, match="346, 260 is taken as width and height; pass --sensor-si"):
        assert read_recording(turned).sensor_size == (260, 346)


def test_units_and_what_contradicts(tmp_path):
    def later_fraction(file, events):
        t = events["t"].astype(float)
        t[140] += 0.5
        columns(
            file,
            "events",
            {name: events[name] for name in "xyp"} | {"t": t},
            kinds=("f4", *["u2"] * 3),
        )

    path = write(tmp_path, lambda file, e: columns(file, "events", e, ("t_ns", "x", "y", "p")))
    assert np.array_equal(read(path).events["t"], (EVENTS["t"] + 500) // 1000)
    assert np.array_equal(read(path, time_unit="us").events, EVENTS)
    path = write(tmp_path, later_fraction)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5, "BLOCK", 50)
        with pytest.raises(InputError, match=r"event 140: time .*\.5 has a fraction.*--time-unit"):
            read_events(path)


def test_columns_of_several_lengths_are_cut_off(tmp_path):
    def fill(file, events):
        columns(file, "events", events)
        del file["events/p"]
        file["events/p"] = events["p"][:140]

    path = write(tmp_path, fill)
    with pytest.warns(UserWarning, match="is cut off: 140 of 150 events have all of t, x, y and p"):
        assert np.array_equal(read_events(path), EVENTS[:140])
    with pytest.raises(InputError, match="read what is intact without --strict"):
        read_events(path, ReadOptions(strict=True))


def test_nothing_is_read_from_other_files(tmp_path):
    other = write(tmp_path, LAYOUTS["dsec"][0], name="other.h5")

    def links(file, events):
        file["events"] = h5py.ExternalLink(str(other), "events")

    with pytest.raises(InputError, match="HDF5 without events/t"):
        read_events(write(tmp_path, links))
    (tmp_path / "raw").write_bytes(bytes(800))

    def outside(file, events):
        columns(file, "events", events[:100], ("a", "x", "y", "p"))
        file.create_dataset("events/t", (100,), "i8", external=[(str(tmp_path / "raw"), 0, 800)])

    with pytest.raises(InputError, match="events/t lies in other files"):
        read_events(write(tmp_path, outside))


def test_what_is_no_number_is_refused(tmp_path):
    def texts(file, events):
        file["events/t"] = [b"1"] * 3
        for name in "xyp":
            file[f"events/{name}"] = np.zeros(3, "u1")

    with pytest.raises(InputError, match=r"HDF5 without events/t .*it holds events"):
        read_events(write(tmp_path, texts))
    path = write(tmp_path, lambda file, e: columns(file, "events", e, kinds=["f2", *["f8"] * 3]))
    with pytest.raises(InputError, match=r"event \d+: (column x holds fractions|time inf)"):
        read_events(path)


@pytest.mark.parametrize("name", ["dsec", "v2e"])
def test_cut_off_everywhere(name, tmp_path):
    data = write(tmp_path, LAYOUTS[name][0], EVENTS[:70]).read_bytes()
    found = cut_everywhere(data, ".h5", tmp_path, step=29)
    assert set(found.values()) <= {None, 70}


def test_a_damaged_heap_of_texts_is_no_endless_loop(tmp_path):
    """The size is a text of variable length, in a heap whose free space says it is 0 bytes long."""
    path = tmp_path / "a.h5"
    prophesee_hdf5([(1, 2, 3, 1)], path)
    data = path.read_bytes()
    heap = data.index(b"GCOL")
    length = struct.unpack_from("<Q", data, heap + 24)[0]
    free = heap + 16 + 16 + -(-length // 8) * 8
    assert struct.unpack_from("<H", data, free)[0] == 0
    path.write_bytes(data[: free + 8] + bytes(8) + data[free + 16 :])
    with pytest.raises(InputError, match="an empty object at byte"):
        read_events(path)
    # Found in whatever piece of the file it lies, on a border too.
    for before in ((1 << 20) - 3, (1 << 20) + 5):
        path.write_bytes(bytes(before) + b"GCOL\1\0\0\0" + bytes(40))
        assert list(hdf5._heaps(path)) == [before]
