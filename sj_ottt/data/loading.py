"""Batches of a data set, time first, as the networks run."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from sj_ottt.errors import InputError

__all__ = ["batches", "collate_for", "collate_still_images", "collate_time_first"]


def collate_time_first(items: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Stack sequences to a batch that begins with time, as `train_step` and `predict` take it.

    Args:
        items: N samples: a sequence [T, ...] and its label each.

    Returns:
        The sequences [T, N, ...], and the labels, int64 [N].
    """
    samples, labels = zip(*items, strict=True)
    return torch.stack(samples, dim=1), torch.tensor(labels)


def collate_still_images(items: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Stack still images, which `train_step` and `predict` show for ``steps`` time steps.

    Args:
        items: N samples: an image [C, H, W] and its label each.

    Returns:
        The images [N, C, H, W], and the labels, int64 [N].
    """
    samples, labels = zip(*items, strict=True)
    return torch.stack(samples), torch.tensor(labels)


def collate_for(
    dataset: Dataset,
) -> Callable[[Iterable[tuple[Tensor, int]]], tuple[Tensor, Tensor]]:
    """Return what makes batches of a data set: one function for sequences, one for still images.

    Args:
        dataset: An `EventFolder`, an `ImageSet`, or a `Subset` of one.

    Raises:
        InputError: Another data set, which does not say which of the two it holds.
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    still = getattr(dataset, "still", None)
    if still is None:
        raise InputError(
            f"{type(dataset).__name__} does not say whether it holds still images: give it an "
            "attribute still, True or False, or choose a collate function yourself"
        )
    return collate_still_images if still else collate_time_first


def batches(
    dataset: Dataset, batch_size: int, workers: int, generator: torch.Generator | None = None
) -> DataLoader[Any]:
    """Return batches of a data set, shuffled if there is a generator to shuffle with.

    Args:
        dataset: An `EventFolder`, an `ImageSet`, or a `Subset` of one.
        batch_size: N, samples in a batch.
        workers: Processes that load; 0 loads in this one.
        generator: Draws the order.

    Raises:
        InputError: As `collate_for`.
    """
    return DataLoader(
        dataset,
        batch_size,
        shuffle=generator is not None,
        num_workers=workers,
        collate_fn=collate_for(dataset),
        generator=generator,
    )
