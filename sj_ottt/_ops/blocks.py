"""Neurons taken through time steps block by block: what lies between two operations stays cached.

A CPU takes much longer to fetch a number from memory than to compute with it, and longest for
memory that is new. So the few operations of a time step are done for some thousand neurons after
another, in tensors that are made once.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["blocks", "give_away", "is_dense", "is_given_away", "laid_out_like", "take_back"]

_BLOCK = 1 << 16
"""Neurons that a CPU takes through all steps before it goes on to the next ones."""


def give_away(x: Tensor) -> None:
    """Say that nobody will look at a tensor again but who takes it next, who may write into it."""
    x.given_away = True  # type: ignore[attr-defined]


def take_back(x: Tensor) -> None:
    """Say that somebody may look at a tensor again."""
    x.given_away = False  # type: ignore[attr-defined]


def is_given_away(x: Tensor) -> bool:
    """Whether a tensor may be written into."""
    return getattr(x, "given_away", False)


def is_dense(x: Tensor) -> bool:
    """Whether steps lie behind each other, and a step's elements fill its memory without gaps."""
    expected = 1
    for stride, size in sorted(zip(x.stride()[1:], x.shape[1:], strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return len(x) == 1 or x.stride(0) == expected


def laid_out_like(x: Tensor, other: Any) -> Any:
    """Return a tensor [K, N, ...], or [N, ...] as [1, N, ...], with its elements ordered as x.

    Args:
        x: [K, N, ...], dense.
        other: The tensor, or None.
    """
    if other is None:
        return None
    other = other.detach() if other.dim() == x.dim() else other.detach()[None]
    if other.stride()[1:] == x.stride()[1:] and is_dense(other):
        return other
    return torch.empty_like(x[: len(other)], dtype=other.dtype).copy_(other)


def blocks(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Yield the tensors [K, N, ...] block by block of their neurons, each as a list of K.

    All lie alike in memory, and None stays None.
    """
    rows = []
    for tensor in tensors:
        if tensor is not None:
            size = tensor[0].numel()
            block = _BLOCK if tensor.device.type == "cpu" else max(size, 1)
            rows.append(tensor.as_strided((len(tensor), size), (size, 1)).split(block, 1))
        else:
            rows.append(None)
    for i in range(max(len(row) for row in rows if row is not None)):
        yield tuple(None if row is None else row[i].unbind() for row in rows)
