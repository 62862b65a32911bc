"""NumPy's files: records, tables and single arrays, block by block; files that lie or end early."""

import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import ReadOptions, open_recording, read_events, read_recording
from sj_ottt.data.recordings.formats.arrays import npy as npy_module
from sj_ottt.data.recordings.formats.arrays import table
from tests.data.recordings.formats.npz_files import columns, npy, npz, rows
from tests.recording_files import sample_events

EVENTS = sample_events(150)
SWAPPED = EVENTS.astype([("ts", ">u8"), ("x_pos", ">u2"), ("y_pos", ">u2"), ("polarity", "?")])
SIGNED = rows(EVENTS, "xytp", "f8")
SIGNED[:, 3] = 2 * SIGNED[:, 3] - 1
SECONDS = rows(EVENTS, kind="f8") / [1e6, 1, 1, 1]

FILES = {
    "records.npy": npy(EVENTS),
    "swapped.npy": npy(SWAPPED),
    "rows.npy": npy(rows(EVENTS)),
    "signed.npy": npy(SIGNED),
    "seconds.npy": npy(SECONDS),
    "fortran.npy": npy(np.asfortranarray(rows(EVENTS, "xypt"))),
    "upright.npy": npy(rows(EVENTS, "ptxy", "u4").T.copy()),
    "upright_fortran.npy": npy(np.asfortranarray(rows(EVENTS).T)),
    "spikingjelly.npz": npz(**columns(EVENTS)),
    "packed.npz": npz(True, **columns(EVENTS), label=np.zeros(3)),
    "names.npz": npz(**columns(EVENTS, "timestamps x_pos y_pos polarity")),
    "bool.npz": npz(**columns(EVENTS) | {"p": EVENTS["p"] > 0}),
    "events.npz": npz(True, events=EVENTS, images=np.zeros((9, 4))),
    "table.npz": npz(arr_0=rows(EVENTS, "xytp")),
    "packed_fortran.npz": npz(True, events=np.asfortranarray(rows(EVENTS))),
    "real.npz": npz(**columns(EVENTS) | {"t": EVENTS["t"] / 1e6}),
}


def save(folder, data, name="a.npz"):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", FILES)
def test_arrays(name, tmp_path, monkeypatch):
    path = save(tmp_path, FILES[name], name)
    for block in (1 << 20, 64, 7):
        monkeypatch.setattr(npy_module, "BLOCK", block)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(read_events(path, ReadOptions(strict=True)), EVENTS)
        source = open_recording(path)
        assert source.expected == 150 and source.sensor_size is None
        assert max(map(len, source.chunks)) <= block


def test_the_true_events(camera_files):
    truth = camera_files / "wrong" / "v2e_truth.npy"
    assert np.array_equal(read_events(truth), np.load(truth))


def test_units(tmp_path):
    path = save(tmp_path, npz(**columns(EVENTS, "t_ns x y p")))
    assert np.array_equal(read_events(path)["t"], (EVENTS["t"] + 500) // 1000)
    path = save(tmp_path, npy(rows(EVENTS)), "a.npy")
    events = read_events(path, ReadOptions(time_unit="ms"))
    assert np.array_equal(events["t"], EVENTS["t"] * 1000)
    late = rows(EVENTS, kind="f8")
    late[120, 0] += 0.25
    path = save(tmp_path, npy(late), "a.npy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npy_module, "BLOCK", 50)
        with pytest.raises(InputError, match=r"event 120: time .*\.25 has a fraction"):
            read_events(path)


def test_a_camera_in_a_fifth_column(tmp_path):
    five = np.concatenate([rows(EVENTS), np.arange(150)[:, None] % 2], axis=1)
    path = save(tmp_path, npy(five), "a.npy")
    with (
        pytest.raises(InputError, match="event 1: of camera 1, those before it of 0; choose one"),
        pytest.warns(UserWarning, match="the fifth of five columns is taken for a camera's"),
    ):
        read_events(path)
    assert np.array_equal(read_events(path, ReadOptions(camera="1")), EVENTS[1::2])


@pytest.mark.parametrize("name", ["records.npy", "rows.npy", "fortran.npy"])
def test_cut_off_everywhere(name, tmp_path):
    data = FILES[name]
    head = data.index(b"\n") + 1
    for length in range(0, len(data), 13):
        path = save(tmp_path, data[:length], "a.npy")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                events = read_events(path)
            except InputError:
                assert length < head + 20
                continue
        (cut,) = (str(w.message) for w in said if "is cut off" in str(w.message))
        assert f"a.npy: is cut off: {len(events)} of 150 events are there" in cut
        assert np.array_equal(events, EVENTS[: len(events)])
        if name != "fortran.npy":
            assert len(events) == (length - head) // ((len(data) - head) // 150)
    with pytest.raises(InputError, match="read what is intact without --strict"):
        read_events(save(tmp_path, data[:-1], "a.npy"), ReadOptions(strict=True))


def test_a_cut_npz_is_refused(tmp_path):
    for length in range(1, len(FILES["packed.npz"]), 29):
        with pytest.raises(InputError):
            read_events(save(tmp_path, FILES["packed.npz"][:length]))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            npz(t=EVENTS["t"], x=EVENTS["x"], y=EVENTS["y"]),
            r"lacks the array 'p' \(it holds t, x, y\)",
        ),
        (
            npz(**columns(EVENTS) | {"x": EVENTS["x"][:9]}),
            r"'t' and 'x' differ in length \(150 and 9",
        ),
        (npz(**columns(EVENTS) | {"x": EVENTS["x"][:, None]}), "'x' is int16 of shape"),
        (npz(**columns(EVENTS) | {"p": EVENTS["p"].astype("U1")}), "'p' is <U1 of shape"),
        (npz(**columns(EVENTS) | {"p": EVENTS["p"].astype(object)}), "corrupt or pickled npz"),
        (npz(**columns(EVENTS) | {"x": EVENTS["x"] + 0.5}), "event 0: column x holds fractions"),
        (npz(**columns(EVENTS) | {"x": EVENTS["x"].astype("i8") + 40_000}), "'x' reaches from"),
        (npz(a=rows(EVENTS), b=rows(EVENTS)), "lacks the array 't'"),
        (npy(np.zeros(5)), r"holds float64 of shape \(5,\), not events; save records"),
        (npy(np.array([None])), "corrupt or pickled npy"),
        (npy(np.zeros((5, 3))), "not events"),
        (npy(np.full((150, 4), np.nan)), "fractions"),
    ],
)
def test_what_is_refused(data, words, tmp_path):
    with pytest.raises(InputError, match=words):
        read_events(save(tmp_path, data))


def test_headers_that_lie_allocate_nothing(tmp_path):
    members = {}
    with zipfile.ZipFile(save(tmp_path, FILES["spikingjelly.npz"])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    head, _, body = members["t.npy"].partition(b"(150,), }")
    members["t.npy"] = head + b"(9000000000,), }" + body[7:]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match="t states 72000000000 bytes and holds"):
        read_events(tmp_path / "a.npz")
    path = save(
        tmp_path,
        FILES["records.npy"].replace(b"(150,), }       ", b"(9000000000,), }"),
        "a.npy",
    )
    tracemalloc.start()
    with pytest.warns(UserWarning, match="150 of 9000000000 events are there"):
        assert len(read_recording(path).events) == 150
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()
    assert table.BLOCK == npy_module.BLOCK
