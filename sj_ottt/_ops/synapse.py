"""The synapse's product, whose weight gradient takes the trace: every gradient formula, once.

With g_u[t] the gradient of the step's own loss L[t] that reaches u[t] through space only,

    ∇_W L[t] = g_u[t] â_pre[t]ᵀ      ∇_b L[t] = g_u[t]      ∇_{s_pre} L[t] = Wᵀ g_u[t]

(equations (4) and (5) of the OTTT paper).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sj_ottt._ops.im2col import Patches, added_product
from sj_ottt._ops.trace import LinearMap, Trace

__all__ = ["GradientSink", "Product", "traced_conv", "traced_linear", "traced_product"]


class GradientSink(Protocol):
    """Adds up the weight gradients of several steps; see `sj_ottt.layer.step_weights`.

    Attributes:
        total: The sum of ∇W so far, to which a product may add that of a step; None before it.
    """

    @property
    def total(self) -> Tensor | None: ...

    def add(self, grad_weight: Tensor | None, grad_bias: Tensor | None) -> None:
        """Take over ∇W, unless it is `total` with that of the step, and ∇b."""


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class Product:
    """A linear map y = W s + b and its derivatives; without `stride`, a fully connected one.

    Attributes:
        stride: One int per spatial dimension; so are `padding` and `dilation`.
        padding: Zeros added on both sides.
        dilation: Spacing of the kernel's points.
        groups: Number of blocks of channels that do not mix.
        output_padding: Of a transposed convolution, what is added to its output's size; None for
            any other map.
    """

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    output_padding: tuple[int, ...] | None = None

    def __call__(self, spike: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W s + b."""
        if not self.stride:
            return F.linear(spike, weight, bias)
        dtype = _product_dtype(spike)
        patches = self.few_patches(spike, weight)
        # For a gradient of its own, PyTorch would keep the patches, which are larger than the map.
        if patches is not None and not torch.is_grad_enabled():
            bias = None if bias is None else bias.to(dtype)
            return patches.product(spike.to(dtype), weight.to(dtype), bias)
        if self.output_padding is not None:
            transposed = _TRANSPOSED[len(self.stride)]
            rest = self.output_padding, self.groups, self.dilation
            return transposed(spike, weight, bias, self.stride, self.padding, *rest)
        conv = _CONVOLUTIONS[len(self.stride)]
        return conv(spike, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def gradients(
        self,
        grad: Tensor,
        trace: Tensor,
        weight: Tensor,
        need_spike: bool,
        need_weight: bool,
        need_bias: bool,
        total: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return ∇s = Wᵀ g, ∇W = g âᵀ and ∇b = g, each where it is needed.

        This is the ordinary backward of the product with â in the place of s, which itself is not
        needed.

        Args:
            grad: g, shaped like the output.
            trace: â, shaped like the input; without `need_weight`, only its shape matters.
            weight: W; without `need_spike`, only its shape matters.
            need_spike: Whether ∇s is wanted.
            need_weight: Whether ∇W is wanted.
            need_bias: Whether ∇b is wanted.
            total: A sum that ∇W is to be added to, shaped like `weight`. A matrix product does so
                on the way, and `total` is then returned for ∇W; what else returns ∇W leaves it.

        Returns:
            ∇s, ∇W and ∇b, shaped like `trace`, `weight` and the bias; None where not wanted.
        """
        patches = self.few_patches(trace, weight, grad.dtype)
        if patches is not None:
            return (
                patches.gradient(grad, weight) if need_spike else None,
                patches.weight_gradient(grad, trace, total) if need_weight else None,
                grad.sum((0, 2, 3)) if need_bias else None,
            )
        if self.stride:
            transposed = self.output_padding is not None
            channels = weight.shape[1] * self.groups if transposed else weight.shape[0]
            grad_spike, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                grad,
                trace,
                weight,
                [channels],
                self.stride,
                self.padding,
                self.dilation,
                transposed,
                self.output_padding or [0] * len(self.stride),
                self.groups,
                [need_spike, need_weight, need_bias],
            )
            # A CPU returns ∇W for ∇b's sake as well.
            return grad_spike, grad_weight if need_weight else None, grad_bias
        rows = grad.flatten(0, -2)
        return (
            grad @ weight if need_spike else None,
            added_product(total, rows.t(), trace.flatten(0, -2)) if need_weight else None,
            rows.sum(0) if need_bias else None,
        )

    def few_patches(
        self, x: Tensor, weight: Tensor, dtype: torch.dtype | None = None
    ) -> Patches | None:
        """Return the patches of an input where their matrix product is faster than a convolution.

        Args:
            x: The input, or what has its shape.
            weight: W, or what has its shape.
            dtype: What is multiplied; None for the input's own, or autocast's.
        """
        # Whoever takes the program away is to find the convolution in it, for any batch.
        traced = torch.compiler.is_compiling()
        fits = len(self.stride) == 2 == x.dim() - 2 and self.groups == 1 and x.device.type == "cpu"
        if traced or not fits or self.output_padding is not None or x.shape[1] != weight.shape[1]:
            return None
        if _product_dtype(x) != _product_dtype(weight):  # PyTorch says what is wrong with it
            return None
        kernel = tuple(weight.shape[2:])
        patches = Patches(x.shape, kernel, self.stride, self.padding, self.dilation)
        return patches if patches.pay(dtype or _product_dtype(x)) else None


def _product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that a product is computed in: the tensor's own, or autocast's."""
    device = x.device.type
    known = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if known and x.dtype != torch.double else x.dtype


class _TracedProduct(torch.autograd.Function):
    """A linear map of spikes whose weight gradient is taken with the trace.

    forward:  y = W s + b
    backward: ∇W = g âᵀ,  ∇b = c g,  ∇s = Wᵀ g    (c = `Trace.constant`, 1 but for integrators)

    With a sink, the first two go there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        spike: Tensor,
        stored: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        product: Product,
        maps: tuple[LinearMap, ...],
        constant: float,
        factor: float,
        sink: GradientSink | None,
    ) -> Tensor:
        ctx.save_for_backward(stored, weight)
        ctx.product, ctx.sink, ctx.spike_shape = product, sink, spike.shape
        ctx.maps, ctx.constant, ctx.factor = maps, constant, factor
        return product(spike, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        stored, weight = ctx.saved_tensors
        need_spike, _, need_weight, need_bias, *_ = ctx.needs_input_grad
        # Under autocast the gradient is narrower than what was saved.
        weight = weight.to(grad.dtype)
        no_numbers = grad.new_empty(1).expand(ctx.spike_shape)  # where no weight wants the trace
        total = None if ctx.sink is None else ctx.sink.total
        total = total if total is not None and total.dtype == grad.dtype else None
        if need_weight:
            trace = Trace(stored, ctx.maps, factor=ctx.factor).decode(grad.dtype)
        if not need_weight:
            needs = need_spike, False, need_bias
            grad_spike, *grads = ctx.product.gradients(grad, no_numbers, weight, *needs)
        elif need_spike and (trace.is_contiguous() or _is_channels_last(weight)):
            # One after the other: the trace need not be there beside ∇s, which is as large, and
            # which lies in memory as the weight does where there are no numbers.
            needs = False, True, need_bias
            _, *grads = ctx.product.gradients(grad, trace, weight, *needs, total)
            del trace
            needs = True, False, False
            grad_spike, *_ = ctx.product.gradients(grad, no_numbers, weight, *needs)
        else:
            needs = need_spike, True, need_bias
            grad_spike, *grads = ctx.product.gradients(grad, trace, weight, *needs, total)
        if grads[1] is not None and ctx.constant != 1:
            grads[1] = ctx.constant * grads[1]
        if ctx.sink is not None:
            ctx.sink.add(*grads)
            grads = [None, None]
        return grad_spike, None, *grads, None, None, None, None, None


def _is_channels_last(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)


def traced_product(
    product: Product,
    spike: Tensor,
    trace: Trace | None,
    weight: Tensor,
    bias: Tensor | None,
    sink: GradientSink | None = None,
) -> Tensor:
    """Apply a linear map to spikes, with ∇W taken with the trace: W s + b and ∇W = g âᵀ.

    Args:
        product: The map.
        spike: s[t], [N, ...].
        trace: â[t], shaped like `spike`; receives no gradient. None says that the input is
            real-valued (an image, a current) and has no trace: ∇W then takes the input itself.
        weight: W as `product` takes it.
        bias: b or None.
        sink: Where ∇W and ∇b go instead of to `weight` and `bias`.

    Returns:
        W s + b, [N, ...].
    """
    trace = Trace(spike) if trace is None else trace
    how = trace.maps, trace.constant, trace.factor
    out: Tensor = _TracedProduct.apply(spike, trace.stored, weight, bias, product, *how, sink)
    return out


def traced_linear(spike: Tensor, trace: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Fully connected synapse: W s + b, with ∇W = g âᵀ in the backward pass.

    Args:
        spike: s[t], [N, ..., in_features].
        trace: â[t], shaped like `spike`; receives no gradient.
        weight: [out_features, in_features].
        bias: [out_features] or None.

    Returns:
        [N, ..., out_features].
    """
    return traced_product(Product(), spike, Trace(trace), weight, bias)


def traced_conv(
    spike: Tensor,
    trace: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolutional synapse in one, two or three dimensions, with ∇W taken with the trace.

    Args:
        spike: s[t], [N, C, *space].
        trace: â[t], shaped like `spike`; receives no gradient.
        weight: [C_out, C / groups, *kernel].
        bias: [C_out] or None.
        stride: One int per spatial dimension; so are `padding` and `dilation`.
        padding: Zeros added on both sides.
        dilation: Spacing of the kernel's points.
        groups: Number of blocks of channels that do not mix.

    Returns:
        [N, C_out, *space'].
    """
    product = Product(tuple(stride), tuple(padding), tuple(dilation), groups)
    return traced_product(product, spike, Trace(trace), weight, bias)
