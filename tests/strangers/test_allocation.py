"""Files that promise or unpack to gigabytes take memory in proportion to their size."""

import importlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from sj_ottt import zoo
from sj_ottt.data import EventFolder, ImageSet, read_events, read_labels
from sj_ottt.data.recordings.readers import open_recording
from sj_ottt.data.recordings.streams import windows
from sj_ottt.errors import InputError
from sj_ottt.run.checkpoint import ModelInfo, digest, load_checkpoint
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.evaluation import load_trained
from sj_ottt.run.sections import FrameOptions
from tests.helpers import write_recordings
from tests.strangers import bombs
from tests.strangers.apart import apart

pytestmark = pytest.mark.slow
FORMATS = "sj_ottt.data.recordings.formats."
UNPACKING = (FORMATS + "unpacking", "LARGEST_PIECE")


def most(path: Path) -> int:
    """Bytes that a file may take: the package's own limits, and a hundred for each of its own."""
    return 350 * 10**6 + 100 * path.stat().st_size


def whole(path: Path) -> str:
    return f"{len(read_events(path))} events"


def blocks(path: Path) -> str:
    """Read a recording block by block, until its events would not fit into what this may take."""
    n = 0
    for block in open_recording(path).chunks:
        n += len(block)
        if n > 1 << 23:
            break
    return f"{n} events"


def unguarded(path: Path, module: str, name: str) -> str:
    """Read a file without one of the limits."""
    without = (lambda *_: None) if name.startswith("check") else 1 << 62
    setattr(importlib.import_module(module), name, without)
    return whole(path)


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    """Files by their names, each made once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = bombs.RECORDINGS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return of


BY_BLOCKS = ("npz_that_unpacks", "mat_that_unpacks", "gzip_of_lines")


# Lines without an event take the same memory whole as in blocks.
@pytest.mark.parametrize("name", [n for n in bombs.RECORDINGS if n != "gzip_of_lines"])
def test_recordings(name, bomb):
    path = bomb(name)
    assert path.is_dir() or path.stat().st_size < 20e6
    outcome = apart(whole, path)
    assert outcome.text.startswith("InputError") or outcome.text.endswith(" events"), outcome
    assert "fit into memory" not in outcome.text and "\n" not in outcome.text
    assert outcome.grown < most(path), outcome


@pytest.mark.parametrize("name", BY_BLOCKS)
def test_recordings_block_by_block(name, bomb):
    outcome = apart(blocks, bomb(name))
    assert outcome.text.startswith("InputError") or outcome.text.endswith(" events"), outcome
    assert outcome.grown < 100e6, outcome


GUARDS = {
    "npz_that_unpacks": ("sj_ottt.data.recordings.source", "_DENSEST"),
    "npz_of_wide_records": (FORMATS + "arrays.npy", "LARGEST_RECORD"),
    "hdf5_of_one_chunk": (FORMATS + "arrays.hdf5", "LARGEST_PIECE"),
    "aedat4_lz4": UNPACKING,
    "ros1_indexed_bz2": UNPACKING,
    "ros2_messages": UNPACKING,
    "db3_with_a_made_column": (FORMATS + "ros.bag", "check_database"),
}


@pytest.mark.parametrize("name", GUARDS)
def test_without_the_guard_they_fill_the_memory(name, bomb):
    """The control: each file is as bad as it seems."""
    path = bomb(name)
    outcome = apart(unguarded, path, *GUARDS[name])
    assert outcome.grown > most(path) or "memory" in outcome.text.lower(), outcome


# Models


def model_file(folder: Path, **said) -> Path:
    """A run's model, whose file says some things otherwise."""
    folder.mkdir()
    tensors = timm.create_model("test_ottt_vgg", num_classes=2, in_chans=2).state_dict()
    frames = FrameOptions(steps=4, size=(16, 16))
    info = ModelInfo("test_ottt_vgg", ("a", "b"), 2, "nowhere", frames, sensor_size=(16, 16))
    values = {**info.to_metadata(), "sha256": digest(tensors), **said}
    texts = {k: v if k == "deep" else json.dumps(v) for k, v in values.items()}
    data = safetensors.torch.save(dict(tensors), metadata=texts)
    (folder / "best.safetensors").write_bytes(data)
    return folder


SAID = (
    {"in_chans": 10**9},
    {"in_chans": "2"},
    {"classes": ["a"] * 1_000_000},
    {"classes": 2},
    {"steps": 10**12},
    {"size": [10**6, 10**6]},
    {"crop": [10**6, 10**6]},
    {"sensor_size": [30_000, 30_000], "size": None},
    {"deep": "[" * 100_000},
    {"model": "../../x"},
    {"model": ["a"]},
    {"window": 10**30},
    {"min_events": -1},
    {"activity": [1]},
    {"stats": "a"},
    {"reading": 5},
    {"readout": 5},
)


def load_models(folders: list[Path]) -> list[str]:
    return refusals([lambda f=folder: load_trained(f, "cpu") for folder in folders])


def refusals(calls: list[Callable[[], object]]) -> list[str]:
    """Return what each call refuses; the text of what it gave where it refuses nothing."""
    found = []
    for call in calls:
        try:
            found.append(f"gave {str(call())[:60]}")
        except InputError as error:
            found.append(f"refused: {error}" if "\n" not in str(error) else f"lines: {error}")
    return found


def test_model_files_that_say_what_cannot_be(tmp_path):
    intact = model_file(tmp_path / "intact")
    folders = [model_file(tmp_path / str(i), **said) for i, said in enumerate(SAID)]
    for i, head in enumerate(
        (
            {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}},
            {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 0]}},
        )
    ):
        (folder := tmp_path / f"lie{i}").mkdir()
        text = json.dumps(head).encode()
        (folder / "best.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
        folders.append(folder)
    outcome = apart(load_models, [intact, *folders])
    assert outcome.grown < 200e6, outcome
    first, *others = eval(outcome.text)
    assert first.startswith("gave TrainedModel")
    assert all(text.startswith("refused: ") for text in others), others


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that unpack to more than they are, each in a folder of its own."""
    base = {"format": 1, "epoch": 1, "middle": {"batch": 0}, "sha256": "x"}
    deep: list = []
    for _ in range(60):
        deep = [deep, deep]
    one_number = torch.zeros(1).expand(1 << 33)
    contents = ({**base, "w": one_number}, {**base, "x": deep}, {**base, "b": bytearray(9)})
    made = []
    for i, content in enumerate(contents):
        (folder / str(i)).mkdir(parents=True)
        torch.save(content, folder / str(i) / "last.pt")
        made.append(folder / str(i))
    buffer = io.BytesIO()
    torch.save({**base, "w": torch.zeros(1 << 27)}, buffer)
    (folder / "packed").mkdir()
    with (
        zipfile.ZipFile(buffer) as stored,
        zipfile.ZipFile(
            folder / "packed" / "last.pt", "w", zipfile.ZIP_DEFLATED, True, 1
        ) as packed,
    ):
        for member in stored.infolist():
            packed.writestr(member.filename, stored.read(member))
    return [*made, folder / "packed"]


def load_checkpoints(folders: list[Path]) -> list[str]:
    return refusals([lambda f=folder: load_checkpoint(f) for folder in folders])


def load_weights(path: Path) -> str:
    zoo.load_weights(timm.create_model("test_ottt_vgg", num_classes=2, in_chans=2), path)
    return "loaded"


def load_as_torch_does(path: Path) -> str:
    return str(len(torch.load(path, weights_only=True)))


def test_checkpoints_that_unpack(tmp_path):
    folders = checkpoints(tmp_path)
    outcome = apart(load_checkpoints, folders)
    assert outcome.grown < 200e6, outcome
    assert all("last.pt is damaged" in text for text in eval(outcome.text)), outcome
    packed = folders[-1] / "last.pt"
    outcome = apart(load_weights, packed)
    assert "is compressed" in outcome.text and outcome.grown < 100e6, outcome
    assert apart(load_as_torch_does, packed).grown > 5e8  # the control


# Recipes, descriptions, tables

NINE = "[" + ",".join(["*{0}"] * 9) + "]"
LAUGHS = "lr: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"lr: &{chr(98 + i)} {NINE.format(chr(97 + i))}\n" for i in range(12)
)
RECIPES = (
    LAUGHS,
    "lr: " + "[" * 5000,
    "epochs: " + "9" * 10_000,
    "epochs: 0x" + "f" * 100_000,
    "lr: &a [*a]\n",
    "steps: 1000000000000\n",
)


def read_recipes(paths: list[Path]) -> list[str]:
    return refusals([lambda p=path: TrainConfig.from_sources(p) for path in paths])


def test_recipes(tmp_path):
    for i, text in enumerate(RECIPES):
        (tmp_path / f"{i}.yaml").write_text(text)
    outcome = apart(read_recipes, sorted(tmp_path.iterdir()))
    found = eval(outcome.text)
    assert outcome.grown < 100e6 and all(text.startswith("refused: ") for text in found), outcome
    assert max(map(len, found)) < 1000


DESCRIPTIONS = (
    "[" * 100_000,
    '{"sensor_size": [1000000, 1000000]}',
    '{"sensor_size": [30000, 30000]}',
    '{"sensor_size": ' + "9" * 5000 + "}",
)
ROWS = ("a.csv," + "9" * 400 + ",,x", "a.csv,0," + "9" * 400 + "s,x")


def read_descriptions(root: Path) -> list[str]:
    found = []
    for text in DESCRIPTIONS:
        (root / "dataset.json").write_text(text)
        found += refusals([lambda: EventFolder(root, 2, split="train")])
    for row in ROWS:
        (root / "labels.csv").write_text(f"file,start,end,label\n{row}\n")
        found += refusals([lambda: read_labels(root / "labels.csv", [root / "a.csv"])])
    return found


def test_descriptions_and_tables(tmp_path):
    root = write_recordings(tmp_path / "data", {"train": 2, "test": 1})
    outcome = apart(read_descriptions, root)
    found = eval(outcome.text)
    assert outcome.grown < 100e6 and all(text.startswith("refused: ") for text in found), outcome


def test_times_that_jump_give_no_windows_without_end():
    events = np.zeros(2, [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "i1")])
    events["t"][1] = 1 << 60
    with pytest.raises(InputError, match=r"time jumps by about .* s, which are more than"):
        next(windows([events], 100_000, 100_000))


# Images


def packed_images(path: Path, shape: tuple[int, ...], n: int) -> Path:
    def array(value: np.ndarray) -> tuple[bytes, bytes, int]:
        buffer = io.BytesIO()
        np.save(buffer, value)
        return buffer.getvalue(), b"", 0

    head = bombs.npy_head(np.dtype("u1"), shape)
    members = {"class_names.npy": array(np.array(["a", "b"]))}
    members["train_labels.npy"] = array(np.array([0, 1], np.uint8))
    return bombs.zipped(path, {**members, "train_images.npy": (head, b"\0", n)})


def read_images(specs: list[str]) -> list[str]:
    return refusals([lambda s=spec: ImageSet(s, split="train")[0] for spec in specs])


def test_images(tmp_path, monkeypatch):
    promise = packed_images(tmp_path / "promise.npz", (2, 1 << 20, 1 << 19), 0)
    bomb = packed_images(tmp_path / "bomb.npz", (2, 1 << 15, 1 << 14), 1 << 30)
    for label in "ab":
        (tmp_path / "folder" / "train" / label).mkdir(parents=True)
        file = tmp_path / "folder" / "train" / label / "a.png"
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        Image.new("1", (16_000, 16_000)).save(file)
    outcome = apart(read_images, [str(promise), str(bomb), f"folder:{tmp_path / 'folder'}"])
    found = eval(outcome.text)
    assert outcome.grown < 100e6 and all(text.startswith("refused: ") for text in found), outcome
