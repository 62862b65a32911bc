"""What recordings hold: the numbers, and the pictures drawn of them."""

import io

import numpy as np
import pytest
from PIL import Image

from sj_ottt import InputError, plots
from sj_ottt.cli.main import main
from sj_ottt.data import EVENT_DTYPE, write_events
from sj_ottt.data.prepare.survey import busiest_frames, evenly, survey_recordings
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
    found = survey_recordings(mixed)
    assert found.sensor_size == (240, 304) and found.pixel_counts.sum() == 450
    assert [(one.label, one.part) for one in found.recordings] == [("", "")] * 2
    (folder / "dataset.json").write_text('{"sensor_size": [16, 18]}')
    assert survey_recordings(folder).sensor_size == (16, 18)
    # What the description says goes before what a file states.
    (folder / "train" / "common" / "small.dat").write_bytes(dat([(1, 2, 3, 1), (9, 4, 5, 0)]))
    assert survey_recordings(folder).sensor_size == (16, 18)


def test_recordings_that_cannot_be_used_are_reported(folder, tmp_path):
    (folder / "train" / "rare" / "4.npz").write_bytes(b"PK")
    backwards = np.zeros(5, EVENT_DTYPE)
    backwards["t"] = [1, 2, 30_000, 2, 50_000]
    write_events(folder / "train" / "rare" / "8.npz", backwards)
    found = survey_recordings(folder)
    assert len(found.recordings) == 10
    assert "4.npz: truncated" in found.problems[0] and "8.npz: time runs" in found.problems[1]
    with pytest.raises(InputError, match=r"4\.npz: truncated"):
        survey_recordings(folder / "train" / "rare" / "4.npz")
    with pytest.raises(InputError, match="none: no such recording"):
        survey_recordings(tmp_path / "none")


def test_evenly():
    assert evenly(list(range(9)), 3) == [0, 4, 8]
    assert evenly([5, 6], 8) == [5, 6]


def test_busiest_frames(tmp_path):
    events = np.zeros(6, EVENT_DTYPE)
    events["t"] = [100, 5_100, 5_200, 5_400, 6_150, 9_000]
    events["x"], events["y"] = [0, 1, 2, 3, 7, 0], [0, 0, 1, 1, 5, 0]
    events["p"] = [0, 1, 1, 0, 1, 0]
    write_events(tmp_path / "a.npz", events)
    counts = busiest_frames(tmp_path / "a.npz", (6, 8), 2, 1000, 8)
    # From 5,100 µs: three events in the first ms, one in the second.
    assert counts.shape == (2, 2, 6, 8) and counts.sum((2, 3)).tolist() == [[1, 2], [0, 1]]
    assert counts[0, 1, 0, 1] == counts[0, 1, 1, 2] == counts[0, 0, 1, 3] == counts[1, 1, 5, 7] == 1
    binned = busiest_frames(tmp_path / "a.npz", (6, 8), 2, 1000, 4)
    assert binned.shape == (2, 2, 3, 4) and binned[0, 1, 0, 0] == binned[0, 1, 0, 1] == 1
    # Shorter than asked for: as many frames as there are, with every event.
    assert busiest_frames(tmp_path / "a.npz", (6, 8), 50, 1000, 8).sum() == 6


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
    assert "4.npz: 1 recording, sensor 12 x 10" in capsys.readouterr().out
    assert main(["data", "info", str(tmp_path / "none")]) == 2


@pytest.mark.slow
def test_real_recordings(nmnist, tmp_path, capsys):
    assert main(["data", "info", str(nmnist / "test"), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "100 recordings, 10 classes, sensor 34 x 34" in text
    assert "x = 18, y = 30, hot in " in text  # the camera's known defect
