"""Batches of a data set, time first, as the networks run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
)

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
    dataset: Dataset,
    batch_size: int,
    workers: int,
    generator: torch.Generator | None = None,
    part: tuple[int, int] | None = None,
) -> DataLoader[Any]:
    """Return batches of a data set, shuffled if there is a generator to shuffle with.

    Args:
        dataset: An `EventFolder`, an `ImageSet`, or a `Subset` of one.
        batch_size: N, samples in a batch; of all processes together.
        workers: Processes that load; 0 loads in this one.
        generator: Draws the order.
        part: (rank, size): the part of each batch that process ``rank`` of ``size`` sees; the parts
            together are the batches that one process would see, in their order. Where a batch has
            fewer samples than there are processes, some see an empty one. None for all.

    Raises:
        InputError: As `collate_for`.
    """
    collate = collate_for(dataset)
    if part is None:
        return DataLoader(
            dataset,
            batch_size,
            shuffle=generator is not None,
            num_workers=workers,
            collate_fn=collate,
            generator=generator,
        )
    rank, size = part
    own = None
    if generator is not None:
        # What a DataLoader draws for its workers before the order: of each process its own.
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
        own = torch.Generator().manual_seed((seed + rank) % (1 << 63))
    numbers = range(len(dataset))  # type: ignore[arg-type]  # torch's class says nothing of length
    indices: Sampler[int] = (
        SequentialSampler(numbers)
        if generator is None
        else RandomSampler(numbers, generator=generator)
    )
    return DataLoader(
        dataset,
        batch_sampler=_Part(BatchSampler(indices, batch_size, drop_last=False), rank, size),
        num_workers=workers,
        collate_fn=partial(_collate_part, dataset, collate),
        generator=own,
    )


class _Part(Sampler[list[int]]):
    """The part of each batch that one of several processes sees."""

    def __init__(self, whole: BatchSampler, rank: int, size: int) -> None:
        self._whole, self._rank, self._size = whole, rank, size

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._whole:
            yield batch[self._rank :: self._size]

    def __len__(self) -> int:
        return len(self._whole)


def _collate_part(
    dataset: Dataset,
    collate: Callable[[Iterable[tuple[Tensor, int]]], tuple[Tensor, Tensor]],
    items: Sequence[tuple[Tensor, int]],
) -> tuple[Tensor, Tensor]:
    if items:
        return collate(items)
    x, target = collate([dataset[0]])
    batch_dim = 0 if collate is collate_still_images else 1
    return x.narrow(batch_dim, 0, 0), target[:0]
