"""What recordings hold: the numbers, and the pictures drawn of them."""

import io

import numpy as np
import pytest
from PIL import Image

from sj_ottt import InputError, plots
from sj_ottt.cli.main import main
from sj_ottt.data import EVENT_DTYPE, ReadOptions, write_events
from sj_ottt.data.prepare import survey
from sj_ottt.data.prepare.film import Film, fitted
from sj_ottt.data.prepare.survey import evenly, survey_recordings
from tests.recording_files import dat, sample_events


def write(path, n=400, seed=0, hot=()):
    """Events at 1 per ms over 12 x 10 pixels, and some pixels that fire 300 times more."""
    rng = np.random.default_rng(seed)
    events = np.zeros(n + 300 * len(hot), EVENT_DTYPE)
    events["t"] = np.sort(rng.integers(0, n * 1000, len(events)))
    events["t"][[0, -1]] = 0, n * 1000
    events["y"], events["x"] = rng.integers(0, 12, len(events)), rng.integers(0, 10, len(events))
    events["p"][::4] = 1
    chosen = rng.permutation(len(events))[: 300 * len(hot)].reshape(len(hot), 300)
    for indices, (x, y) in zip(chosen, hot, strict=True):
        events["x"][indices], events["y"][indices] = x, y
    path.parent.mkdir(parents=True, exist_ok=True)
    write_events(path, events)


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        part, label = ("test" if i < 4 else "train"), ("rare" if i % 4 == 0 else "common")
        hot = [(3, 4), (9, 0)] if i % 2 else []
        write(tmp_path / "data" / part / label / f"{i}.npz", n=400 + 100 * i, seed=i, hot=hot)
    (tmp_path / "data" / "dataset.json").write_text('{"sensor_size": [12, 10]}')
    return tmp_path / "data"


def test_counts_and_hot_pixels(folder):
    found = survey_recordings(folder)
    assert len(found.recordings) == 12 and not found.problems and found.sensor_size == (12, 10)
    total = sum(400 + 100 * i + 600 * (i % 2) for i in range(12))
    assert sum(one.events for one in found.recordings) == found.pixel_counts.sum() == total
    one = next(one for one in found.recordings if one.path.name == "5.npz")
    assert (one.label, one.part, one.events, one.duration) == ("common", "train", 1500, 900_000)
    assert one.on_events == 375 and one.rate == pytest.approx(1500 / 0.9)
    # Of pixels that are hot in half of the recordings, and of no others.
    assert sorted(map(tuple, found.hot().tolist())) == [(0, 9), (4, 3)]
    assert found.times_hot[4, 3] == found.times_hot[0, 9] == 6
    assert len(found.hot(share=0.6)) == 0


def test_sensors_of_several_sizes_and_of_a_description(folder, tmp_path):
    mixed = tmp_path / "mixed"
    write(mixed / "a.npz")
    (mixed / "b.dat").write_bytes(dat(sample_events(50, (20, 30)).tolist()))
    found = survey_recordings(mixed)  # the one that states its sensor speaks for the other
    assert found.sensor_size == (240, 304) and found.pixel_counts.sum() == 450
    assert [(one.label, one.part) for one in found.recordings] == [("", "")] * 2
    (folder / "dataset.json").write_text('{"sensor_size": [16, 18]}')
    assert survey_recordings(folder).sensor_size == (16, 18)
    # What the description says goes before what a file states.
    (folder / "train" / "common" / "small.dat").write_bytes(dat([(1, 2, 3, 1), (9, 4, 5, 0)]))
    assert survey_recordings(folder).sensor_size == (16, 18)


def test_a_sensor_that_nothing_states_is_said(folder, tmp_path):
    (folder / "dataset.json").unlink()
    with pytest.warns(UserWarning, match=r"34 x 34 pixels .* smallest usual .*dataset\.json$"):
        found = survey_recordings(folder)
    assert found.sensor_size == found.pixel_counts.shape == (34, 34)
    with pytest.raises(InputError, match=r"--sensor-size H W .*--strict takes none"):
        survey_recordings(folder, ReadOptions(strict=True))
    given = ReadOptions(strict=True, sensor_size=(16, 20))
    assert survey_recordings(folder, given).sensor_size == (16, 20)
    two = tmp_path / "two"
    two.mkdir()
    (two / "a.dat").write_bytes(dat(sample_events(50, (20, 30)).tolist()))
    wide = "% Width 640\n% Height 480\n"
    (two / "b.dat").write_bytes(dat(sample_events(50, (20, 30)).tolist(), wide))
    with pytest.warns(UserWarning, match=r"different sensors \(.*a\.dat from one of 240 x 304"):
        assert survey_recordings(two).sensor_size == (480, 640)


def test_each_file_is_opened_once(folder, monkeypatch):
    seen = []
    real = survey.open_recording
    monkeypatch.setattr(
        survey, "open_recording", lambda path, options: seen.append(path) or real(path, options)
    )
    found = survey_recordings(folder, stills=2)
    assert len(seen) == len(set(seen)) == 12
    assert {label: len(stills) for label, stills in found.stills.items()} == {
        "rare": 2,
        "common": 2,
    }
    assert found.motion.counts.shape[1:] == (2, 12, 10)


def test_a_class_whose_first_recording_is_damaged_is_drawn_all_the_same(folder):
    (folder / "train" / "rare" / "4.npz").write_bytes(b"PK")
    (folder / "test" / "rare" / "0.npz").write_bytes(b"PK")
    found = survey_recordings(folder, stills=1)
    assert len(found.problems) == 2 and len(found.stills["rare"]) == 1 and found.motion is not None


def test_recordings_that_cannot_be_used_are_reported(folder, tmp_path):
    (folder / "train" / "rare" / "4.npz").write_bytes(b"PK")
    backwards = np.zeros(5, EVENT_DTYPE)
    backwards["t"] = [1, 2, 30_000, 2, 50_000]
    write_events(folder / "train" / "rare" / "8.npz", backwards)
    found = survey_recordings(folder)
    assert len(found.recordings) == 10
    assert "4.npz: does not begin as" in found.problems[0]
    assert "8.npz: time runs" in found.problems[1]
    with pytest.raises(InputError, match=r"4\.npz: does not begin as"):
        survey_recordings(folder / "train" / "rare" / "4.npz")
    with pytest.raises(InputError, match="none: no such recording"):
        survey_recordings(tmp_path / "none")


def test_evenly():
    assert evenly(list(range(9)), 3) == [0, 4, 8]
    assert evenly([5, 6], 8) == [5, 6]


def events_at(t, x=0, y=0, p=0):
    events = np.zeros(len(t), EVENT_DTYPE)
    events["t"], events["x"], events["y"], events["p"] = t, x, y, p
    return events


def filmed(events, block=1 << 20, size=None):
    film = Film(size)
    for i in range(0, len(events), block):
        film.add(events[i : i + block])
    return film


def test_a_short_film_shows_every_event_where_and_when_it_was():
    rng = np.random.default_rng(0)
    events = events_at(
        5_000 + np.sort(rng.integers(0, 60_000, 500)), rng.integers(0, 8, 500),
        rng.integers(0, 6, 500), rng.integers(0, 2, 500),
    )  # fmt: skip
    events["t"][0] = 5_000
    film = filmed(events)
    counts, factor = film.motion()
    expected = np.zeros((60, 2, 6, 8), int)
    frame = (events["t"] - 5_000) // 1000
    np.add.at(expected, (frame, events["p"], events["y"], events["x"]), 1)
    assert film.step_us == 1000 and factor == 1 and np.array_equal(counts, expected)
    per_frame = expected.sum((1, 2, 3))
    start = max(range(60 - 32 + 1), key=lambda i: (per_frame[i : i + 32].sum(), -i))
    assert np.array_equal(film.still()[0], expected[start : start + 32].sum(0))


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_a_long_film_keeps_the_busiest_two_seconds(block):
    """In any blocks: 64 frames of 32 ms, and of those the busiest."""
    rng = np.random.default_rng(1)
    quiet = rng.integers(0, 9_000_000, 900)
    busy = rng.integers(6_144_000, 8_192_000, 600)  # frames 192 to 255
    flash = np.full(300, 7_000_000)
    events = events_at(np.sort(np.concatenate([[0], quiet, busy, flash])), x=3, y=2)
    film = filmed(events, block)
    counts, _ = film.motion()
    assert film.step_us == 32_000 and counts.shape == (64, 2, 3, 4)
    seconds = (events["t"] >= 6_144_000) & (events["t"] < 8_192_000)
    assert counts.sum() == seconds.sum() and counts[:, 0, 2, 3].sum() == counts.sum()
    still, _ = film.still()
    assert still.sum() == np.count_nonzero(events["t"] // 32_000 == 7_000_000 // 32_000)
    late = events_at([0, 10**12, 10**12 + 1])
    assert filmed(late, block).motion()[0].sum() == 2  # the silence between costs nothing


def test_a_film_of_a_large_sensor_is_coarse():
    events = events_at([0, 1, 2, 3], x=[0, 1, 1279, 1278], y=[0, 1, 719, 0], p=1)
    for film in (filmed(events), filmed(events, 1), filmed(events, 1, (720, 1280))):
        counts, factor = film.motion()
        assert factor == 4 and counts.shape == (1, 2, 180, 320)
        assert counts[0, 1, 0, 0] == 2 and counts[0, 1, 179, 319] == counts[0, 1, 0, 319] == 1
        assert fitted(counts, 4, (720, 1280), 8).shape == (1, 2, 90, 160)
    small, _ = filmed(events[:2]).motion()
    assert (
        fitted(small, 1, (10, 13), 2).tolist()
        == np.pad([[[2]]], [(1, 0), (0, 4), (0, 6)])[None].tolist()
    )


def test_pictures():
    counts = np.zeros((3, 2, 20, 30), int)
    counts[0, 1, 2, 3], counts[1, 0, 4, 5] = 1, 1
    image = Image.open(io.BytesIO(plots.animation(counts, 10.0, "a")))
    assert image.n_frames == 3 and image.size == (360, 240 + 22)
    red = image.convert("RGB").getpixel((3 * 12 + 5, 2 * 12 + 5))
    image.seek(1)
    blue = image.convert("RGB").getpixel((5 * 12 + 5, 4 * 12 + 5))
    assert red[0] > 180 > red[2] and blue[2] > 150 > blue[0]
    assert image.convert("RGB").getpixel((3 * 12 + 5, 2 * 12 + 5)) == (255, 255, 255)
    sheet = plots.contact_sheet({"a": [counts[0]], "b": [counts[0], counts[1]]}, "title")
    assert sheet.startswith(b"\x89PNG")


def test_the_command(folder, tmp_path, capsys):
    out = tmp_path / "pictures"
    assert main(["data", "info", str(folder), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert "data: 12 recordings, 2 classes, sensor 12 x 10 pixels (height x width)" in lines[0]
    assert lines[2].split() == ["events", "400", "1,250", "2,100", "15,000"]
    assert ["class", "train", "test", "events,", "median"] in [line.split() for line in lines]
    assert ["rare", "2", "1", "800"] in [line.split() for line in lines]
    assert "balance: 3 (rare) to 9 (common) recordings a class" in lines
    share = survey_recordings(folder).pixel_counts[[4, 0], [3, 9]].sum() / 15_000
    assert f"hot pixels: 2 of 120, with {share:.1%} of the events" in lines and share > 0.24
    assert "  x = 9, y = 0, hot in 50% of the recordings" in lines
    with Image.open(out / "contact_sheet.png") as sheet, Image.open(out / "sample.gif") as motion:
        assert sheet.size[0] > 500 and motion.n_frames > 10
    one = folder / "train" / "rare" / "4.npz"
    assert main(["data", "info", str(one), "--out", str(out)]) == 0
    assert "4.npz: 1 recording, sensor 34 x 34" in capsys.readouterr().out
    assert main(["data", "info", str(tmp_path / "none")]) == 2


@pytest.mark.slow
def test_real_recordings(nmnist, tmp_path, capsys):
    assert main(["data", "info", str(nmnist / "test"), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "100 recordings, 10 classes, sensor 34 x 34" in text
    assert "x = 18, y = 30, hot in " in text  # the camera's known defect
