"""Scaled weight standardization, with its gradient in closed form.

On a CPU it runs as a kernel where that can be compiled (`standardize.cpp`), which goes through the
weight once; else block by block.
"""

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from sj_ottt._ops import cpp
from sj_ottt._ops.blocks import is_given_away
from sj_ottt._ops.calls import is_recorded
from sj_ottt.errors import InputError

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

    Raises:
        InputError: If the gain has another shape.
    """
    shape = [len(weight), *[1] * (weight.dim() - 1)]
    if gain is not None and list(gain.shape) != shape:
        raise InputError(
            f"gain of shape {list(gain.shape)}: a weight of shape {list(weight.shape)} takes one "
            f"number for each output channel, {shape}"
        )
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
        weight, made = weight.detach(), torch.empty_like(weight) if out is None else out.detach()
        # Along rows of memory: PyTorch's variance over several dimensions takes 30 times as long.
        order = _memory_order(made)
        rows = _rows(made, order)
        gain = None if gain is None else gain.flatten(1).to(weight.dtype, copy=True)
        # ŵ is Ŵ / gain, but for a gain of 0; a GPU would have to wait to be asked about that.
        apart = gain is not None and (not _in_blocks(weight) or bool((gain == 0).any()))
        unit = torch.empty_like(made) if apart else made
        unit_rows = _rows(unit, order)
        places = _places(weight, order)
        if places is not None and _has_kernel(weight, rows, unit_rows, gain):
            std = rows.new_empty(len(rows), 1)
            apart_rows = unit_rows if apart else None
            _run("forward", weight, gain, rows, apart_rows, std, float(eps), *rows.shape, places)
            increment_version((made, unit))
        else:
            std = _by_blocks(weight.permute(0, *order), gain, eps, rows, unit_rows)
        ctx.save_for_backward(unit, std, gain)
        ctx.of_made, ctx.order, ctx.shape, ctx.places = not apart, order, weight.shape, places
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
        if ctx.places is not None and _has_kernel(rows, rows, kept):
            grad_weight = _room(ctx, grad, rows) if learns else None
            sums = torch.empty_like(std)
            _run("backward", rows, kept, scale, back, grad_weight, sums, *rows.shape, ctx.places)
        else:
            grad_weight = grad.new_empty_strided(ctx.shape, ctx.stride) if learns else None
            sums = _gradient_by_blocks(rows, kept, scale, back, ctx.order, grad_weight)
        grad_gain = None
        if ctx.needs_input_grad[1]:
            sums = sums if made_by is None else sums / made_by
            grad_gain = sums.view(-1, *[1] * (grad.dim() - 1))
        return grad_weight, grad_gain


def _by_blocks(
    source: Tensor, gain: Tensor | None, eps: float, rows: Tensor, unit_rows: Tensor
) -> Tensor:
    """Write Ŵ into rows, and ŵ into unit_rows, which may be the same; return the deviations."""
    fan_in, stds = rows.shape[1], []
    for block in _blocks(rows):
        part = unit_rows[block]
        part.view(-1, *source.shape[1:]).copy_(source[block])
        part.sub_(part.mean(1, keepdim=True))
        var = torch.linalg.vector_norm(part, dim=1, keepdim=True).square_() / (fan_in - 1)
        stds.append(torch.sqrt(var * fan_in + eps))
        part.div_(stds[-1])
        if gain is not None:
            torch.mul(part, gain[block], out=rows[block])
    return torch.cat(stds)


def _gradient_by_blocks(
    rows: Tensor,
    kept: Tensor,
    scale: Tensor,
    back: Tensor,
    order: list[int],
    grad_weight: Tensor | None,
) -> Tensor:
    """Write ∇W, and return sum(∇Ŵ kept) of each row."""
    along = []
    for block in _blocks(rows):
        g, w = rows[block], kept[block]
        along.append((g * w).sum(1, keepdim=True))
        if grad_weight is not None:
            part = g - g.mean(1, keepdim=True)
            part.mul_(scale[block]).addcmul_(w, back[block] * along[-1])
            target = grad_weight.permute(0, *order)[block]
            target.copy_(part.view_as(target))
    return torch.cat(along)


def _places(weight: Tensor, order: list[int]) -> int | None:
    """Return what `standardize.cpp` calls places, for a result whose memory has an order.

    Returns:
        None where its rows are not the weight's, or those with two groups of dimensions exchanged.
    """
    own = _memory_order(weight)
    if not weight.permute(0, *own).is_contiguous():
        return None
    for k in range(len(own)):
        if own[k:] + own[:k] == order:
            return math.prod(weight.shape[d] for d in own[k:]) if k else 1
    return None


_TYPES = {torch.float32: "SCALAR=float", torch.float64: "SCALAR=double"}


def _has_kernel(first: Tensor, *rows: Tensor | None) -> bool:
    """Whether the kernel can read and write a tensor and others, which are to be of rows."""
    others = [t for t in rows if t is not None]
    return (
        first.dtype in _TYPES
        and first.numel() > 0
        and all(cpp.has_numbers(t) and t.dtype == first.dtype for t in (first, *others))
        and all(t.is_contiguous() for t in others)
        and cpp.available("standardize.cpp", _TYPES[first.dtype])
    )


def _run(name: str, first: Tensor, *arguments: Tensor | float | None) -> None:
    """Run a kernel of `standardize.cpp`, whose last argument says how many threads it takes."""
    kernel = cpp.function("standardize.cpp", name, _TYPES[first.dtype])
    values = (first, *arguments, cpp.threads(first.numel()))
    kernel(*(_ARGUMENTS[type(value)](value) for value in values))


_ARGUMENTS: dict[type, Callable[[Any], Any]] = {
    Tensor: lambda tensor: ctypes.c_void_p(tensor.data_ptr()),
    type(None): lambda _: ctypes.c_void_p(),
    int: ctypes.c_longlong,
    float: ctypes.c_double,
}


def _room(ctx: Any, grad: Tensor, rows: Tensor) -> Tensor:
    """Return memory for ∇W: that of ∇Ŵ where nobody else reads it, or new one.

    A row of the one then takes the place of that of the other, however it lies there.
    """
    if is_given_away(grad) and rows.data_ptr() == grad.data_ptr():
        return grad.data.as_strided(ctx.shape, ctx.stride)
    return grad.new_empty_strided(ctx.shape, ctx.stride)


def _in_blocks(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and not is_recorded()


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
