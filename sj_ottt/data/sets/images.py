"""Still images as data sets: torchvision's, folders of images, and packed npz files.

An item is a float image [C, H, W] in [0, 1], transformed, and its label. A network sees it at every
time step; or it is encoded as a sequence, see `ENCODINGS`.
"""

import copy
import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2

from sj_ottt.data.frames.frames import check_size
from sj_ottt.data.recordings.folders import PARTS
from sj_ottt.errors import InputError

__all__ = ["IMAGE_SETS", "ImageSet", "ImageStats"]

# Photographs of any size come as squares of this many pixels where no size is given.
_PHOTO_SIZE = (224, 224)
_MEASURED = 5_000
# Bytes that a packed file may hold, for each of its own and at the least: images are packed to a
# half, drawings to a twentieth.
_DENSEST, _FEW = 100, 1 << 28
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

Transform = Callable[[torch.Tensor], torch.Tensor]


class ImageStats(NamedTuple):
    """Statistics of training images, in units of the full range.

    Attributes:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
    """

    mean: Sequence[float]
    std: Sequence[float]


_IMAGENET = ImageStats((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class _Images(NamedTuple):
    """One part of a data set.

    Attributes:
        read: Gives image i, uint8 [C, H, W].
        targets: Labels, int64 [n].
        classes: Names of the classes.
        stats: Of the training images; None where they are to be measured.
        size: (height, width) of every image; None where they differ.
    """

    read: Callable[[int], torch.Tensor]
    targets: np.ndarray
    classes: tuple[str, ...]
    stats: ImageStats | None
    size: tuple[int, int] | None


class ImageSet(Dataset):
    """Labelled images as a PyTorch data set.

    They come in one of these forms:

    - ``cifar10:DIR``, ``cifar100:DIR``, ``mnist:DIR``, ``fashionmnist:DIR``, ``imagenet:DIR``: what
      the torchvision class of that name reads in a folder (nothing is downloaded);
    - ``folder:DIR``: ``DIR/{train,test}/<class>/`` of images (``val`` for ``test`` will do);
    - a file ``.npz`` with, for either part, ``<part>_labels`` uint8 [n] and ``<part>_images`` uint8
      [n, H, W] or [n, H, W, 3], or JPEG files end to end in ``<part>_jpeg`` uint8 with
      ``<part>_offsets`` int64 [n + 1]; and ``class_names``.

    Args:
        spec: The data set.
        split: ``"train"`` or ``"test"``.
        size: (height, width) in pixels that `fit` brings images to; None keeps theirs, or takes 224
            x 224 where they differ in size.
        stats: Of the images that a network learned from; None takes those of this data set's
            training images.
        transform: Applied to each image, which may have any size before it.
        encode: Makes a sequence [T, ...] of each transformed image, see `ENCODINGS`; None leaves
            it an image.

    Attributes:
        classes: Names of the classes.
        targets: Labels, int64 [n].
        spec: As given.
        split: As given.
        native_size: (height, width) of the images as stored; None where they differ.
        frame_size: (height, width) after `fit`.
        mean: Mean of each channel, of ``stats``.
        std: Standard deviation of each channel, of ``stats``.

    Raises:
        InputError: The data set is missing, damaged or of another form, or an argument is wrong.
    """

    def __init__(
        self,
        spec: str,
        split: str | None,
        *,
        size: tuple[int, int] | None = None,
        stats: ImageStats | None = None,
        transform: Transform | None = None,
        encode: Transform | None = None,
    ) -> None:
        if split is None or split not in PARTS:
            raise InputError(f"split={split!r}: {spec} has the parts train and test, choose one")
        self.spec, self.split = str(spec), split
        self.transform, self.encode = transform, encode
        images = _open(self.spec, split)
        self._read, self.targets, self.classes = images.read, images.targets, images.classes
        self.native_size = images.size
        frame_size = None if size is None else check_size("size", size)
        self.frame_size = frame_size or images.size or _PHOTO_SIZE
        stats = stats or images.stats
        stats = stats or _measure(images if split == "train" else _open(self.spec, "train"))
        self.mean, self.std = (tuple(float(v) for v in values) for values in stats)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return an image, float32 [C, H, W] in [0, 1] before the transform, and its label.

        With ``encode`` it is a sequence [T, ...] instead.
        """
        image = self._read(int(index)).float() / 255
        if self.transform is not None:
            image = self.transform(image)
        if self.encode is not None:
            image = self.encode(image)
        return image, int(self.targets[index])

    @property
    def still(self) -> bool:
        """Whether an item is an image [C, H, W], not a sequence [T, ...]."""
        return self.encode is None

    def with_transform(self, transform: Transform | None, encode: Transform | None = None) -> Self:
        """Return the same images, shared in memory, with another transform and encoding."""
        other = copy.copy(self)
        other.transform, other.encode = transform, encode
        return other

    def unprocessed(self) -> Self:
        """Return the same images to look at: brought to one size, nothing else."""
        fit = self.fit()
        return self.with_transform(v2.Compose(fit) if fit else None)

    def fit(self, augment: bool = False) -> list[Transform]:
        """Return the transforms that bring every image to `frame_size`.

        Photographs of differing sizes are cut: a random part of random shape with `augment`, as
        usual on ImageNet, else the middle seven eighths.
        """
        if self.native_size == self.frame_size:
            return []
        if self.native_size is not None:
            return [v2.Resize(self.frame_size)]
        if augment:
            return [v2.RandomResizedCrop(self.frame_size)]
        return [v2.Resize(max(self.frame_size) * 8 // 7), v2.CenterCrop(self.frame_size)]

    def identity(self) -> list[list[Any]]:
        """Return what tells these images from others, in values that JSON can hold."""
        return [[self.split, len(self), hashlib.sha256(self.targets.tobytes()).hexdigest()]]

    def info(self) -> dict[str, Any]:
        """Describe the data set in values that JSON can hold."""
        per_class = np.bincount(self.targets, minlength=len(self.classes)).tolist()
        kind, _, directory = self.spec.rpartition(":")
        return {
            "root": f"{kind}:{Path(directory).name}".lstrip(":"),
            "split": self.split,
            "samples": len(self),
            "samples_per_class": dict(zip(self.classes, per_class, strict=True)),
            "frame_size": list(self.frame_size),
            "mean": list(self.mean),
            "std": list(self.std),
        }


# Readers


def _array_image(images: np.ndarray, index: int) -> torch.Tensor:
    image = torch.from_numpy(np.ascontiguousarray(images[index]))
    return image.unsqueeze(0) if image.dim() == 2 else image.permute(2, 0, 1)


def _jpeg_image(data: np.ndarray, offsets: np.ndarray, source: str, index: int) -> torch.Tensor:
    coded = io.BytesIO(data[offsets[index] : offsets[index + 1]].tobytes())
    try:
        return v2.functional.pil_to_tensor(Image.open(coded).convert("RGB"))
    except _UNREADABLE as error:
        raise InputError(f"{source}: image {index} is no JPEG file; pack it again") from error


def _file_image(files: Sequence[tuple[str, int]], index: int) -> torch.Tensor:
    source = files[index][0]
    try:
        with Image.open(source) as image:
            return v2.functional.pil_to_tensor(_rgb(image, source))
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"{source}: no readable image; remove or replace it") from error


def _rgb(image: Image.Image, source: str) -> Image.Image:
    """Return an image with 8 bits a colour; Pillow would clip what has more, to white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(
            f"{source}: its pixels have 32 bits, and nothing says which value is white: save it "
            "with 8 or 16"
        )
    return image.convert("RGB")


def _torchvision(name: str, stats: ImageStats, root: Path, split: str) -> _Images:
    try:
        found = getattr(datasets, name)(root, train=split == "train")
    except RuntimeError as error:
        call = f"torchvision.datasets.{name}({str(root)!r}, download=True)"
        raise InputError(
            f"{root}: torchvision finds no {name} there; fetch it with Python's {call}"
        ) from error
    images, targets = np.asarray(found.data), np.asarray(found.targets, np.int64)
    return _Images(
        partial(_array_image, images), targets, tuple(found.classes), stats, images.shape[1:3]
    )


def _imagenet(root: Path, split: str) -> _Images:
    try:
        found = datasets.ImageNet(root, split="train" if split == "train" else "val")
    except RuntimeError as error:
        raise InputError(
            f"{root}: torchvision finds no ImageNet there ({' '.join(str(error).split())}); put "
            "the archives of the training and validation images and of the devkit there"
        ) from error
    # The first of an object's several names, and a number where two objects share that.
    names = [words[0] for words in found.classes]
    unique = [n if names.count(n) == 1 else f"{n} {i}" for i, n in enumerate(names)]
    targets = np.asarray(found.targets, np.int64)
    return _Images(partial(_file_image, found.samples), targets, tuple(unique), _IMAGENET, None)


def _folder(root: Path, split: str) -> _Images:
    names = ("train",) if split == "train" else ("test", "val")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; check the path")
    part = next((root / name for name in names if (root / name).is_dir()), None)
    if part is None:
        raise InputError(
            f"{root}: holds no folder {' or '.join(names)}; put the class folders of images "
            "into train and test"
        )
    try:
        found = datasets.ImageFolder(part)
    except FileNotFoundError as error:
        raise InputError(
            f"{part}: {str(error).split(' Supported')[0].rstrip('.')}; put the images of each "
            "class into a folder named after the class"
        ) from error
    targets = np.asarray(found.targets, np.int64)
    return _Images(
        partial(_file_image, found.samples), targets, tuple(found.classes), _IMAGENET, None
    )


def _packed(path: Path, split: str) -> _Images:
    def entry(name: str) -> np.ndarray:
        if name not in archive:
            entries = ", ".join(archive.files) or "nothing"
            raise InputError(f"{path}: lacks the array {name!r} (it holds {entries}); see ImageSet")
        return archive[name]

    try:
        with zipfile.ZipFile(path) as packed:
            held = sum(member.file_size for member in packed.infolist())
        if held > max(_FEW, _DENSEST * path.stat().st_size):
            raise InputError(
                f"{path}: unpacks to {held} bytes, far more than images of its size hold; pack it "
                "again, uncompressed, if they are meant"
            )
        with np.load(path, allow_pickle=False) as archive:
            targets = entry(f"{split}_labels").astype(np.int64)
            classes = tuple(str(name) for name in entry("class_names"))
            if f"{split}_jpeg" in archive:
                offsets = entry(f"{split}_offsets")
                data = entry(f"{split}_jpeg")
                read = partial(_jpeg_image, data, offsets, str(path))
                size, fits = None, len(offsets) == len(targets) + 1
            else:
                images = entry(f"{split}_images")
                fits = images.ndim in (3, 4) and len(images) == len(targets)
                fits = fits and images.dtype == np.uint8 and images.shape[3:] in ((), (3,))
                read, size = partial(_array_image, images), images.shape[1:3]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except InputError:
        raise
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: no readable npz file; copy or pack it again") from error
    if not fits or not len(targets) or not 0 <= targets.min() <= targets.max() < len(classes):
        raise InputError(
            f"{path}: its {split} images, labels and class names do not fit together; see ImageSet"
        )
    if size is None:
        first = read(0)
        size = tuple(first.shape[1:])
    return _Images(read, targets, classes, None, size)


def _measure(images: _Images) -> ImageStats:
    """Return mean and standard deviation of each channel over the first images, as fractions."""
    sample = torch.stack([images.read(i) for i in range(min(_MEASURED, len(images.targets)))])
    # A channel at a time: float64 copies of colour images are large.
    channels = [sample[:, c].double() / 255 for c in range(sample.shape[1])]
    return ImageStats([float(c.mean()) for c in channels], [float(c.std()) for c in channels])


IMAGE_SETS: dict[str, Callable[[Path, str], _Images]] = {
    "cifar10": partial(
        _torchvision, "CIFAR10", ImageStats((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    ),
    "cifar100": partial(
        _torchvision, "CIFAR100", ImageStats((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    ),
    "mnist": partial(_torchvision, "MNIST", ImageStats((0.1307,), (0.3081,))),
    "fashionmnist": partial(_torchvision, "FashionMNIST", ImageStats((0.2860,), (0.3530,))),
    "imagenet": _imagenet,
    "folder": _folder,
}


def _open(spec: str, split: str) -> _Images:
    kind, colon, directory = spec.partition(":")
    if colon and kind in IMAGE_SETS:
        return IMAGE_SETS[kind](Path(directory).expanduser(), split)
    return _packed(Path(spec).expanduser(), split)
