"""Long recordings cut into samples: their labels, and the data set that comes of them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.cli.main import main
from sj_ottt.data import EventFolder, ReadOptions, read_events
from sj_ottt.data.prepare import slice as slice_module
from sj_ottt.data.prepare.slice import SliceConfig, slice_recordings
from sj_ottt.data.recordings.folders import find_recordings
from sj_ottt.data.recordings.label_table import labels_from_folders, read_labels
from tests.data.long_recordings import SENSOR, all_labels, config, labels_file, record, sliced
from tests.helpers import overlap

SIZE = ("--sensor-size", "16", "20")


def listed(out: Path) -> list[dict]:
    with (out / "slices.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_samples_are_the_events_of_their_windows(raw, tmp_path):
    result = sliced(raw, tmp_path / "out")
    rows = listed(tmp_path / "out")
    # 1.9 s and 2 s in windows of 200 ms, 100 ms apart, from six recordings.
    assert len(rows) == 6 * (18 + 19) == sum(map(len, result.parts.values()))
    for row in rows[::7]:
        sample = read_events(tmp_path / "out" / row["file"])
        source = read_events(row["recording"])
        t = source["t"] - source["t"][0]
        expected = source[(t >= int(row["start"])) & (t < int(row["end"]))]
        assert np.array_equal(sample["t"] + 5_000 + int(row["start"]), expected["t"])
        assert np.array_equal(sample[["x", "y", "p"]], expected[["x", "y", "p"]])
        assert row["file"].split("/")[:2] == [row["part"], row["label"]]
        assert row["label"] == ("wave" if int(row["start"]) < 1_900_000 else "still")
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["sensor_size"] == [16, 20]
    for part in ("train", "test"):
        data = EventFolder(tmp_path / "out", 4, split=part, cache_dir=tmp_path)
        assert len(data) == sum(row["part"] == part for row in rows) > 0
        assert data.classes == ("still", "wave") and data.frame_size == (16, 20)


@pytest.mark.parametrize("hold_out", ["recording", "session"])
def test_groups_are_not_divided(hold_out, raw, tmp_path):
    sliced(raw, tmp_path / "out", hold_out=hold_out, test_fraction=0.3)
    rows = listed(tmp_path / "out")
    groups = {part: {r[hold_out] for r in rows if r["part"] == part} for part in ("train", "test")}
    assert groups["train"] and groups["test"] and not groups["train"] & groups["test"]
    sizes = {"recording": (4, 2), "session": (1, 1)}[hold_out]
    assert (len(groups["train"]), len(groups["test"])) == sizes


def test_split_by_time_leaves_a_gap(raw, tmp_path):
    result = sliced(raw, tmp_path / "out", hold_out="time")
    rows = listed(tmp_path / "out")
    keys = {(r["recording"], r["label"]) for r in rows}
    assert len(keys) == 12
    for key in keys:
        times = {
            part: [(int(r["start"]), int(r["end"])) for r in rows
                   if (r["recording"], r["label"]) == key and r["part"] == part]
            for part in ("train", "test")
        }  # fmt: skip
        assert len(times["test"]) == 4
        assert max(end for _, end in times["train"]) <= min(start for start, _ in times["test"])
    assert result.left_out["windows at the border of train and test"] == 12


def test_labels_from_folders_and_equal_names(raw, tmp_path):
    labelled = labels_from_folders(find_recordings([raw, raw / "monday" / "0.npz"]))
    assert len(labelled) == 6 and {one.session for one in labelled} == {raw.name}
    slice_recordings(labelled, tmp_path / "out", config(), SENSOR)
    rows = listed(tmp_path / "out")
    assert {row["label"] for row in rows} == {"monday", "tuesday"}
    assert len({row["file"] for row in rows}) == len(rows) == 6 * 39
    assert all((tmp_path / "out" / row["file"]).exists() for row in rows)


def test_what_slicing_refuses_leaves_nothing_behind(raw, tmp_path):
    recordings = find_recordings([raw])

    def refuses(words, rows, **kwargs):
        labelled = read_labels(labels_file(tmp_path, *rows), recordings)
        with pytest.raises(InputError, match=words):
            slice_recordings(labelled, tmp_path / "out", config(**kwargs), SENSOR)
        assert not list(tmp_path.glob("*out*"))

    row = "monday/0.npz,0,2s,a"
    refuses("reaches from 0 s to 5 s, where .* lasts 4 s", ["monday/0.npz,0,5s,a"])
    refuses("reaches from 6 s", ["monday/0.npz,6s,,a"])
    refuses(
        "class 'b' gives no window of 200 ms with at least 300", [row, "monday/0.npz,3s,3.1s,b"]
    )
    refuses("class 'a' gives no window", [row], min_events=1000)
    refuses(r"class 'a' is in one recording only .*--test-by time", [row])
    refuses(r"class 'a' is in one session only \(monday\)", [row], hold_out="session")
    refuses("no windows are left for testing", [row], hold_out="time", window=1_900_000)
    for kwargs, words in (
        ({"window": 0}, "window=0: give at least 1 µs"),
        ({"min_events": 0}, "min_events=0"),
        ({"hold_out": "window"}, "choose one of recording, session, time"),
        ({"test_fraction": 1.0}, r"test_fraction=1\.0"),
    ):
        with pytest.raises(InputError, match=words):
            config(**kwargs)
    broken = record(raw / "broken.npz", 1)
    broken.write_bytes(broken.read_bytes()[:99])
    with pytest.raises(InputError, match=r"broken\.npz: truncated"):
        slice_recordings(labels_from_folders([broken]), tmp_path / "out", config())
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: exists already"):
        sliced(raw, tmp_path / "out")


def test_the_command_from_recordings_to_a_trained_model(tmp_path, capsys):
    for label in ("left", "right"):
        for i in range(3):
            record(tmp_path / "raw" / label / f"{i}.dat", 1, seed=i)
    out = tmp_path / "my set"
    argv = ["data", "slice", str(tmp_path / "raw"), "--label-from-folder", "--out", str(out)]
    assert main([*argv, "--window", "250ms", "--stride", "250ms", "--min-events", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["class", "train", "test"], ["left", "8", "4"], ["right", "8", "4"], ["all", "16", "8"],
    ]  # fmt: skip
    assert lines[4].startswith("test: 2 recordings: ") and ".dat" in lines[4]
    assert "sensor    18 x 24 pixels (height x width)" in lines
    assert f"--data '{out}'" in lines[-1]
    train = ["train", "--data", str(out), "--out", str(tmp_path / "run"), "--epochs", "1"]
    train += ["--model", "test_ottt_vgg", "--steps", "2", "--batch-size", "8", "--device", "cpu"]
    assert main(train) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["n_test"] == 8
    capsys.readouterr()
    recording = tmp_path / "raw" / "left" / "0.dat"
    predict = ["predict", "--checkpoint", str(tmp_path / "run"), str(recording), "--device", "cpu"]
    assert main(predict) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [[f"{i / 4:.3f}", f"{i / 4 + 0.25:.3f}"] for i in range(4)]
    sparse = record(recording.with_name("sparse.dat"), 1, rate=90)
    assert main([*predict[:3], str(sparse), "--device", "cpu"]) == 0
    assert all(row.split()[2] == "-" for row in capsys.readouterr().out.splitlines()[1:])
    capsys.readouterr()
    assert main(argv) == 2 and "exists already" in capsys.readouterr().err
    assert main([*argv[:-1], str(tmp_path / "b"), "--window", "9us"]) == 2
    assert "class 'left' gives no window of 0.009 ms" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_validates_on_windows_of_their_own(raw, tmp_path):
    from sj_ottt.run import training
    from sj_ottt.run.config import TrainConfig

    out = tmp_path / "set"
    slice_recordings(
        read_labels(all_labels(raw), find_recordings([raw])),
        out,
        SliceConfig(window=200_000, stride=50_000, min_events=1),
        SENSOR,
    )
    cfg = TrainConfig(
        data=str(out), model="test_ottt_vgg", steps=1, device="cpu", out=str(tmp_path / "run")
    )
    run = training.TrainingRun(cfg)
    windows = EventFolder(out, 1, split="train").windows()
    train, val = (
        [windows[i] for i in part.indices] for part in (run.data.train, run.data.validation)
    )
    assert train and val and not any(overlap(a, b) for a in train for b in val)
    with pytest.raises(InputError, match="is one part of the data set"):
        EventFolder(out / "train", 1, split="train")
    slices = out / "slices.csv"
    text = slices.read_text()
    slices.write_text(text.replace("train/", "tra/"))
    with pytest.raises(InputError, match="has no line for train/still/"):
        training.TrainingRun(cfg)
    slices.write_text(text.replace("start", "begin", 1))
    with pytest.raises(InputError, match=r"is damaged.*slice the recordings again"):
        training.TrainingRun(cfg)


def test_the_command_holds_out_what_its_flag_says(raw, tmp_path, capsys):
    argv = ["data", "slice", str(raw), "--labels", str(all_labels(raw)), "--out"]
    for kind, message in (
        ("session", "test: 1 session: "),
        ("time", "test: the end of each class in each recording"),
    ):
        out = tmp_path / kind
        assert main([*argv, str(out), "--test-by", kind, "--min-events", "1", *SIZE]) == 0
        assert message in capsys.readouterr().out
        assert json.loads((out / "dataset.json").read_text())["hold_out"] == kind


def test_old_flag_of_what_is_held_out(raw, tmp_path, capsys):
    argv = ["data", "slice", str(raw), "--labels", str(all_labels(raw)), *SIZE, "--min-events", "1"]
    assert main([*argv, "--out", str(tmp_path / "a"), "--split-by", "session"]) == 0
    assert "test: 1 session: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["data", "slice", "--help"])
    assert "--split-by" not in capsys.readouterr().out


def test_the_sensor_that_is_taken_is_said(raw, tmp_path):
    labelled = read_labels(all_labels(raw), find_recordings([raw]))
    with pytest.warns(UserWarning, match=r"out: no file states .* 34 x 34 .*--sensor-size H W"):
        result = slice_recordings(labelled, tmp_path / "out", config(stride=500_000))
    assert result.sensor_size == (34, 34)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["sensor_size"] == [34, 34]
    with pytest.raises(InputError, match="--strict takes none"):
        slice_recordings(labelled, tmp_path / "b", config(), ReadOptions(strict=True))
    with pytest.raises(InputError, match=r"0\.npz: event \d+ at .* outside the sensor of height 9"):
        slice_recordings(labelled, tmp_path / "b", config(), ReadOptions(sensor_size=(9, 20)))
    assert not list(tmp_path.glob("b*"))


def test_recordings_are_cut_as_they_pass(raw, tmp_path, monkeypatch):
    """Blocks of any size give the same files, and none holds more than a window at a time."""
    sliced(raw, tmp_path / "whole", stride=150_000)
    real = slice_module.open_recording

    def in_blocks(path, options):
        source = real(path, options)
        (events,) = (np.concatenate(list(source.chunks)),)
        blocks = (events[i : i + 333].copy() for i in range(0, len(events), 333))
        return source._replace(chunks=blocks)

    held = []
    real_windows = slice_module.stretch_windows

    def watched(*args):
        for number, start, events in real_windows(*args):
            held.append(len(events) if events.base is None else len(events.base))
            yield number, start, events

    monkeypatch.setattr(slice_module, "open_recording", in_blocks)
    monkeypatch.setattr(slice_module, "stretch_windows", watched)
    sliced(raw, tmp_path / "blocks", stride=150_000)
    for row in (rows := listed(tmp_path / "whole")):
        one, other = ((tmp_path / name / row["file"]).read_bytes() for name in ("whole", "blocks"))
        assert one == other
    assert rows == listed(tmp_path / "blocks") and max(held) < 400 + 2 * 333 < 8000


# What is tested on, by name


def few(**kwargs):
    """Few samples, which are written in little time."""
    return config(**{"window": 500_000, "stride": 500_000, **kwargs})


def labelled_with(raw, tmp_path, *, part=None, sessions=False):
    head = "file,start,end,label" + ",session" * sessions + ",part" * bool(part)
    rows = []
    for path in sorted(raw.rglob("*.npz")):
        name = path.relative_to(raw).as_posix()
        own = f",{'s1' if name.startswith('monday') else 's2'}" * sessions
        own += f",{part(name)}" if part else ""
        rows += [f"{name},0,1.9s,wave{own}", f"{name},2s,4000ms,still{own}"]
    return read_labels(labels_file(tmp_path, *rows, head=head), find_recordings([raw]))


def names_of_tests(out):
    return {Path(r["recording"]).relative_to(out.parent / "raw").as_posix() for r in listed(out)
            if r["part"] == "test"}  # fmt: skip


def test_what_is_tested_on_can_be_named(raw, tmp_path):
    labelled, out = labelled_with(raw, tmp_path), tmp_path / "out"

    def cut(labelled, **kwargs):
        result = slice_recordings(labelled, out, few(**kwargs), SENSOR, overwrite=True)
        assert all(result.parts.values())
        return names_of_tests(out)

    names = ("monday/0.npz", str(raw / "tuesday" / "2.npz"))
    assert cut(labelled, test_recordings=names) == {"monday/0.npz", "tuesday/2.npz"}
    assert cut(labelled, test_sessions=("tuesday",)) == {f"tuesday/{i}.npz" for i in range(3)}
    both = cut(labelled, test_sessions=("tuesday",), test_recordings=("monday/1.npz",))
    assert len(both) == 4
    part = labelled_with(raw, tmp_path, part=lambda n: "test" if n == "monday/2.npz" else "TRAIN")
    assert cut(part) == {"monday/2.npz"}


def test_names_that_cannot_be_meant(raw, tmp_path):
    labelled = labelled_with(raw, tmp_path, sessions=True)

    def refuses(words, labelled=labelled, **kwargs):
        with pytest.raises(InputError, match=words):
            slice_recordings(labelled, tmp_path / "out", few(**kwargs), SENSOR)

    refuses("--test-recording 9.npz: is none of the labelled", test_recordings=("9.npz",))
    refuses(r"--test-session s3: no recording .*sessions are s1, s2", test_sessions=("s3",))
    refuses("no recording that is left to learn from", test_sessions=("s1", "s2"))
    refuses("--test-by time .* named", test_sessions=("s1",), hold_out="time")
    refuses(
        "session 's1' has recordings to learn from and to test on",
        test_recordings=("monday/0.npz",), hold_out="session",
    )  # fmt: skip
    part = labelled_with(raw, tmp_path, part=lambda n: "test" if "monday" in n else "train")
    refuses("both say what is for testing", part, test_recordings=("monday/0.npz",))
    all_train = labelled_with(raw, tmp_path, part=lambda n: "train")
    refuses("no windows are left for testing", all_train)
    for part, words in (
        (lambda n: "tst" if "day/2" in n else "train", r"line 6: part 'tst' is neither train nor"),
        (lambda n: "" if "tuesday/2" in n else "train", r"line 12: part '' is neither"),
    ):
        with pytest.raises(InputError, match=words):
            labelled_with(raw, tmp_path, part=part)
    rows = ["monday/0.npz,0,1s,a,train", "monday/0.npz,1s,2s,a,test"]
    path = labels_file(tmp_path, *rows, head="file,start,end,label,part")
    with pytest.raises(
        InputError, match=r"line 3: part 'test', where an earlier line says 'train'"
    ):
        read_labels(path, find_recordings([raw]))


def test_the_command_takes_names(raw, tmp_path, capsys):
    argv = ["data", "slice", str(raw), "--labels", str(all_labels(raw)), *SIZE, "--min-events", "1"]
    argv += ["--window", "500ms", "--stride", "500ms"]
    argv += ["--out", str(tmp_path / "set")]
    assert main([*argv, "--test-session", "monday"]) == 0
    assert "test: 3 recordings: " in capsys.readouterr().out
    assert {row["session"] for row in listed(tmp_path / "set")} == {"monday", "tuesday"}
    assert main([*argv, "--test-recording", "monday/0.npz", "tuesday/1.npz"]) == 2
    assert "exists already (--overwrite replaces it)" in capsys.readouterr().err
    assert main([*argv, "--test-recording", "monday/0.npz", "tuesday/1.npz", "--overwrite"]) == 0
    assert "test: 2 recordings: " in capsys.readouterr().out
    assert main([*argv, "--test-session", "mondy", "--overwrite"]) == 2
    assert "did you mean monday?" in capsys.readouterr().err
    assert len({row["recording"] for row in listed(tmp_path / "set") if row["part"] == "test"}) == 2


# What may be replaced


def test_overwriting_replaces_data_sets_of_slicing_only(raw, tmp_path):
    out = tmp_path / "out"
    labelled = labelled_with(raw, tmp_path)

    def cut(**kwargs):
        return slice_recordings(labelled, out, few(**kwargs), SENSOR, overwrite=True)

    def refuses(words):
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        with pytest.raises(InputError, match=words):
            cut()
        assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    cut()
    first = {row["file"] for row in listed(out)}
    cut(window=400_000, stride=600_000)
    assert first != {row["file"] for row in listed(out)}
    assert not list(tmp_path.glob(".out*"))
    # Where cutting fails, the old one stays.
    before = listed(out)
    with pytest.raises(InputError, match="gives no window"):
        cut(min_events=10**6)
    assert listed(out) == before and not list(tmp_path.glob(".out*"))
    notes = out / "train" / "notes.txt"
    notes.write_text("mine")
    refuses(r"holds .*notes\.txt, which slicing does not make")
    notes.unlink()
    own = out / "train" / "wave" / "own.npz"
    own.write_bytes(b"")
    refuses(r"holds .*own\.npz")
    own.unlink()
    # Half-made: what is not there is no hindrance.
    (out / "dataset.json").unlink()
    for file in list((out / "test").rglob("*.npz")):
        file.unlink()
    cut()
    assert EventFolder(out, 2, split="test", cache_dir=tmp_path).sensor_size == (16, 20)
    (out / "slices.csv").unlink()
    refuses("which slicing does not make")
    shutil.rmtree(out)
    out.mkdir()
    cut()  # an empty folder
    shutil.rmtree(out)
    shutil.copytree(raw, out)
    refuses("which slicing does not make")
    (out / "slices.csv").write_text("t,x,y,p\n")
    refuses("which slicing does not make")


def test_recordings_are_never_overwritten_by_what_is_cut_from_them(raw, tmp_path):
    out = tmp_path / "out"
    sliced(raw, out, stride=500_000)
    inside = sorted(out.rglob("*.npz"))[:1]
    with pytest.raises(InputError, match="out: holds the recording"):
        slice_recordings(labels_from_folders(inside), out, few(), SENSOR, overwrite=True)
    link = tmp_path / "link"
    link.symlink_to(out)
    with pytest.raises(InputError, match="link: is no folder"):
        slice_recordings(labelled_with(raw, tmp_path), link, few(), SENSOR, overwrite=True)


def test_recordings_of_two_cameras_are_refused(tmp_path):
    for i, width in enumerate((24, 24, 30)):
        path = record(tmp_path / "raw" / "a" / f"{i}.dat", 1, seed=i)
        path.write_bytes(path.read_bytes().replace(b"Width 24", f"Width {width}".encode()))
    labelled = labels_from_folders(find_recordings([tmp_path / "raw"]))
    with pytest.raises(InputError, match=r"2.dat: .* 18 x 30 .*0.dat from one of 18 x 24"):
        slice_recordings(labelled, tmp_path / "set", SliceConfig(200_000, 100_000, 1))
    assert not (tmp_path / "set").exists()


def test_rounded_labels_and_windows_longer_than_them(raw, tmp_path):
    """A forgotten unit of the window is not blamed on labels that were rounded up."""
    path = labels_file(tmp_path, "monday/0.npz,0,4.05s,a", "monday/1.npz,0,4.05s,a")
    labelled = read_labels(path, find_recordings([raw]))
    slice_recordings(labelled, tmp_path / "set", SliceConfig(200, 50_000, 1), SENSOR)
    with pytest.raises(InputError, match=r"no window of 10000 ms .*longest stretch lasts 4050 ms"):
        slice_recordings(labelled, tmp_path / "b", SliceConfig(10_000_000, 50_000, 1), SENSOR)


def test_the_command_says_what_is_wrong_with_labels(raw, tmp_path, capsys):
    argv = ["data", "slice", str(raw), "--out", str(tmp_path / "set"), "--labels"]
    (tmp_path / "latin.csv").write_bytes("file,start,end,label\n0.npz,,,Tür".encode("latin-1"))
    for given, message in (
        ("nowhere.csv", "(No such file or directory); check the path"),
        (str(raw), "(Is a directory); check the path"),
        (str(tmp_path / "latin.csv"), "it is no UTF-8 text"),
    ):
        assert main([*argv, given]) == 2
        assert message in capsys.readouterr().err
    assert main([*argv, str(all_labels(raw)), "--window", "200"]) == 2
    assert "time '200' has no unit" in capsys.readouterr().err
