"""Recordings: what the bytes mean, and what is refused."""

import io
import zipfile

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import EVENT_DTYPE, check_events, read_events, write_events


def events(n=5, **columns):
    table = np.zeros(n, EVENT_DTYPE)
    table["t"] = np.arange(n) * 10
    for name, values in columns.items():
        table[name] = values
    return table


def save(path, **columns):
    table = events()
    np.savez(path, **{**{name: table[name] for name in "txyp"}, **columns})
    return path


def test_nmnist_bytes(tmp_path):
    """x, y, one bit of polarity and 23 bits of µs, big-endian."""
    file = tmp_path / "a.bin"
    file.write_bytes(bytes([3, 7, 0x80, 0x01, 0x02, 33, 0, 0x01, 0x00, 0xFF]))
    assert read_events(file).tolist() == [(0x0102, 3, 7, 1), (0x100FF, 33, 0, 0)]


def test_nmnist_clock_overflow(tmp_path):
    """Row 240 is no pixel: it says that the camera's clock went round, 2^13 µs."""
    file = tmp_path / "a.bin"
    file.write_bytes(bytes([1, 1, 0, 0, 5, 0, 240, 0, 0, 0, 2, 2, 0x80, 0, 6]))
    assert read_events(file).tolist() == [(5, 1, 1, 0), (8192 + 6, 2, 2, 1)]


def test_npz_round_trip_and_equal_bytes(tmp_path):
    table = events(4, x=[0, 1, 2, 300], y=3, p=[0, 1, 0, 1])
    for name in ("a.npz", "b.npz"):
        write_events(tmp_path / name, table)
    assert np.array_equal(read_events(tmp_path / "a.npz"), table)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


@pytest.mark.parametrize(
    "polarity", [np.array([-1, 1, -1, 1, 1]), np.array([False, True, False, True, True])]
)
def test_polarity_forms(tmp_path, polarity):
    assert read_events(save(tmp_path / "a.npz", p=polarity))["p"].tolist() == [0, 1, 0, 1, 1]


def test_content_goes_before_ending(tmp_path):
    file = tmp_path / "recording.bin"
    write_events(tmp_path / "a.npz", events())
    file.write_bytes((tmp_path / "a.npz").read_bytes())
    assert len(read_events(file)) == 5


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": np.arange(4)}, "differ in length"),
        ({"x": np.arange(5.0) + 0.5}, "fractions"),
        ({"x": np.zeros((5, 1), int)}, "flat array of integers"),
        ({"x": np.full(5, 2**20)}, "beyond int16"),
        ({"x": np.array([None] * 5, object)}, "pickled"),
    ],
)
def test_npz_with_bad_arrays(tmp_path, columns, words):
    file = save(tmp_path / "a.npz", **columns)
    with pytest.raises(InputError, match=words) as error:
        read_events(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_npz_without_an_array(tmp_path):
    np.savez(tmp_path / "a.npz", t=np.arange(3), x=np.arange(3))
    with pytest.raises(InputError, match=r"a\.npz: npz lacks the array 'y'"):
        read_events(tmp_path / "a.npz")


def test_damaged_files(tmp_path):
    write_events(tmp_path / "whole.npz", events(2000, x=np.random.default_rng(0).integers(0, 30)))
    whole = (tmp_path / "whole.npz").read_bytes()
    middle = bytearray(whole)
    middle[100:110] = bytes(10)
    for name, data in {
        "truncated.npz": whole[: len(whole) // 2],
        "flipped.npz": bytes(middle),
        "empty.npz": b"",
        "text.npz": b"hello",
        "empty.aedat": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as error:
            read_events(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such recording"):
        read_events(tmp_path / "missing.npz")
    with pytest.raises(InputError, match="cannot be read"):
        read_events(tmp_path)


def test_random_bytes_never_crash(tmp_path):
    rng = np.random.default_rng(0)
    write_events(tmp_path / "whole.npz", events(50))
    whole = np.frombuffer((tmp_path / "whole.npz").read_bytes(), np.uint8)
    for i in range(200):
        data = whole.copy()
        data[rng.integers(0, len(data), rng.integers(1, 6))] = rng.integers(0, 256)
        file = tmp_path / f"{i}.npz"
        file.write_bytes(data[: rng.integers(1, len(data) + 1)].tobytes())
        try:
            assert read_events(file).dtype == EVENT_DTYPE
        except InputError as error:
            assert str(file) in str(error)


def test_a_pickled_array_is_never_loaded(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Attack()], object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("t.npy", buffer.getvalue())
    with pytest.raises(InputError):
        read_events(tmp_path / "a.npz")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (events(0), "holds no events"),
        (events(5, x=[0, 1, 9, 9, 9]), "event 2 at x=9, y=0 lies outside"),
        (events(5, y=[0, 0, 0, 0, -1]), "event 4 at x=0, y=-1 lies outside"),
        (events(5, p=[0, 1, 2, 1, 0]), "event 2 has polarity 2"),
        (events(5, t=[0, 5, 4, 9, 1]), r"backwards at event 2 \(5 to 4"),
    ],
)
def test_check_events_names_the_first_offence(table, words):
    with pytest.raises(InputError, match=f"rec.npz: .*{words}"):
        check_events(table, "rec.npz", (8, 9))
    check_events(events(5, x=8, y=7, p=1), "rec.npz", (8, 9))


def test_real_recordings(nmnist):
    """Every 20th recording, against SpikingJelly's reader where its datasets can be imported."""
    files = sorted(nmnist.rglob("*.bin"))[::20]
    assert len(files) > 20
    tables = [read_events(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        check_events(table, file, (34, 34))
        assert 500 < len(table) < 20_000 and 200_000 < table["t"][-1] < 400_000
    sj_datasets = pytest.importorskip("spikingjelly.datasets", exc_type=Exception)
    load = getattr(sj_datasets, "load_ATIS_bin", None)
    if load is None:
        pytest.skip("this SpikingJelly has no ATIS reader under the known name")
    for file, table in zip(files, tables, strict=True):
        theirs = load(str(file))
        for name in "txyp":
            assert np.array_equal(table[name], theirs[name])
