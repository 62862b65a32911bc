"""The mathematics of OTTT as pure functions: every gradient formula is written here, once.

Notation: u membrane before reset, v after reset, s spike, â trace, λ = 1 − 1/τ. One time step is

    u[t] = λ v[t−1] + I[t]        s[t] = Θ(u[t] − V_th)        v[t] = u[t] − V_th s[t]
    â[t] = λ â[t−1] + s[t]

and, with g_u[t] the gradient of the step's own loss L[t] that reaches u[t] through space only,

    ∇_W L[t] = g_u[t] â_pre[t]ᵀ      ∇_b L[t] = g_u[t]      ∇_{s_pre} L[t] = Wᵀ g_u[t]

(equations (2), (4) and (5) of "Online Training Through Time for Spiking Neural Networks",
NeurIPS 2022).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor
from torch.autograd.function import once_differentiable

from sj_ottt._ops import trace as traces
from sj_ottt._ops.trace import Trace

__all__ = [
    "LIF",
    "Product",
    "avg_pool2d",
    "bptt_lif_step",
    "has_lean_gradient",
    "lean_lif_step",
    "lif_step",
    "ottt_lif_step",
    "scaled_weight_standardization",
    "traced_conv",
    "traced_linear",
    "traced_product",
]


@dataclass(frozen=True)
class LIF:
    """The constants of a leaky integrate-and-fire neuron.

    Attributes:
        tau: Membrane time constant in time steps; λ = 1 − 1/tau.
        decay_input: Whether the input is divided by tau as well.
        v_threshold: Firing threshold V_th.
        v_reset: Membrane after a spike (hard reset); None subtracts V_th instead (soft reset).
        surrogate_function: Θ with a surrogate derivative, applied to u − V_th.
        trace_decay: δ, what is left of the trace after one step; None for λ.
        ndot: One of `trace.NDOT_VARIANTS` where the trace is NDOT's; else None.
    """

    tau: float
    decay_input: bool
    v_threshold: float
    v_reset: float | None
    surrogate_function: Callable[[Tensor], Tensor]
    trace_decay: float | None = None
    ndot: str | None = None

    @property
    def lam(self) -> float:
        """λ, what is left of the membrane after one step."""
        return 1.0 - 1.0 / self.tau

    @property
    def decay(self) -> float:
        """δ: λ for OTTT, 0 for SLTT."""
        return self.lam if self.trace_decay is None else self.trace_decay

    def charge(self, x: Tensor, v: Tensor) -> Tensor:
        """Return u[t] from the input current x = I[t] and v[t−1], a new tensor."""
        # Written as SpikingJelly writes it: another order of the same sum rounds otherwise, and a
        # neuron at its threshold would then fire in one library and stay silent in the other.
        rest = 0.0 if self.v_reset is None else self.v_reset
        leak = v - rest if rest else v
        if self.decay_input:
            return v + (x - leak) / self.tau
        if self.tau == 2.0 and not rest:
            return torch.add(x, v, alpha=0.5)  # halving is exact: the same number in one pass
        return v - leak / self.tau + x

    def reset(self, u: Tensor, spike: Tensor) -> Tensor:
        """Return v[t] from u[t] and s[t], a new tensor."""
        if self.v_reset is None:
            return u - spike * self.v_threshold
        return (1.0 - spike) * u + spike * self.v_reset


def ottt_lif_step(
    x: Tensor,
    v: Tensor,
    trace: Tensor | None,
    *,
    tau: float,
    decay_input: bool,
    v_threshold: float,
    v_reset: float | None,
    surrogate_function: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Charge, fire, reset and trace: one time step of a LIF neuron for online training.

    The gradient flows from the spike to the input through the surrogate alone. Neither the
    membrane of the step before nor the reset carries any, so no step keeps another one's graph.

    Args:
        x: Input current I[t], [N, ...].
        v: Membrane after the reset of the step before, shaped like `x`.
        trace: Presynaptic trace â[t−1], shaped like `x`, or None where none is kept.
        tau: Membrane time constant in time steps; λ = 1 − 1/tau.
        decay_input: Whether the input is divided by tau as well.
        v_threshold: Firing threshold V_th.
        v_reset: Membrane after a spike (hard reset); None subtracts V_th instead (soft reset).
        surrogate_function: Θ with a surrogate derivative, applied to u − V_th.

    Returns:
        The spike s[t] (carries the gradient), v[t] and â[t] (carry none).
    """
    lif = LIF(tau, decay_input, v_threshold, v_reset, surrogate_function)
    spike, v = lif_step(x, v, lif)
    return spike, v, None if trace is None else trace.detach() * lif.lam + spike.detach()


def lif_step(x: Tensor, v: Tensor, lif: LIF) -> tuple[Tensor, Tensor]:
    """Do `ottt_lif_step` without the trace, for any surrogate: (I[t], v[t−1]) → (s[t], v[t])."""
    u = lif.charge(x, v.detach())
    spike = lif.surrogate_function(u - lif.v_threshold)
    with torch.no_grad():
        return spike, lif.reset(u, spike)


def bptt_lif_step(x: Tensor, v: Tensor, lif: LIF) -> tuple[Tensor, Tensor]:
    """Do the same step for BPTT: the gradient flows through v[t−1] too, but not through the reset.

    Args:
        x: Input current I[t], [N, ...].
        v: v[t−1], with its graph.
        lif: Constants.

    Returns:
        The spike s[t] and v[t], both with their graphs.
    """
    u = lif.charge(x, v)
    spike = lif.surrogate_function(u - lif.v_threshold)
    return spike, lif.reset(u, spike.detach())


# σ'(z) times a gradient, z = u − V_th, in the buffer of z. The formulas are SpikingJelly's.
_SURROGATE_GRADIENTS: dict[type, Callable[[Tensor, Tensor, float], Tensor]] = {
    sj_surrogate.Sigmoid: lambda grad, z, alpha: torch.ops.aten.sigmoid_backward.grad_input(
        grad, z.mul_(alpha).sigmoid_(), grad_input=z
    ).mul_(alpha),
    sj_surrogate.ATan: lambda grad, z, alpha: (
        z.mul_(torch.pi * alpha / 2).square_().add_(1).reciprocal_().mul_(grad).mul_(alpha / 2)
    ),
    sj_surrogate.PiecewiseQuadratic: lambda grad, z, alpha: (
        z.abs_().mul_(-(alpha**2)).add_(alpha).clamp_(min=0).mul_(grad)
    ),
    sj_surrogate.Rect: lambda grad, z, alpha: z.abs_().lt_(0.5 / alpha).mul_(grad).mul_(alpha),
}


def has_lean_gradient(surrogate_function: object) -> bool:
    """Whether `lean_lif_step` knows the derivative of a surrogate."""
    return type(surrogate_function) in _SURROGATE_GRADIENTS and surrogate_function.spiking


class _LeanSpike(torch.autograd.Function):
    """Hands a spike on; backward recomputes u − V_th from what the neuron keeps anyway.

    After a soft reset that is v[t] where the neuron fired and v[t] − V_th where it did not, to the
    last bit. A hard reset forgets u[t], which is then kept beside v[t].
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        spike: Tensor,
        membrane: Tensor,
        fired: Tensor,
        lif: LIF,
    ) -> Tensor:
        ctx.save_for_backward(membrane, fired)
        ctx.lif = lif
        return spike.view_as(spike)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
        membrane, fired = ctx.saved_tensors
        lif = ctx.lif
        if lif.v_reset is None:
            silent = fired.to(membrane.dtype).lt_(
                traces.NEWEST if fired.dtype == torch.uint8 else 1
            )
            z = torch.sub(membrane, silent, alpha=lif.v_threshold, out=silent)
        else:
            z = membrane - lif.v_threshold
        surrogate = lif.surrogate_function
        grad = _SURROGATE_GRADIENTS[type(surrogate)](grad.to(z.dtype), z, surrogate.alpha)
        return grad.div_(lif.tau) if lif.decay_input else grad, None, None, None, None


def lean_lif_step(x: Tensor, state: dict[str, Tensor], lif: LIF) -> Tensor:
    """Do `ottt_lif_step` and keep nothing for the backward pass but the state itself.

    Beside membrane and trace that is one byte per neuron, or none with a packed trace, whose top
    bit is the spike. The numbers are those of `ottt_lif_step`.

    Args:
        x: Input current I[t], [N, ...].
        state: "v": v[t−1]; "trace": â[t−1] in a form of `sj_ottt.trace`, or None. Replaced by
            those of t one by one, so that what is replaced is free before the next is made;
            never written in place.
        lif: Constants; of surrogates, those that `has_lean_gradient` names.

    Returns:
        The spike s[t], which carries the gradient.
    """
    with torch.no_grad():
        u = state["v"] = lif.charge(x, state["v"])
        fired = u >= lif.v_threshold
        if state["trace"] is not None:
            stored = state["trace"] = traces.advance(state["trace"], fired, lif.decay)
            fired = stored if stored.dtype == torch.uint8 else fired
        # A comparison that writes numbers is several times as fast as one that writes booleans.
        spike = torch.ge(u, lif.v_threshold, out=torch.empty_like(u))
        if lif.v_reset is None:
            u.sub_(spike, alpha=lif.v_threshold)
        else:
            state["v"] = torch.where(spike > 0, lif.v_reset, u)
    if torch.is_grad_enabled() and x.requires_grad:
        spike = _LeanSpike.apply(x, spike, u, fired, lif)
    return spike


class Sink(Protocol):
    """Gathers the weight gradients of several steps; see `sj_ottt.gather`."""

    def add(self, grad_weight: Tensor | None, grad_bias: Tensor | None) -> None:
        """Take over ∇W and ∇b of one step."""


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Product:
    """A linear map y = W s + b and its derivatives; without `stride`, a fully connected one.

    Attributes:
        stride: One int per spatial dimension; so are `padding` and `dilation`.
        padding: Zeros added on both sides.
        dilation: Spacing of the kernel's points.
        groups: Number of blocks of channels that do not mix.
    """

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def __call__(self, spike: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W s + b."""
        if not self.stride:
            return F.linear(spike, weight, bias)
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
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return ∇s = Wᵀ g, ∇W = g âᵀ and ∇b = g, each where it is needed.

        This is the ordinary backward of the product with â standing where s was: the spikes are
        not needed. Without `need_weight`, only the shape of `trace` is looked at, and without
        `need_spike`, that of `weight`.
        """
        if self.stride:
            return torch.ops.aten.convolution_backward(
                grad,
                trace,
                weight,
                [weight.shape[0]],
                self.stride,
                self.padding,
                self.dilation,
                False,
                [0] * len(self.stride),
                self.groups,
                [need_spike, need_weight, need_bias],
            )
        rows = grad.flatten(0, -2)
        return (
            grad @ weight if need_spike else None,
            rows.t() @ trace.flatten(0, -2) if need_weight else None,
            rows.sum(0) if need_bias else None,
        )


class _TracedProduct(torch.autograd.Function):
    """A linear map of spikes whose weight gradient is taken with the trace.

    forward:  y = W s + b
    backward: ∇W = g âᵀ,  ∇b = g,  ∇s = Wᵀ g

    With a sink, the first two go there.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        spike: Tensor,
        stored: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        product: Product,
        maps: tuple[Callable[[Tensor], Tensor], ...],
        sink: Sink | None,
    ) -> Tensor:
        ctx.save_for_backward(stored, weight)
        ctx.product, ctx.maps, ctx.sink, ctx.spike_shape = product, maps, sink, spike.shape
        return product(spike, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
        stored, weight = ctx.saved_tensors
        need_spike, _, need_weight, need_bias, *_ = ctx.needs_input_grad
        # Under autocast the gradient is narrower than what was saved.
        weight = weight.to(grad.dtype)
        trace = grad.new_empty(1).expand(ctx.spike_shape)  # enough where no weight wants it
        if need_weight:
            trace = Trace(stored, ctx.maps).decode(grad.dtype)
        needs = (need_spike, need_weight, need_bias)
        grad_spike, *grads = ctx.product.gradients(grad, trace, weight, *needs)
        if ctx.sink is not None:
            ctx.sink.add(*grads)
            grads = (None, None)
        return grad_spike, None, *grads, None, None, None


def traced_product(
    product: Product,
    spike: Tensor,
    trace: Tensor | Trace,
    weight: Tensor,
    bias: Tensor | None,
    sink: Sink | None = None,
) -> Tensor:
    """Apply a linear map to spikes, with ∇W taken with the trace: W s + b and ∇W = g âᵀ.

    Args:
        product: The map.
        spike: s[t], [N, ...].
        trace: â[t], shaped like `spike`; receives no gradient.
        weight: W as `product` takes it.
        bias: b or None.
        sink: Where ∇W and ∇b go instead of to `weight` and `bias`.
    """
    trace = trace if isinstance(trace, Trace) else Trace(trace)
    return _TracedProduct.apply(spike, trace.stored, weight, bias, product, trace.maps, sink)


def traced_linear(
    spike: Tensor, trace: Tensor | Trace, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Fully connected synapse: W s + b, with ∇W = g âᵀ in the backward pass.

    Args:
        spike: s[t], [N, ..., in_features].
        trace: â[t], shaped like `spike`; receives no gradient.
        weight: [out_features, in_features].
        bias: [out_features] or None.

    Returns:
        [N, ..., out_features].
    """
    return traced_product(Product(), spike, trace, weight, bias)


def traced_conv(
    spike: Tensor,
    trace: Tensor | Trace,
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
    return traced_product(product, spike, trace, weight, bias)


def scaled_weight_standardization(weight: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """Ŵ = gain ⊙ (W − mean) / sqrt(var · fan_in + eps) per output channel (section 4.4).

    The variance is unbiased and eps stands beside var · fan_in, as in the authors' code. timm's
    `ScaledStdConv2d` differs in both, so its weights do not carry over.

    Args:
        weight: [C_out, ...].
        gain: Learnable scale of each output channel, [C_out, 1, ...], or None.
        eps: Keeps a constant filter finite.

    Returns:
        The standardized weight, shaped like `weight`.
    """
    return _Standardize.apply(weight, gain, eps)


class _Standardize(torch.autograd.Function):
    """Ŵ with its gradient in closed form.

    With n = fan_in, and ŵ = Ŵ without gain,

    ∇gain = sum(∇Ŵ ŵ)
    ∇W = gain / sqrt(var · n + eps) · (∇Ŵ − mean(∇Ŵ) − n / (n − 1) · sum(∇Ŵ ŵ) ŵ)

    so ŵ and one number per channel are all that is kept, and a weight that is changed by hand in
    between does no harm.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, weight: Tensor, gain: Tensor | None, eps: float
    ) -> Tensor:
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
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
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


def _memory_order(weight: Tensor) -> list[int]:
    """Return the dimensions of a filter, the one that changes slowest in memory first."""
    return sorted(range(1, weight.dim()), key=weight.stride, reverse=True)


def _rows(weight: Tensor, order: list[int]) -> Tensor:
    """Return [C_out, fan_in]; no copy where the weight lies in memory in this order."""
    return weight.permute(0, *order).flatten(1)


def _from_rows(rows: Tensor, like: Tensor, order: list[int]) -> Tensor:
    """Undo `_rows`, for a weight of the shape of `like`."""
    permuted = rows.unflatten(1, [like.shape[d] for d in order])
    return permuted.permute(0, *(1 + order.index(d) for d in range(1, like.dim())))


def avg_pool2d(x: Tensor, kernel_size: int) -> Tensor:
    """Average over blocks of kernel_size × kernel_size pixels, keeping nothing for the backward.

    Args:
        x: [N, C, H, W]; rows and columns beyond the last whole block are left out.
        kernel_size: Size and stride of the blocks.

    Returns:
        [N, C, H // kernel_size, W // kernel_size].
    """
    return _AvgPool2d.apply(x, kernel_size)


class _AvgPool2d(torch.autograd.Function):
    # PyTorch's average pooling keeps its whole input, although its gradient does not need it.

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, kernel_size: int) -> Tensor:
        ctx.kernel_size, ctx.rest = kernel_size, [n % kernel_size for n in x.shape[-2:]]
        return F.avg_pool2d(x, kernel_size)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
        k = ctx.kernel_size
        grad = F.interpolate(grad / (k * k), scale_factor=k)
        if any(ctx.rest):
            grad = F.pad(grad, (0, ctx.rest[1], 0, ctx.rest[0]))
        return grad, None
