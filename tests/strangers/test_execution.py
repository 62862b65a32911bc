"""Files of a stranger run nothing: no pickle is undone, no tag of YAML called, no script kept."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch

from sj_ottt import zoo
from sj_ottt.cli.main import main
from sj_ottt.data import ImageSet, read_events
from sj_ottt.errors import InputError
from sj_ottt.run.checkpoint import load_checkpoint
from sj_ottt.run.config import TrainConfig


class Command:
    """An object whose pickle runs a command when it is undone."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def object_array(mark: Path) -> np.ndarray:
    return np.array([Command(mark)], dtype=object)


def _checkpoint(folder: Path, mark: Path) -> None:
    torch.save({"format": 1, "epoch": Command(mark)}, folder / "last.pt")
    load_checkpoint(folder)


def _old_checkpoint(folder: Path, mark: Path) -> None:
    (folder / "last.pt").write_bytes(pickle.dumps(Command(mark)))
    load_checkpoint(folder)


def _weights(folder: Path, mark: Path) -> None:
    torch.save({"fc.weight": Command(mark)}, folder / "weights.pth")
    zoo.load_weights(timm.create_model("test_ottt_vgg"), folder / "weights.pth")


def _weights_of_old(folder: Path, mark: Path) -> None:
    (folder / "weights.pth").write_bytes(pickle.dumps({"fc.weight": Command(mark)}))
    zoo.load_weights(timm.create_model("test_ottt_vgg"), folder / "weights.pth")


def _weights_in_disguise(folder: Path, mark: Path) -> None:
    torch.save({"fc.weight": Command(mark)}, folder / "weights.safetensors")
    zoo.load_weights(timm.create_model("test_ottt_vgg"), folder / "weights.safetensors")


def _npz(folder: Path, mark: Path) -> None:
    arrays = {name: object_array(mark) for name in "txyp"}
    np.savez(folder / "a.npz", allow_pickle=True, **arrays)
    read_events(folder / "a.npz")


def _npy(folder: Path, mark: Path) -> None:
    np.save(folder / "a.npy", object_array(mark), allow_pickle=True)
    read_events(folder / "a.npy")


def _npy_header(folder: Path, mark: Path) -> None:
    """NumPy reads its header as a literal of Python."""
    text = f"{{'descr': '<i8', 'fortran_order': __import__('os').system('touch {mark}')}}".encode()
    head = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text
    (folder / "a.npy").write_bytes(head)
    read_events(folder / "a.npy")


def _images(folder: Path, mark: Path) -> None:
    np.savez(folder / "a.npz", train_images=object_array(mark), train_labels=object_array(mark))
    ImageSet(str(folder / "a.npz"), split="train")


def _hdf5_elsewhere(folder: Path, mark: Path) -> None:
    """Links, files that hold the data, and data sets made up of others are not followed."""
    with h5py.File(folder / "other.h5", "w") as file:
        file["t"] = np.arange(3)
    with h5py.File(folder / "a.h5", "w") as file:
        file["events/t"] = h5py.ExternalLink("other.h5", "t")
        secret = [(str(folder / "secret"), 0, 24)]
        for name in "xyp":
            file.create_dataset(f"events/{name}", (3,), "i8", external=secret)
    read_events(folder / "a.h5")


def _recipe(folder: Path, mark: Path) -> None:
    (folder / "a.yaml").write_text(f"lr: !!python/object/apply:os.system ['touch {mark}']\n")
    TrainConfig.from_sources(folder / "a.yaml")


def _archive_of_text(folder: Path, mark: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("events.csv", f"t,x,y,p\n0,1,1,__import__('os').system('touch {mark}')\n")
    read_events(folder / "a.zip")


FILES = {
    function.__name__: function
    for function in (
        _checkpoint,
        _old_checkpoint,
        _weights,
        _weights_of_old,
        _weights_in_disguise,
        _npz,
        _npy,
        _npy_header,
        _images,
        _hdf5_elsewhere,
        _recipe,
        _archive_of_text,
    )
}


@pytest.mark.parametrize("name", FILES)
def test_nothing_runs(name, tmp_path):
    mark = tmp_path / "has run"
    with pytest.raises(InputError) as refused:
        FILES[name](tmp_path, mark)
    assert not mark.exists() and "\n" not in str(refused.value)


def test_they_would_run(tmp_path):
    """The control: undone by those who trust them, the objects do run."""
    for i, undo in enumerate(
        (
            lambda data: pickle.load(data),
            lambda data: np.load(data, allow_pickle=True),
            lambda data: torch.load(data, weights_only=False),
        )
    ):
        data, mark = io.BytesIO(), tmp_path / str(i)
        (pickle.dump, np.save, torch.save)[i](
            *((data, object_array(mark)) if i == 1 else (Command(mark), data))
        )
        data.seek(0)
        undo(data)
        assert mark.exists()


def test_a_page_of_a_recording_runs_no_script_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "<script>alert(1)<@script><img src=x onerror=alert(1)>.csv".replace("@", "!")
    Path(name).write_text("t,x,y,p\n" + "".join(f"{i},{i % 9},1,1\n" for i in range(99)))
    assert main(["data", "view", name, "--out", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "alert(1)" in page and "<img" not in page and "<script>alert" not in page
    assert "script-src 'sha256-" in page  # nothing but the page's own script
