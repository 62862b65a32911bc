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
    "BatchLoader",
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


class BatchLoader:
    """Loads the batches of a data set, pass after pass.

    Loading processes begin with the first pass and live on until this object is gone: to start them
    takes longer than to load a small data set.

    Args:
        dataset: An `EventFolder`, an `ImageSet`, or a `Subset` of one.
        batch_size: N, samples in a batch; of all processes together.
        workers: Processes that load; 0 loads in this one.
        part: (rank, size): the part of each batch that process ``rank`` of ``size`` sees; the parts
            together are the batches that one process would see. Where a batch has fewer samples
            than there are processes, some see an empty one.
        pin: Whether the batches lie in memory that a GPU copies from without the host's help.

    Raises:
        InputError: As `collate_for`.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        workers: int,
        *,
        part: tuple[int, int] = (0, 1),
        pin: bool = False,
    ) -> None:
        collate = collate_for(dataset)
        samples = _Seeded(dataset)
        self._batches = _Batches(len(samples), batch_size, part)
        self._loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=self._batches,
            num_workers=workers,
            collate_fn=partial(_collate_part, dataset, collate),
            worker_init_fn=_leave_signals,
            pin_memory=pin,
            generator=torch.Generator(),  # so that loading draws nothing from torch's own
            persistent_workers=workers > 0,
        )

    def one_pass(
        self, order: torch.Generator | None = None, *, skip: int = 0, seed: int | None = None
    ) -> DataLoader[Any]:
        """Return the batches of a pass over the data set; it ends the pass before.

        Args:
            order: Draws the order; None leaves the samples in theirs.
            skip: Leave out so many batches at the start, without loading them.
            seed: Of the random numbers of each sample, together with its index, so that they depend
                neither on the process that loads it nor on the samples before it. None draws from
                torch's generator.
        """
        self._batches.begin(order, skip, seed)
        return self._loader


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


class _Batches(Sampler[list[tuple[int | None, int]]]):
    """The part of each batch of a pass that one of several processes sees: seeds and indices.

    The seed goes with each index, to loading processes that began with an earlier pass.
    """

    def __init__(self, samples: int, batch_size: int, part: tuple[int, int]) -> None:
        self._samples, self._batch_size = range(samples), batch_size
        self._rank, self._size = part
        self.begin(None, 0, None)

    def begin(self, order: torch.Generator | None, skip: int, seed: int | None) -> None:
        self._order, self._skip, self._seed = order, skip, seed

    def __iter__(self) -> Iterator[list[tuple[int | None, int]]]:
        indices: Sampler[int] = (
            SequentialSampler(self._samples)
            if self._order is None
            else RandomSampler(self._samples, generator=self._order)
        )
        whole, seed = BatchSampler(indices, self._batch_size, drop_last=False), self._seed
        for batch in islice(whole, self._skip, None):
            yield [(seed, index) for index in batch[self._rank :: self._size]]

    def __len__(self) -> int:
        return -(-len(self._samples) // self._batch_size) - self._skip


class _Seeded(Dataset):
    """Samples that draw their random numbers from a seed of their own."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]  # torch's class says nothing of length

    def __getitem__(self, seeded: tuple[int | None, int]) -> Any:
        seed, index = seeded
        if seed is None:
            return self._dataset[index]
        before = torch.get_rng_state()
        # torch.manual_seed would seed GPUs as well, and writes down the stack while none is in use.
        torch.default_generator.manual_seed(seed_of(seed, index))
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
