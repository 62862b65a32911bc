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
    "Pass",
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
    """Loads the batches of data sets, pass after pass.

    Loading processes begin with the first pass and serve all that follow, of whichever data set: to
    start them takes longer than to load a small one. They end when nobody holds this object or one
    of its passes.

    Args:
        datasets: Each an `EventFolder`, an `ImageSet`, or a `Subset` of one; all of a kind.
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
        *datasets: Dataset,
        batch_size: int,
        workers: int,
        part: tuple[int, int] = (0, 1),
        pin: bool = False,
    ) -> None:
        collate = collate_for(datasets[0])
        self._samples = _Samples(datasets)
        self._batch_size, self._part = batch_size, part
        self._sampler = _Begun()
        self._loader: DataLoader[Any] = DataLoader(
            self._samples,
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=partial(_collate_part, datasets[0], collate),
            worker_init_fn=_leave_signals,
            pin_memory=pin,
            generator=torch.Generator(),  # so that loading draws nothing from torch's own
            persistent_workers=workers > 0,
        )

    def one_pass(
        self,
        which: int = 0,
        order: torch.Generator | None = None,
        *,
        skip: int = 0,
        seed: int | None = None,
    ) -> "Pass":
        """Return the batches of a pass over one of the data sets.

        Args:
            which: The number of the data set.
            order: Draws the order; None leaves the samples in theirs.
            skip: Leave out so many batches at the start, without loading them.
            seed: Of the random numbers of each sample, together with its index, so that they depend
                neither on the process that loads it nor on the samples before it. None leaves
                torch's generators as they are.
        """
        numbers = range(self._samples.count(which))
        indices: Sampler[int] = (
            SequentialSampler(numbers) if order is None else RandomSampler(numbers, generator=order)
        )
        whole = BatchSampler(indices, self._batch_size, drop_last=False)
        return Pass(self._loader, self._sampler, _Batches(whole, which, self._part, skip, seed))


class Pass:
    """The batches of a pass over a data set, for as long as no other pass of its loader begins."""

    def __init__(self, loader: DataLoader[Any], begun: "_Begun", batches: "_Batches") -> None:
        self._loader, self._begun, self._batches = loader, begun, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Begin the pass, or begin it again.

        Raises:
            RuntimeError: Another one has begun meanwhile; both would come from one queue.
        """
        begun = self._begun.begin(self._batches)
        for batch in self._loader:
            self._begun.check(begun)
            yield batch
        self._begun.check(begun)


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


_Index = tuple[int, int | None, int]
"""Of a sample: the number of its data set, its seed, and its index there.

They go together, to loading processes that began with an earlier pass.
"""


class _Batches(Sampler[list[_Index]]):
    """The part of each batch of a pass that one of several processes sees."""

    def __init__(
        self, whole: BatchSampler, which: int, part: tuple[int, int], skip: int, seed: int | None
    ) -> None:
        self._whole, self._which, self._skip, self._seed = whole, which, skip, seed
        self._rank, self._size = part

    def __iter__(self) -> Iterator[list[_Index]]:
        for batch in islice(self._whole, self._skip, None):
            mine = batch[self._rank :: self._size]
            yield [(self._which, self._seed, index) for index in mine]

    def __len__(self) -> int:
        return len(self._whole) - self._skip


class _Begun(Sampler[list[_Index]]):
    """The batches of the pass that has begun last."""

    def __init__(self) -> None:
        self._count = 0
        self._batches: Iterable[list[_Index]] = ()

    def begin(self, batches: _Batches) -> int:
        """Begin a pass, and return its number."""
        self._count, self._batches = self._count + 1, batches
        return self._count

    def check(self, number: int) -> None:
        """Refuse a pass that is not the last one."""
        if self._count != number:
            raise RuntimeError("another pass of the same loader has begun: use a loader for each")

    def __iter__(self) -> Iterator[list[_Index]]:
        return iter(self._batches)


class _Samples(Dataset):
    """The samples of data sets, which draw their random numbers from seeds of their own."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets = datasets

    def count(self, which: int) -> int:
        return len(self._datasets[which])  # type: ignore[arg-type]  # torch's class has no length

    def __getitem__(self, place: _Index) -> Any:
        which, seed, index = place
        if seed is None:
            return self._datasets[which][index]
        before = torch.get_rng_state()
        # torch.manual_seed would seed GPUs as well, and writes down the stack while none is in use.
        torch.default_generator.manual_seed(seed_of(seed, index))
        try:
            return self._datasets[which][index]
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
