"""What a stranger's files name never decides where is written: nothing lands outside ``--out``."""

import csv
import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sj_ottt.cli.main import main
from sj_ottt.data.recordings.events import EVENT_DTYPE
from tests.helpers import write_recordings

EVENTS = np.zeros(4000, EVENT_DTYPE)
EVENTS["t"] = np.arange(4000) * 100
EVENTS["x"], EVENTS["y"], EVENTS["p"] = np.arange(4000) % 16, np.arange(4000) // 7 % 16, 1


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, beside others that nothing may touch."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("SJ_OTTT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "elsewhere", "work"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def seen(root: Path, *but: str) -> dict[str, str]:
    """Every file and link, but for those in some folders and in caches: its name and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name.startswith(("cache", *but)):
            continue
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def command(*argv: object) -> int:
    return main([str(word) for word in argv])


def recording(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: EVENTS[name].astype(np.int64) for name in "txyp"})
    return path


HOSTILE = (
    "..",
    "../x",
    "../../elsewhere/x",
    "/tmp/x",
    "a/../../x",
    "a\\..\\x",
    ".hidden",
    "a\0b",
    "~",
)


@pytest.mark.parametrize("label", HOSTILE)
def test_labels_of_a_table(place, label):
    paths = [recording(place / "data" / f"{i}.npz") for i in range(4)]
    with open(place / "labels.csv", "w", newline="") as file:
        rows = [(path.name, "", "", label if i % 2 else "b") for i, path in enumerate(paths)]
        csv.writer(file).writerows([("file", "start", "end", "label"), *rows])
    before = seen(place, "work/set")
    argv = "data", "slice", *paths, "--labels", place / "labels.csv", "--out", "set"
    code = command(*argv, "--window", "50ms", "--min-events", "1", "--sensor-size", "16", "16")
    assert seen(place, "work/set") == before
    assert code == (0 if label == "~" else 2) and Path("set").exists() == (code == 0)


@pytest.mark.parametrize(
    "name", ["../../elsewhere/mine.txt", "/etc/passwd", "train/../../mine.txt"]
)
def test_a_list_of_slices_names_what_is_not_in_it(place, name):
    """What `--overwrite` removes is what slicing has made, wherever the list points."""
    paths = [recording(place / "data" / folder / f"{i}.npz") for folder in "ab" for i in range(2)]
    argv = "data", "slice", *paths, "--label-from-folder", "--out", "set", "--overwrite"
    argv += "--window", "50ms", "--min-events", "1", "--sensor-size", "16", "16"
    assert command(*argv) == 0
    listed = Path("set/slices.csv")
    listed.write_text(listed.read_text() + f"{name},train,a,x,y,0,50000,9\n")
    before = seen(place, "work/set")
    assert command(*argv) == 0
    assert seen(place, "work/set") == before
    # A link in it is somebody's own.
    Path("set/train/link").symlink_to(place / "elsewhere")
    before = seen(place)
    assert command(*argv) == 2 and seen(place) == before


def test_members_of_archives(place):
    buffer = io.BytesIO()
    np.savez(buffer, **{name: EVENTS[name].astype(np.int64) for name in "txyp"})
    with zipfile.ZipFile(buffer, "a") as archive:
        for name in ("../../elsewhere/new.npy", "/tmp/new-by-sj-ottt.npy"):
            archive.writestr(name, buffer.getvalue()[:200])
    Path("a.npz").write_bytes(buffer.getvalue())
    text = "t,x,y,p\n" + "".join(f"{t},{x},{y},{p}\n" for t, x, y, p in EVENTS.tolist())
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("../../elsewhere/events.csv", text)
    before = seen(place, "work/info")
    for name in ("a.npz", "a.zip"):
        command("data", "info", name, "--out", "info", "--sensor-size", "16", "16")
    assert seen(place, "work/info") == before and not Path("/tmp/new-by-sj-ottt.npy").exists()


def train(place: Path, *more: object) -> int:
    root = place / "set"
    if not root.exists():
        write_recordings(root, {"train": 4, "test": 2})
    argv = "train", "--model", "test_ottt_vgg", "--data", root, "--steps", "2", "--epochs", "1"
    return command(*argv, "--device", "cpu", "--val-fraction", "0", *more)


@pytest.mark.slow
def test_links_in_the_folder_of_a_run(place):
    """Files of ours take the place of links, and a folder that is one is refused."""
    run = Path("run")
    run.mkdir()
    for name in ("best.safetensors", "last.safetensors", "result.json", "curves.png"):
        (run / name).symlink_to(place / "elsewhere" / "mine.txt")
    write_recordings(place / "set", {"train": 4, "test": 2})
    before = seen(place, "work/run")
    for name in ("result.json", "best.safetensors", "last.safetensors"):  # a model, or a result
        assert train(place, "--out", run) == 2
        assert seen(place, "work/run") == before and (run / name).is_symlink()
        (run / name).unlink()
        (run / name).symlink_to(place / "elsewhere" / "nowhere")
    assert train(place, "--out", run) == 0
    assert seen(place, "work/run") == before
    assert not any(path.is_symlink() for path in run.rglob("*"))
    other = Path("other")
    other.mkdir()
    (other / "tb").symlink_to(place / "elsewhere")
    before = seen(place, "work/other")
    assert train(place, "--out", other) == 2
    assert seen(place, "work/other") == before
    # A recipe of a stranger: the flag decides.
    (place / "recipe.yaml").write_text(f"out: {place / 'elsewhere' / 'run'}\n")
    before = seen(place, "work/third")
    assert train(place, "--config", place / "recipe.yaml", "--out", "third") == 0
    assert seen(place, "work/third") == before


def test_a_description_of_a_bag_names_other_files(place):
    """The names in it are looked for beside it."""
    folder = place / "bag"
    folder.mkdir()
    named = {"relative_file_paths": ["../../etc/passwd", "/etc/passwd"], "version": 5}
    (folder / "metadata.yaml").write_text(json.dumps({"rosbag2_bagfile_information": named}))
    before = seen(place, "work/info")
    assert command("data", "info", folder, "--out", "info") == 2
    assert seen(place, "work/info") == before


def test_it_would_be_seen(place):
    """The control."""
    before = seen(place, "work")
    (place / "elsewhere" / "new.txt").write_text("new")
    assert seen(place, "work") != before
    (place / "elsewhere" / "new.txt").unlink()
    assert seen(place, "work") == before
