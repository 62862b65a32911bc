"""Images in a packed npz file: noise with a bright half, which the class says."""

import io

import numpy as np
from PIL import Image

from sj_ottt.run.config import TrainConfig

NAMES = ("left", "right")


def drawings(n, size=(12, 10), seed=0, colours=0):
    """Images of noise whose left or right half is brighter, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 60, (n, *size, *([colours] if colours else [])), np.uint8)
    half = size[1] // 2
    for image, label in zip(images, labels, strict=True):
        image[:, label * half : label * half + half] += 150
    return images, labels.astype(np.uint8)


def pack(path, jpeg=False, parts=(("train", 12), ("test", 6)), colours=0, size=(12, 10), **changes):
    arrays = {"class_names": np.array(NAMES)}
    for part, n in parts:
        images, arrays[f"{part}_labels"] = drawings(n, size, seed=len(part), colours=colours)
        if jpeg:
            files = [encode(image, "JPEG") for image in images]
            arrays[f"{part}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
            arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, files)])
        else:
            arrays[f"{part}_images"] = images
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez(path, **arrays)
    return path


def encode(image, kind):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def image_run(tmp_path, **changes):
    """The configuration of a run of seconds on such images."""
    data = tmp_path / "x.npz"
    if not data.exists():
        pack(data, parts=(("train", 40), ("test", 10)))
    base = {
        "model": "test_ottt_vgg", "data": str(data), "out": str(tmp_path / "run"), "steps": 3,
        "epochs": 2, "batch_size": 10, "lr": 0.1, "device": "cpu", "flip": 0.5, "shift": 1,
        "cutout": 2,
    }  # fmt: skip
    return TrainConfig(**{**base, **changes})
