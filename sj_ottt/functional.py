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

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional as sj_functional
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["ottt_lif_step", "scaled_weight_standardization", "traced_conv", "traced_linear"]


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
    rest = 0.0 if v_reset is None else v_reset
    v = v.detach()
    # Written as SpikingJelly writes it: another order of the same sum rounds otherwise, and a
    # neuron at its threshold would then fire in one library and stay silent in the other.
    u = v + (x - (v - rest)) / tau if decay_input else v - (v - rest) / tau + x
    spike = surrogate_function(u - v_threshold)
    with torch.no_grad():
        v = u - spike * v_threshold if v_reset is None else (1.0 - spike) * u + spike * v_reset
        if trace is not None:
            trace = trace * (1.0 - 1.0 / tau) + spike
    return spike, v, trace


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class _TracedProduct(torch.autograd.Function):
    """A linear map of spikes whose weight gradient is taken with the trace.

    forward:  y = W s + b
    backward: ∇W = g âᵀ,  ∇b = g,  ∇s = Wᵀ g

    The input gradient needs the weight only and the weight gradient the trace only, so this is
    the ordinary backward of the product with â standing where s was: the spikes are not kept.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        spike: Tensor,
        trace: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        conv: tuple[list[int], list[int], list[int], int] | None,
    ) -> Tensor:
        ctx.save_for_backward(trace, weight)
        ctx.conv = conv
        ctx.bias_size = None if bias is None else list(bias.shape)
        if conv is None:
            return F.linear(spike, weight, bias)
        return _CONVOLUTIONS[len(conv[0])](spike, weight, bias, *conv)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
        trace, weight = ctx.saved_tensors
        need_spike, _, need_weight, need_bias, _ = ctx.needs_input_grad
        # Under autocast the gradient is narrower than what was saved.
        trace, weight = trace.to(grad.dtype), weight.to(grad.dtype)
        if ctx.conv is None:
            grad_spike = grad @ weight if need_spike else None
            rows = grad.flatten(0, -2)
            grad_weight = rows.t() @ trace.flatten(0, -2) if need_weight else None
            grad_bias = rows.sum(0) if need_bias else None
        else:
            stride, padding, dilation, groups = ctx.conv
            grad_spike, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                grad,
                trace,
                weight,
                ctx.bias_size,
                stride,
                padding,
                dilation,
                False,
                [0] * len(stride),
                groups,
                [need_spike, need_weight, need_bias],
            )
        return grad_spike, None, grad_weight, grad_bias, None


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
    return _TracedProduct.apply(spike, trace, weight, bias, None)


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
    conv = (list(stride), list(padding), list(dilation), groups)
    return _TracedProduct.apply(spike, trace, weight, bias, conv)


def scaled_weight_standardization(weight: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """Ŵ = gain ⊙ (W − mean) / sqrt(var · fan_in + eps) per output channel (section 4.4).

    The variance is unbiased and eps stands beside var · fan_in, as in the authors' code. timm's
    `ScaledStdConv2d` differs in both, so its weights do not carry over.

    Args:
        weight: [C_out, ...].
        gain: Learnable scale that broadcasts over `weight`, or None.
        eps: Keeps a constant filter finite.

    Returns:
        The standardized weight, shaped like `weight`.
    """
    dims = tuple(range(1, weight.dim()))
    fan_in = weight.shape[1:].numel()
    var, mean = torch.var_mean(weight, dim=dims, keepdim=True)
    weight = (weight - mean) / torch.sqrt(var * fan_in + eps)
    return weight if gain is None else weight * gain


def __getattr__(name: str) -> object:
    """Give SpikingJelly's functions for every other public name: switching one import is enough."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(sj_functional, name)
