"""Still images: every form that is read, how they are fitted and encoded, and bad input."""

import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from sj_ottt import InputError
from sj_ottt.data import ENCODINGS, Cutout, ImageSet, open_dataset
from sj_ottt.run import training
from tests.conftest import SHARED
from tests.helpers import write_recordings
from tests.packed_images import NAMES, drawings, encode, image_run, pack

# Forms


def test_packed_arrays(tmp_path):
    data = open_dataset(str(pack(tmp_path / "x.npz")), split="test", steps=3)
    assert isinstance(data, ImageSet) and len(data) == 6
    assert data.classes == NAMES and data.frame_size == (12, 10)
    images, labels = drawings(6, seed=4)
    for i in range(6):
        image, label = data[i]
        assert torch.equal(image, torch.from_numpy(images[i])[None] / 255) and label == labels[i]
    # Over the training images, also for the test part.
    pixels = drawings(12, seed=5)[0] / 255
    assert data.mean == pytest.approx([pixels.mean()])
    assert data.std == pytest.approx([pixels.std(ddof=1)])
    info = json.loads(json.dumps(data.info()))
    assert info["root"] == "x.npz" and info["samples_per_class"] == {"left": 3, "right": 3}


def test_packed_colours_and_jpeg(tmp_path):
    plain = ImageSet(str(pack(tmp_path / "a.npz", colours=3)), "train")
    coded = ImageSet(str(pack(tmp_path / "b.npz", jpeg=True, colours=3)), "train")
    assert plain[5][0].shape == coded[5][0].shape == (3, 12, 10)
    assert len(coded.mean) == 3 and coded.native_size == (12, 10)
    assert (plain[5][0] - coded[5][0]).abs().mean() < 0.1 and plain[5][1] == coded[5][1]
    assert (plain[5][0] - coded[4][0]).abs().mean() > 0.2


def test_torchvision_mnist(tmp_path):
    images, labels = drawings(6, (28, 28))
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = b"\0\0\x08\x03" + np.array(images.shape, ">u4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = b"\0\0\x08\x01" + np.array(labels.shape, ">u4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    data = open_dataset(f"fashionmnist:{tmp_path}", split="test", steps=1)
    assert data.classes[9] == "Ankle boot" and data.mean == (0.2860,)
    assert torch.equal(data[3][0], torch.from_numpy(images[3])[None] / 255) and data[3][1] == 1


def test_torchvision_cifar(tmp_path, monkeypatch):
    images, labels = drawings(4, (32, 32), colours=3)
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    rows = images.transpose(0, 3, 1, 2).reshape(4, -1)
    (root / "test_batch").write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))

    def entry(name):
        return [name, hashlib.md5((root / name).read_bytes()).hexdigest()]

    monkeypatch.setattr(datasets.CIFAR10, "test_list", [entry("test_batch")])
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [entry("test_batch")])
    name, md5 = entry("batches.meta")
    meta = {"filename": name, "key": "label_names", "md5": md5}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    data = open_dataset(f"cifar10:{tmp_path}", split="test", steps=1)
    expected = torch.from_numpy(images[2]).permute(2, 0, 1) / 255
    assert torch.equal(data[2][0], expected) and data.frame_size == (32, 32)


@pytest.fixture
def folder(tmp_path):
    """Photographs of two sizes, one of them grey."""
    for part, n in (("train", 6), ("val", 4)):
        for i, (image, label) in enumerate(zip(*drawings(n, (40, 60)), strict=True)):
            place = tmp_path / "photos" / part / NAMES[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.png").write_bytes(encode(image[: 30 + 10 * (i % 2)], "PNG"))
    return tmp_path / "photos"


def test_folder_of_photographs(folder):
    data = open_dataset(f"folder:{folder}", split="test", steps=1, size=(16, 20))
    assert data.classes == NAMES and len(data) == 4 and data[0][0].shape == (3, 30, 60)
    torch.manual_seed(0)
    for augment in (False, True):
        for transform in data.fit(augment):
            assert transform is not None
        fitted = data[0][0]
        for transform in data.fit(augment):
            fitted = transform(fitted)
        assert fitted.shape == (3, 16, 20)
    assert open_dataset(f"folder:{folder}", split="train", steps=1).frame_size == (224, 224)


def test_size_resizes_images_of_one_size(tmp_path):
    data = ImageSet(str(pack(tmp_path / "x.npz")), "train", size=(6, 5))
    (resize,) = data.fit()
    assert resize(data[0][0]).shape == (1, 6, 5) and data.frame_size == (6, 5)
    assert ImageSet(str(pack(tmp_path / "x.npz")), "train").fit(augment=True) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10_jpeg"])
def test_shared_files(name):
    path = SHARED / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is missing: point SJ_OTTT_SHARED_DATA to a folder with it")
    data = ImageSet(str(path), "test")
    channels = 1 if name == "fashion_mnist" else 3
    assert len(data) == 10_000 and len(data.classes) == 10
    assert data[9_999][0].shape[0] == channels and data[0][0].max() > 0.5
    expected = ((0.2860,), (0.4914, 0.4822, 0.4465))[channels // 3]
    assert data.mean == pytest.approx(expected, abs=0.01)


# Encodings and augmentation


def test_encodings():
    image = torch.rand(3, 4, 5)
    assert ENCODINGS["direct"](7) is None
    rows = ENCODINGS["rows"](7)(image)
    assert rows.shape == (4, 15) and torch.equal(rows[2].view(5, 3).t(), image[:, 2])
    pixels = ENCODINGS["pixels"](7)(image)
    assert pixels.shape == (20, 3) and torch.equal(pixels[7], image[:, 1, 2])
    permuted = ENCODINGS["permuted"](7)(image)
    assert torch.equal(permuted, ENCODINGS["permuted"](7)(image))
    assert not torch.equal(permuted, pixels)
    assert torch.equal(permuted.sort(0).values, pixels.sort(0).values)
    torch.manual_seed(0)
    spikes = ENCODINGS["poisson"](4000)(image)
    assert spikes.shape == (4000, 3, 4, 5) and set(spikes.unique().tolist()) == {0.0, 1.0}
    assert (spikes.mean(0) - image).abs().max() < 0.04


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "lacks the array 'test_labels'"),
        ({"test_images": None}, "lacks the array 'test_images'"),
        ({"class_names": None}, "lacks the array 'class_names'"),
        ({"test_labels": np.zeros(5, np.uint8)}, "do not fit together"),
        ({"test_labels": np.full(6, 2, np.uint8)}, "do not fit together"),
        ({"test_images": np.zeros((6, 12, 10), np.float32)}, "do not fit together"),
        ({"test_images": np.zeros((6, 12, 10, 2), np.uint8)}, "do not fit together"),
        ({"class_names": np.array([object()])}, "no readable npz"),
    ],
)
def test_wrong_packed_files(tmp_path, changes, message):
    path = pack(tmp_path / "x.npz", **changes)
    with pytest.raises(InputError, match=message) as caught:
        ImageSet(str(path), "test")
    assert str(path) in str(caught.value)


def test_damaged_packed_file(tmp_path):
    path = pack(tmp_path / "x.npz")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match="no readable npz"):
        ImageSet(str(path), "test")
    path = pack(tmp_path / "y.npz", jpeg=True, colours=3)
    arrays = dict(np.load(path))
    arrays["train_jpeg"][:20] = 0
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="image 0 is no JPEG"):
        ImageSet(str(path), "train")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar10:{}", r"torchvision finds no CIFAR10 .* download=True"),
        ("mnist:{}", "torchvision finds no MNIST"),
        ("imagenet:{}", "torchvision finds no ImageNet"),
        ("folder:{}", "holds no folder train"),
        ("{}/none.npz", "no such file"),
        ("cifar:{}", r"no such data set or folder; did you mean cifar10:DIR\?"),
        ("nmnist:{}", r"Train.zip: missing; download NMNIST from https"),
        ("cifar10dvs:{}", r"airplane.zip: missing"),
    ],
)
def test_missing_sets(tmp_path, spec, message):
    with pytest.raises(InputError, match=message):
        open_dataset(spec.format(tmp_path), split="train", steps=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dtype", "factor"), [(np.uint8, 1), (np.uint16, 256), (np.int32, 1), (np.float32, 1)]
)
def test_grey_images_of_more_than_eight_bits(folder, dtype, factor):
    grey = (np.arange(64).reshape(8, 8) * 3 * factor).astype(dtype)
    for file in folder.glob("*/*/*.png"):
        file.unlink()
        Image.fromarray(grey).save(file.with_suffix(".tif"))
    images = ImageSet(f"folder:{folder}", "train", stats=((0.0,), (1.0,)), size=(8, 8))
    if dtype in (np.uint8, np.uint16):
        shown = (255 * images[0][0]).round()
        assert torch.equal(shown, (3.0 * torch.arange(64)).view(8, 8).expand_as(shown))
        return
    with pytest.raises(InputError, match=r"\.tif: its pixels have 32 bits"):
        images[0]


def test_other_bad_input(tmp_path, folder):
    path = str(pack(tmp_path / "x.npz"))
    with pytest.raises(InputError, match="split=None"):
        open_dataset(path, split=None, steps=2)
    bands = write_recordings(tmp_path / "bands", {"train": 1, "test": 1})
    with pytest.raises(InputError, match=r"encoding=rows .*bands holds recordings"):
        training.train(image_run(tmp_path, data=str(bands), encoding="rows"))
    with pytest.raises(InputError, match=r"crop=\(4, 4\) is for recordings"):
        training.train(image_run(tmp_path, crop=(4, 4)))
    with pytest.raises(InputError, match=r"split_by=duration is for recordings"):
        training.train(image_run(tmp_path, split_by="duration"))
    (folder / "train" / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        open_dataset(f"folder:{folder}", split="train", steps=1)
    (folder / "val" / "left" / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png: no readable image"):
        open_dataset(f"folder:{folder}", split="test", steps=1)[0]
    with pytest.raises(InputError, match="side="):
        Cutout(-1)
