"""Batches of a data set, time first, as the networks run."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
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

__all__ = [
    "batches",
    "collate_for",
    "collate_still_images",
    "collate_time_first",
    "to_device",
]


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
    order: torch.Generator | None = None,
    *,
    part: tuple[int, int] = (0, 1),
    skip: int = 0,
    seed: int | None = None,
    pin: bool = False,
) -> DataLoader[Any]:
    """Return batches of a data set, shuffled if there is a generator to shuffle with.

    Args:
        dataset: An `EventFolder`, an `ImageSet`, or a `Subset` of one.
        batch_size: N, samples in a batch; of all processes together.
        workers: Processes that load; 0 loads in this one.
        order: Draws the order.
        part: (rank, size): the part of each batch that process ``rank`` of ``size`` sees; the parts
            together are the batches that one process would see. Where a batch has fewer samples
            than there are processes, some see an empty one.
        skip: Leave out so many batches at the start, without loading them.
        seed: Of the random numbers of each sample, together with its index, so that they depend
            neither on the process that loads it nor on the samples before it. None draws from
            torch's generator.
        pin: Whether the batches lie in memory that a GPU copies from without the host's help.

    Raises:
        InputError: As `collate_for`.
    """
    collate = collate_for(dataset)
    numbers = range(len(dataset))  # type: ignore[arg-type]  # torch's class says nothing of length
    indices: Sampler[int] = (
        SequentialSampler(numbers) if order is None else RandomSampler(numbers, generator=order)
    )
    whole = BatchSampler(indices, batch_size, drop_last=False)
    return DataLoader(
        dataset if seed is None else _Seeded(dataset, seed),
        batch_sampler=_Part(whole, part, skip),
        num_workers=workers,
        collate_fn=partial(_collate_part, dataset, collate),
        worker_init_fn=_leave_signals,
        pin_memory=pin,
        generator=torch.Generator(),  # so that loading draws nothing from torch's own
    )


def to_device(batch: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """Return a batch's tensors on a device; where they are pinned, the host does not wait."""
    return [tensor.to(device, non_blocking=device.type == "cuda") for tensor in batch]


def _leave_signals(_worker: int) -> None:
    """Keep a loading process out of reach of signals that go to all processes of a run.

    A run that is asked to stop needs it until the batch that is under way is done. A signal to this
    process alone, such as that by which PyTorch ends it, must not be ignored: who waits for its end
    would wait for ever.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


class _Part(Sampler[list[int]]):
    """The part of each batch that one of several processes sees, without the first batches."""

    def __init__(self, whole: BatchSampler, part: tuple[int, int], skip: int) -> None:
        self._whole, self._skip = whole, skip
        self._rank, self._size = part

    def __iter__(self) -> Iterator[list[int]]:
        for batch in islice(self._whole, self._skip, None):
            yield batch[self._rank :: self._size]

    def __len__(self) -> int:
        return len(self._whole) - self._skip


class _Seeded(Dataset):
    """Samples that draw their random numbers from a seed of their own."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset, self._seed = dataset, seed

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]  # torch's class says nothing of length

    def __getitem__(self, index: int) -> Any:
        before = torch.get_rng_state()
        # torch.manual_seed would seed GPUs as well, and writes down the stack while none is in use.
        torch.default_generator.manual_seed(seed_of(self._seed, index))
        try:
            return self._dataset[index]
        finally:
            torch.set_rng_state(before)


def seed_of(*words: int) -> int:
    """Return a 64-bit seed of whole numbers from 0 on; zeros at the end make no difference."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


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
