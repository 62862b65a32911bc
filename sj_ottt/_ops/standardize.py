"""Scaled weight standardization, with its gradient in closed form."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["scaled_weight_standardization"]


_BLOCK = 1 << 17
"""Elements of a weight that a CPU standardizes at once, so that they stay in its cache."""


def scaled_weight_standardization(
    weight: Tensor, gain: Tensor | None, eps: float, out: Tensor | None = None
) -> Tensor:
    """Standardize: Ŵ = gain ⊙ (W − mean) / sqrt(var · fan_in + eps), per output channel.

    It is that of the OTTT paper's section 4.4. The variance is unbiased and eps stands beside
    var · fan_in, as in the authors' code. timm's `ScaledStdConv2d` differs in both, so its weights
    do not carry over. Under autocast it still runs in the parameters' dtype, forward and backward.

    Args:
        weight: [C_out, ...].
        gain: Learnable scale of each output channel, [C_out, 1, ...], or None.
        eps: Keeps a constant filter finite.
        out: Takes the result, shaped like `weight`, with its elements in any order in memory; None
            makes a new tensor.

    Returns:
        The standardized weight, shaped like `weight`.
    """
    with _without_autocast(weight):
        made: Tensor = _Standardize.apply(weight, gain, eps, out)
    return made


class _Standardize(torch.autograd.Function):
    """Ŵ with its gradient in closed form.

    With n = fan_in, and ŵ = Ŵ without gain,

    ∇gain = sum(∇Ŵ ŵ)
    ∇W = gain / sqrt(var · n + eps) · (∇Ŵ − mean(∇Ŵ) − n / (n − 1) · sum(∇Ŵ ŵ) ŵ)

    so Ŵ and one number per channel are all that is kept, and a weight that is changed by hand in
    between does no harm.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, gain: Tensor | None, eps: float, out: Tensor | None
    ) -> Tensor:
        made = torch.empty_like(weight) if out is None else out.detach()
        # Along rows of memory: PyTorch's variance over several dimensions takes 30 times as long.
        order = _memory_order(made)
        source, rows = weight.permute(0, *order), _rows(made, order)
        fan_in, stds = rows.shape[1], []
        gain = None if gain is None else gain.flatten(1).clone()
        # ŵ is Ŵ / gain, but for a gain of 0; a GPU would have to wait to be asked about that.
        apart = gain is not None and (not _in_blocks(weight) or bool((gain == 0).any()))
        unit = torch.empty_like(made) if apart else made
        unit_rows = _rows(unit, order)
        for block in _blocks(rows):
            part = unit_rows[block]
            part.view(-1, *source.shape[1:]).copy_(source[block])
            part.sub_(part.mean(1, keepdim=True))
            var = torch.linalg.vector_norm(part, dim=1, keepdim=True).square_() / (fan_in - 1)
            stds.append(torch.sqrt(var * fan_in + eps))
            part.div_(stds[-1])
            if gain is not None:
                torch.mul(part, gain[block], out=rows[block])
        ctx.save_for_backward(unit, torch.cat(stds), gain)
        ctx.of_made, ctx.order, ctx.shape = not apart, order, weight.shape
        ctx.stride = torch.empty_like(weight, device="meta").stride()
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        with _without_autocast(grad):
            return *_Standardize._gradients(ctx, grad), None, None

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        kept, std, gain = ctx.saved_tensors
        rows, kept = _rows(grad, ctx.order), _rows(kept, ctx.order)
        fan_in, learns = rows.shape[1], ctx.needs_input_grad[0]
        scale = std.reciprocal() if gain is None else gain / std
        made_by = gain if ctx.of_made and gain is not None else None  # what is kept is made_by ⊙ ŵ
        back = scale * fan_in / (1 - fan_in)
        back = back if made_by is None else back / made_by / made_by
        # In the order of the weight's own memory, so that the weight takes it for its gradient.
        grad_weight = grad.new_empty_strided(ctx.shape, ctx.stride) if learns else None
        along = []
        for block in _blocks(rows):
            g, w = rows[block], kept[block]
            along.append((g * w).sum(1, keepdim=True))
            if grad_weight is not None:
                part = g - g.mean(1, keepdim=True)
                part.mul_(scale[block]).addcmul_(w, back[block] * along[-1])
                target = grad_weight.permute(0, *ctx.order)[block]
                target.copy_(part.view_as(target))
        grad_gain = None
        if ctx.needs_input_grad[1]:
            sums = torch.cat(along) if made_by is None else torch.cat(along) / made_by
            grad_gain = sums.view(-1, *[1] * (grad.dim() - 1))
        return grad_weight, grad_gain


def _in_blocks(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and not torch.compiler.is_compiling()


def _blocks(rows: Tensor) -> Iterator[slice]:
    """Yield the output channels block by block."""
    step = max(1, _BLOCK // rows.shape[1]) if _in_blocks(rows) else len(rows)
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


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
