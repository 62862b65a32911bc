"""Average pooling that keeps nothing for the backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["avg_pool2d"]


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
        ctx.format = _format(x)
        return F.avg_pool2d(x, kernel_size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        k = ctx.kernel_size
        # As x lies in memory, which is four times as large: so that nothing reorders that one.
        grad = grad.contiguous(memory_format=ctx.format)
        # Not "nearest", which rounds some places to the number before.
        grad = F.interpolate(grad / (k * k), scale_factor=k, mode="nearest-exact")
        if any(ctx.rest):
            grad = F.pad(grad, (0, ctx.rest[1], 0, ctx.rest[0]))
        return grad, None


def _format(x: Tensor) -> torch.memory_format:
    """Return the memory format of [N, C, H, W]."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format
