"""Who holds a tensor: what nobody else will read is written into.

A backward pass writes into the gradient that it was given, and a neuron into its last membrane.

A user's hook may have kept it, another function may be given it too, `torch.autograd.grad` may
return it. All of these are counted, in Python and in PyTorch, and compared with the counts of a
gradient that is known to be held by none of them.
"""

import functools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["holders", "is_only_in", "of_one"]

_CAN_COUNT = hasattr(Tensor, "_use_count") and hasattr(torch._C, "_storage_Use_Count")


def holders(grad: Tensor) -> tuple[int, ...]:
    """Count who holds a gradient, its memory and, if it is a view, what it is a view of.

    Args:
        grad: What a `backward` with `once_differentiable`, which calls this, was given: the counts
            are those of such a call.

    Returns:
        The counts; nothing where they are not to be had.
    """
    if not _CAN_COUNT or type(grad) is not Tensor or not grad.is_cpu:
        return ()
    memory = torch._C._storage_Use_Count(grad.untyped_storage()._cdata)
    counts = sys.getrefcount(grad), _use_count(grad), memory
    base = grad._base
    return counts if base is None else (*counts, sys.getrefcount(base), _use_count(base))


def is_only_in(state: Any, key: str) -> bool:
    """Whether a dictionary alone holds one of its tensors, which may take part in a graph.

    Within a compiled network, or where it cannot be known, it is not.
    """
    if torch.compiler.is_compiling() or not _CAN_COUNT or type(state[key]) is not Tensor:
        return False
    graph = state[key].grad_fn is not None or state[key].is_inference()
    return not graph and _counts(state, key) == _of_one_in_a_dictionary()


def _counts(state: dict[str, Tensor], key: str) -> tuple[int, ...]:
    memory = torch._C._storage_Use_Count(state[key].untyped_storage()._cdata)
    return sys.getrefcount(state[key]), _use_count(state[key]), memory


@functools.cache
def _of_one_in_a_dictionary() -> tuple[int, ...]:
    return _counts({"only": torch.ones(1)}, "only")


def _use_count(x: Any) -> int:
    return int(x._use_count())


@functools.cache
def of_one() -> tuple[tuple[int, ...], ...]:
    """Return what `holders` says of gradients that nobody else holds: of a new one, and of a view.

    To be called before it is needed, not within a backward pass.
    """
    # In a thread of its own, where no mode of this one's is on that might hold tensors too.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_count).result()


def _count() -> tuple[tuple[int, ...], ...]:
    views: tuple[Callable[[Tensor], Tensor], ...] = (Tensor.abs, Tensor.flatten)
    for view in views:
        x = torch.ones(1, 2, requires_grad=True)
        view(_Probe.apply(x)[0]).abs().sum().backward()
    found = tuple(counts for counts in _FOUND if counts)
    _FOUND.clear()
    return found


_FOUND: list[tuple[int, ...]] = []


class _Probe(torch.autograd.Function):
    """Counts the holders of the gradient that it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return x.clone(), x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> Tensor:
        _FOUND.append(holders(grad))
        return grad
