"""What a network gets to see of a data set: samples chosen, framed, augmented and stacked."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sj_ottt.data import ENCODINGS, EventFolder, ImageSet, open_dataset, transforms
from sj_ottt.data.recordings.windows import Window, split_for_validation
from sj_ottt.errors import InputError
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.sections import AugmentationOptions

__all__ = [
    "augmented",
    "batches",
    "choose",
    "open_part",
    "raw",
    "split_indices",
    "stack",
    "static_steps",
]

# What is done to training samples where an option is not 0, in this order, and what comes last.
AUGMENTATIONS = {
    "drop_events": transforms.DropEvents,
    "time_jitter": transforms.JitterTime,
    "flip": transforms.RandomFlip,
    "rotate": transforms.RandomRotation,
    "shift": transforms.RandomShift,
}
LAST_AUGMENTATIONS = {"cutout": transforms.Cutout}
# Options that mean something for recordings only, and what stands for leaving them out.
OF_RECORDINGS = {
    "split_by": "count",
    "frames": "counts",
    "tau_us": None,
    "crop": None,
    "hot_pixels": None,
    "drop_events": 0.0,
    "time_jitter": 0.0,
}

Stats = tuple[Sequence[float], Sequence[float]]


def open_part(
    spec: str,
    split: str,
    *,
    steps: int,
    size: tuple[int, int] | None = None,
    normalize: bool = True,
    encoding: str = "direct",
    stats: Stats | None = None,
    **framing: Any,
) -> EventFolder | ImageSet:
    """Open a part of a data set as a network gets to see it, without augmentation.

    Args:
        spec: See `data.open_dataset`, as for `split`.
        split: ``"train"`` or ``"test"``.
        steps: As all others in `FrameOptions`.
        size: Of frames or images.
        normalize: Whether to scale recordings and standardize images.
        encoding: Of images.
        stats: Mean and standard deviation of each channel for images; those of the data set's
            training images if not given.
        **framing: The rest of `FrameOptions`.

    Raises:
        InputError: Bad data, or an option that does not go with the kind of data.
    """
    size = None if size is None else tuple(size)
    dataset = open_dataset(spec, split=split, steps=steps, size=size, **framing)
    if isinstance(dataset, ImageSet):
        dataset.mean, dataset.std = stats or (dataset.mean, dataset.std)
    elif encoding != "direct":
        raise InputError(
            f"encoding={encoding} makes sequences of still images, but {spec} holds recordings: "
            "leave it out"
        )
    dataset.transform = _chain(dataset, steps, normalize, encoding)
    return dataset


def augmented(cfg: TrainConfig, dataset: EventFolder | ImageSet) -> Callable | None:
    """Return the transform of training samples: that of `open_part`, with augmentation.

    Raises:
        InputError: An option for recordings, but the data set holds still images.
    """
    if isinstance(dataset, ImageSet):
        options = cfg.flat()
        for name, absent in OF_RECORDINGS.items():
            if options[name] != absent:
                raise InputError(
                    f"{name}={options[name]} is for recordings, but {cfg.dataset.data} holds still "
                    "images: leave it out"
                )
    frames = cfg.frames
    return _chain(dataset, frames.steps, frames.normalize, frames.encoding, cfg.augmentation)


def raw(dataset: EventFolder | ImageSet) -> Callable | None:
    """Return the transform that gives samples to look at: of one size, nothing else."""
    return _chain(dataset, 1, False, "direct")


def _chain(
    dataset: EventFolder | ImageSet,
    steps: int,
    normalize: bool,
    encoding: str,
    augmentation: AugmentationOptions | None = None,
) -> Callable | None:
    images = isinstance(dataset, ImageSet)
    chain: list[Callable] = dataset.fit(augmentation is not None) if images else []
    chain += _augmentations(AUGMENTATIONS, augmentation)
    if normalize and images and encoding != "poisson":  # there, an intensity is a probability
        chain.append(transforms.Normalize(dataset.mean, dataset.std))
    elif normalize and not images:
        chain.append(transforms.NormalizeFrames())
    chain += _augmentations(LAST_AUGMENTATIONS, augmentation)
    if encode := ENCODINGS[encoding](steps):
        chain.append(encode)
    return transforms.Compose(chain) if chain else None


def _augmentations(
    kinds: dict[str, Callable], augmentation: AugmentationOptions | None
) -> list[Callable]:
    if augmentation is None:
        return []
    values = {name: getattr(augmentation, name) for name in kinds}
    return [kind(values[name]) for name, kind in kinds.items() if values[name]]


def split_indices(
    targets: np.ndarray, fraction: float, seed: int, windows: Sequence[Window] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split samples into train and validation, the same share of each class.

    Args:
        targets: Class of each sample [n].
        fraction: Share for validation; above 0, each class with two samples gives at least one.
        seed: The split depends on nothing else.
        windows: What the samples are of longer recordings [n], if they are: they may overlap, so
            they part as `split_for_validation` says.

    Returns:
        Sorted indices of both parts.
    """
    if windows is not None and fraction:
        part = split_for_validation(windows, fraction, seed)
        return np.flatnonzero(part == 0), np.flatnonzero(part == 1)
    rng = np.random.default_rng(seed)
    held = []
    for label in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == label))
        wanted = max(1, round(fraction * len(members))) if fraction else 0
        held.append(members[: min(wanted, len(members) - 1)])
    val = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(targets)), val), val


def choose(targets: np.ndarray, n: int | None, seed: int) -> np.ndarray:
    """Choose n samples, as many of each class as of any other while they last; None: all.

    A larger n adds to the choice of a smaller one.

    Returns:
        Sorted indices.
    """
    if n is None:
        return np.arange(len(targets))
    order = np.random.default_rng(seed).permutation(len(targets))
    rank = np.empty(len(targets), np.int64)
    for label in np.unique(targets):
        members = order[targets[order] == label]
        rank[members] = np.arange(len(members))
    return np.sort(np.lexsort((targets, rank))[:n])


def stack(items: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack sequences [T, ...] to a batch [T, N, ...], time first, as the models run.

    Still images [C, H, W] become a batch [N, C, H, W], which is shown at every time step.
    """
    samples, labels = zip(*items, strict=True)
    return torch.stack(samples, dim=int(samples[0].dim() != 3)), torch.tensor(labels)


def static_steps(batch: torch.Tensor, steps: int) -> int | None:
    """Return T for a batch of still images [N, C, H, W], None for one of sequences."""
    return steps if batch.dim() == 4 else None


def batches(
    dataset: Dataset, batch_size: int, workers: int, generator: torch.Generator | None = None
) -> DataLoader:
    """Return batches of a data set, shuffled if there is a generator to shuffle with."""
    return DataLoader(
        dataset,
        batch_size,
        shuffle=generator is not None,
        num_workers=workers,
        collate_fn=stack,
        generator=generator,
    )
