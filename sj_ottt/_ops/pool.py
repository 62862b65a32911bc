"""Average pooling that keeps nothing for the backward pass, and whose gradient need not be made."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map_only

__all__ = ["Repeated", "avg_pool2d"]


def avg_pool2d(x: Tensor, kernel_size: int) -> Tensor:
    """Average over blocks of kernel_size × kernel_size pixels, keeping nothing for the backward.

    Args:
        x: [N, C, H, W]; rows and columns beyond the last whole block are left out.
        kernel_size: Size and stride of the blocks.

    Returns:
        [N, C, H // kernel_size, W // kernel_size].
    """
    pooled: Tensor = _AvgPool2d.apply(x, kernel_size)
    return pooled


class _AvgPool2d(torch.autograd.Function):
    # PyTorch's average pooling keeps its whole input, although its gradient does not need it.

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel_size: int) -> Tensor:
        ctx.kernel_size, ctx.rest = kernel_size, [n % kernel_size for n in x.shape[-2:]]
        return F.avg_pool2d(x, kernel_size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grad = grad / ctx.kernel_size**2
        if _is_taken_in_parts(ctx, grad):
            return Repeated(grad, ctx.kernel_size), None
        grad = F.interpolate(grad, scale_factor=ctx.kernel_size)
        if any(ctx.rest):
            grad = F.pad(grad, (0, ctx.rest[1], 0, ctx.rest[0]))
        return grad, None


def _is_taken_in_parts(ctx: Any, grad: Tensor) -> bool:
    """Whether a neuron is what takes the gradient of a pooling."""
    if torch.compiler.is_compiling() or any(ctx.rest) or type(grad) is not Tensor:
        return False
    return grad.is_cpu and ctx.next_functions[0][0].name() in _TAKERS


_TAKERS = {"_FromStateBackward", "_ScanBackward", "ReshapeAliasBackward0", "ViewBackward0"}
"""Autograd's functions of neurons, which take a gradient in parts, and of what joins time steps."""


_PART = 1 << 17
"""Numbers that are made at once, so that they stay in the cache."""


class Repeated(Tensor):
    """A tensor [..., C, H k, W k] that repeats each number of [..., C, H, W] k × k times.

    The gradient of a pooled layer is as large as the layer, and used once: a neuron takes it some
    samples after another (`parts`). For anything else that is done to it, the whole is made first.

    Args:
        pooled: The numbers, [..., C, H, W].
        k: How often each is repeated in a row and in a column.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, pooled: Tensor, k: int) -> Self:
        """Make a tensor that has a shape and no memory."""
        *rest, h, w = pooled.shape
        made: Self = Tensor._make_wrapper_subclass(
            cls, (*rest, h * k, w * k), dtype=pooled.dtype, device=pooled.device
        )
        return made

    def __init__(self, pooled: Tensor, k: int):
        self.pooled, self.k = pooled, k

    def made(self) -> Tensor:
        """Return it as an ordinary tensor."""
        whole = F.interpolate(self.pooled.flatten(0, -4), scale_factor=self.k)
        return whole.view(self.shape)

    def parts(self) -> Iterator[tuple[tuple[int, slice], Tensor]]:
        """Yield, of a tensor [K, N, C, H k, W k], (t, some samples) and their numbers."""
        at_once = max(1, _PART // max(1, math.prod(self.shape[2:])))
        for t, step in enumerate(self.pooled):
            for first in range(0, len(step), at_once):
                samples = slice(first, first + at_once)
                yield (t, samples), F.interpolate(step[samples], scale_factor=self.k)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Part or join time steps, or make the whole and go on with that."""
        if func is torch.ops.aten.view.default:
            repeated, shape = args
            if -1 not in shape and tuple(shape[-3:]) == repeated.shape[-3:]:
                pooled = repeated.pooled
                return cls(pooled.reshape(*shape[:-3], *pooled.shape[-3:]), repeated.k)
        make = partial(tree_map_only, cls, cls.made)
        return func(*make(args), **make(kwargs or {}))
