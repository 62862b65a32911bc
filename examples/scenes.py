"""Scenes to find objects in: real digits and, where there are any, packed images on clutter."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.ops import box_iou

from sj_ottt.data import ImageSet
from sj_ottt.errors import InputError

SIZE = 64
"""Height and width of a scene in pixels."""
SIDES = (14, 30)
"""Least and greatest length of an object's longer side in pixels."""
TRAIN_DIGITS = 1400  # of the 1797, in the set's own order; the rest is held out
INK = 0.2  # no pixel of an image's empty border is brighter


class Items(NamedTuple):
    """What scenes show.

    Attributes:
        classes: Names of the classes.
        images: Of each class the grey images [H, W] in [0, 1], cut to their objects.
    """

    classes: tuple[str, ...]
    images: list[list[Tensor]]


class Scene(NamedTuple):
    """A scene and what is in it.

    Attributes:
        image: [1, SIZE, SIZE] in [0, 1].
        boxes: x1, y1, x2, y2 in pixels, [n, 4].
        labels: int64 [n].
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor


def load_items(part: str, packed: Path | None = None) -> Items:
    """Load scikit-learn's digits, and after them the images of a packed file.

    Args:
        part: "train" or "test"; no image is in both.
        packed: An npz file as in `sj_ottt.data.ImageSet`, of grey images such as Fashion-MNIST.

    Raises:
        InputError: The file is bad, its images are not grey, or a class has none.
    """
    digits = load_digits()
    chosen = slice(TRAIN_DIGITS) if part == "train" else slice(TRAIN_DIGITS, None)
    images: list[list[Tensor]] = [[] for _ in digits.target_names]
    for image, label in zip(digits.images[chosen], digits.target[chosen], strict=True):
        images[label].append(_cut(torch.tensor(image / 16, dtype=torch.float32)))
    classes = tuple(map(str, digits.target_names))
    if packed is None:
        return Items(classes, images)
    more = ImageSet(str(packed), part)
    if len(more[0][0]) != 1:
        raise InputError(f"{packed}: holds images in colour, but scenes are grey")
    images += [[] for _ in more.classes]
    for image, label in (more[i] for i in range(len(more))):
        images[len(classes) + label].append(_cut(image[0]))
    items = Items(classes + more.classes, images)
    for name, found in zip(*items, strict=True):
        if not found:
            raise InputError(f"{packed}: has no {part} image of class {name}")
    return items


def _cut(image: Tensor) -> Tensor:
    """Return an image [H, W] without its empty border."""
    rows, columns = ((image > INK).any(dim).nonzero() for dim in (1, 0))
    if not len(rows):
        return image
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _resize(image: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    return F.interpolate(image[None, None], (height, width), mode=mode)[0, 0]


def _choose(items: Items, rng: np.random.Generator) -> tuple[int, Tensor]:
    """Draw a class, each as likely as any other, and one of its images."""
    label = int(rng.integers(len(items.classes)))
    return label, items.images[label][rng.integers(len(items.images[label]))]


def draw_scene(items: Items, rng: np.random.Generator, most: int = 4) -> Scene:
    """Draw a scene: uneven light, noise, fragments of items, and 1 to `most` whole items.

    Objects hardly overlap.
    """
    light = torch.from_numpy(0.35 * rng.random((4, 4), np.float32))
    scene = _resize(light, SIZE, SIZE, "bicubic")
    scene += torch.from_numpy(0.05 * rng.standard_normal((SIZE, SIZE), np.float32))
    for _ in range(rng.integers(4, 10)):
        piece = _resize(_choose(items, rng)[1], *rng.integers(14, 24, 2))
        height, width = rng.integers(4, 8, 2)
        y, x = rng.integers(piece.shape[0] - height), rng.integers(piece.shape[1] - width)
        _paste(scene, piece[y : y + height, x : x + width], rng, 0.3, 0.7)
    boxes, labels = torch.zeros(0, 4), []
    for _ in range(rng.integers(1, most + 1)):
        label, item = _choose(items, rng)
        side = np.exp(rng.uniform(*np.log(SIDES)))
        item = _resize(item, *(max(4, round(side * n / max(item.shape))) for n in item.shape))
        for _ in range(20):
            y, x = (int(rng.integers(SIZE - n + 1)) for n in item.shape)
            box = torch.tensor([[x, y, x + item.shape[1], y + item.shape[0]]]).float()
            if not (box_iou(box, boxes) > 0.02).any():
                _paste(scene, item, rng, 0.7, 1.0, at=(y, x))
                boxes, labels = torch.cat((boxes, box)), [*labels, label]
                break
    return Scene(scene.clamp(0, 1)[None], boxes, torch.tensor(labels))


def _paste(
    scene: Tensor,
    image: Tensor,
    rng: np.random.Generator,
    dim: float,
    bright: float,
    at: tuple[int, int] | None = None,
) -> None:
    """Lay a shape over the scene in a random grey, as opaque as its image is bright.

    Args:
        scene: [SIZE, SIZE] in [0, 1]; is changed.
        image: [H, W] in [0, 1].
        rng: Draws the grey, and the position where ``at`` is None.
        dim: The darkest grey.
        bright: The brightest grey.
        at: (y, x) of the image's upper left corner.
    """
    y, x = at or (int(rng.integers(SIZE - n + 1)) for n in image.shape)
    target = scene[y : y + image.shape[0], x : x + image.shape[1]]
    target.lerp_(torch.full_like(image, rng.uniform(dim, bright)), image.clamp(0, 1))
