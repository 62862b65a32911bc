"""Scaled weight standardization, with its gradient in closed form."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["scaled_weight_standardization"]


def scaled_weight_standardization(weight: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """Standardize: Ŵ = gain ⊙ (W − mean) / sqrt(var · fan_in + eps), per output channel.

    It is that of the OTTT paper's section 4.4. The variance is unbiased and eps stands beside
    var · fan_in, as in the authors' code. timm's `ScaledStdConv2d` differs in both, so its weights
    do not carry over. Under autocast it still runs in the parameters' dtype, forward and backward.

    Args:
        weight: [C_out, ...].
        gain: Learnable scale of each output channel, [C_out, 1, ...], or None.
        eps: Keeps a constant filter finite.

    Returns:
        The standardized weight, shaped like `weight`.
    """
    with _without_autocast(weight):
        made: Tensor = _Standardize.apply(weight, gain, eps)
    return made


class _Standardize(torch.autograd.Function):
    """Ŵ with its gradient in closed form.

    With n = fan_in, and ŵ = Ŵ without gain,

    ∇gain = sum(∇Ŵ ŵ)
    ∇W = gain / sqrt(var · n + eps) · (∇Ŵ − mean(∇Ŵ) − n / (n − 1) · sum(∇Ŵ ŵ) ŵ)

    so ŵ and one number per channel are all that is kept, and a weight that is changed by hand in
    between does no harm.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gain: Tensor | None, eps: float) -> Tensor:
        # Along rows of memory: PyTorch's variance over several dimensions takes 30 times as long.
        order = _memory_order(weight)
        unit = _rows(weight, order)
        unit = unit - unit.mean(1, keepdim=True)
        fan_in = unit.shape[1]
        var = torch.linalg.vecdot(unit, unit).unsqueeze(1) / (fan_in - 1)
        std = torch.sqrt(var * fan_in + eps)
        unit.div_(std)
        gain = None if gain is None else gain.flatten(1).clone()
        ctx.save_for_backward(unit, std, gain)
        ctx.order = order
        return _from_rows(unit if gain is None else unit * gain, weight, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        with _without_autocast(grad):
            return _Standardize._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        unit, std, gain = ctx.saved_tensors
        rows = _rows(grad, ctx.order)
        along = torch.linalg.vecdot(rows, unit).unsqueeze(1)
        grad_weight = grad_gain = None
        if ctx.needs_input_grad[1]:
            grad_gain = along.view(-1, *[1] * (grad.dim() - 1))
        if ctx.needs_input_grad[0]:
            fan_in = rows.shape[1]
            scale = 1 / std if gain is None else gain / std
            grad_weight = rows - rows.mean(1, keepdim=True)
            grad_weight.addcmul_(unit, along * fan_in / (1 - fan_in)).mul_(scale)
            grad_weight = _from_rows(grad_weight, grad, ctx.order)
        return grad_weight, grad_gain, None


def _without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a block in which autocast, where a tensor's device knows it, is off."""
    device = tensor.device.type
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()


def _memory_order(weight: Tensor) -> list[int]:
    """Return the dimensions of a filter, the one that changes slowest in memory first."""
    return sorted(range(1, weight.dim()), key=weight.stride, reverse=True)


def _rows(weight: Tensor, order: list[int]) -> Tensor:
    """Return [C_out, fan_in]; no copy where the weight lies in memory in this order."""
    return weight.permute(0, *order).flatten(1)


def _from_rows(rows: Tensor, like: Tensor, order: list[int]) -> Tensor:
    """Undo `_rows`, for a weight of the shape of `like`."""
    permuted: Tensor = rows.unflatten(1, [like.shape[d] for d in order])
    return permuted.permute(0, *(1 + order.index(d) for d in range(1, like.dim())))
