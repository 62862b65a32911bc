"""The neuron's time step as pure functions: a plain reference, and what training runs instead.

Notation: u membrane before reset, v after reset, s spike, â trace, λ = 1 − 1/τ. One time step is

    u[t] = λ v[t−1] + I[t]        s[t] = Θ(u[t] − V_th)        v[t] = u[t] − V_th s[t]
    â[t] = λ â[t−1] + s[t]

(equations (2) and (4) of "Online Training Through Time for Spiking Neural Networks", NeurIPS 2022).
`ottt_lif_step` is the reference: it reads like the equations and takes any surrogate. `lif_step`
gives the same numbers and keeps less for the backward pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor
from torch.autograd.function import once_differentiable

from sj_ottt._ops import trace as traces
from sj_ottt._ops.blocks import blocks, is_dense, is_given_away, laid_out_like
from sj_ottt._ops.held import holders, of_one
from sj_ottt.errors import InputError

__all__ = [
    "LIF",
    "LIFState",
    "bptt_lif_step",
    "fire",
    "gradient_from_spike",
    "has_closed_gradient",
    "lif_step",
    "membrane_gradient",
    "ottt_lif_step",
    "reference_lif_step",
    "surrogate_gradient",
]


class LIFState(TypedDict):
    """What a neuron keeps between two time steps.

    A step replaces the entries one by one, so that an old tensor is freed before the next new one
    is made. It never writes into a tensor that it was given.

    Attributes:
        v: v[t], the membrane after the reset, [N, ...]. It carries the gradient of its own step,
            ∂v/∂u = 1 − s after a hard reset and 1 after a soft one; the next step takes it without.
        trace: What the learning rule keeps beside it (`Rule.start`): for OTTT and SLTT â[t] in a
            form of `sj_ottt._ops.trace`; None where nothing is kept.
    """

    v: Tensor
    trace: Any


@dataclass(frozen=True)
class LIF:
    """The constants of a leaky integrate-and-fire neuron.

    Attributes:
        tau: Membrane time constant in time steps; λ = 1 − 1/tau.
        decay_input: Whether the input is divided by tau as well.
        v_threshold: Firing threshold V_th.
        v_reset: Membrane after a spike (hard reset); None subtracts V_th instead (soft reset).
        surrogate_function: Θ with a surrogate derivative, applied to u − V_th.

    Raises:
        InputError: If `tau` is not above 1, or `v_threshold` or `v_reset` is not finite.
    """

    tau: float
    decay_input: bool
    v_threshold: float
    v_reset: float | None
    surrogate_function: sj_surrogate.SurrogateFunctionBase

    def __post_init__(self) -> None:
        if not self.tau > 1.0:
            raise InputError(
                f"tau={self.tau}: the membrane time constant must be above 1 time step"
            )
        if not math.isfinite(self.v_threshold):
            raise InputError(
                f"v_threshold={self.v_threshold}: give a finite number; for a neuron that never "
                "fires, whose membrane is the output, use sj_ottt.neuron.MembraneReadout"
            )
        if self.v_reset is not None and not math.isfinite(self.v_reset):
            raise InputError(
                f"v_reset={self.v_reset}: give a finite number, or None to subtract v_threshold"
            )

    @property
    def lam(self) -> float:
        """λ, what is left of the membrane after one step."""
        return 1.0 - 1.0 / self.tau

    def charge(self, x: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
        """Return u[t] from the input current x = I[t] and v[t−1], in a new tensor or in `out`."""
        # Written as SpikingJelly writes it: another order of the same sum rounds otherwise, and a
        # neuron at its threshold would then fire in one library and stay silent in the other.
        rest = 0.0 if self.v_reset is None else self.v_reset
        leak = v - rest if rest else v
        if self.decay_input:
            return torch.add(v, (x - leak) / self.tau, out=out)
        # Halving is exact: the same number in one pass. (A tau that learns is a tensor.)
        if not isinstance(self.tau, Tensor) and self.tau == 2.0 and not rest:
            return torch.add(x, v, alpha=0.5, out=out)
        return torch.add(v - leak / self.tau, x, out=out)

    def reset(self, u: Tensor, spike: Tensor, out: Tensor | None = None) -> Tensor:
        """Return v[t] from u[t] and s[t], in a new tensor or in `out`."""
        if self.v_reset is None:
            return torch.sub(u, spike, alpha=self.v_threshold, out=out)
        return torch.add((1.0 - spike) * u, spike * self.v_reset, out=out)


def ottt_lif_step(
    x: Tensor,
    v: Tensor,
    trace: Tensor | None,
    *,
    tau: float,
    decay_input: bool,
    v_threshold: float,
    v_reset: float | None,
    surrogate_function: sj_surrogate.SurrogateFunctionBase,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Charge, fire, reset and trace: one time step of a LIF neuron for online training.

    This is the plain reference of `lif_step`.

    The gradient flows from the spike to the input through the surrogate, and from the membrane as
    it is. Neither the membrane of the step before nor the reset carries any, so no step keeps
    another one's graph.

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
        The spike s[t] and v[t] (both carry the gradient), and â[t] (carries none).
    """
    lif = LIF(tau, decay_input, v_threshold, v_reset, surrogate_function)
    spike, v = reference_lif_step(x, v, lif)
    return spike, v, None if trace is None else trace.detach() * lif.lam + spike.detach()


def reference_lif_step(x: Tensor, v: Tensor, lif: LIF) -> tuple[Tensor, Tensor]:
    """Do `ottt_lif_step` without the trace: (I[t], v[t−1]) → (s[t], v[t]), all [N, ...]."""
    return bptt_lif_step(x, v.detach(), lif)


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


def has_closed_gradient(surrogate_function: sj_surrogate.SurrogateFunctionBase) -> bool:
    """Whether `lif_step` knows the derivative of a surrogate."""
    return type(surrogate_function) in _SURROGATE_GRADIENTS and bool(surrogate_function.spiking)


def surrogate_gradient(
    grad: Tensor, z: Tensor, surrogate_function: sj_surrogate.SurrogateFunctionBase
) -> Tensor:
    """Return a gradient times Θ'(z), z = u − V_th, in the memory of z (`has_closed_gradient`)."""
    derivative = _SURROGATE_GRADIENTS[type(surrogate_function)]
    return derivative(grad.to(z.dtype), z, surrogate_function.alpha)


def _silent(fired: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 − s[t] as numbers; s[t] is given as booleans, or as the top bit of bytes."""
    return fired.to(dtype).lt_(traces.NEWEST if fired.dtype == torch.uint8 else 1)


def membrane_gradient(grad: Tensor, fired: Tensor, lif: LIF) -> Tensor:
    """Return the gradient of I[t] by way of v[t], from that of v[t]; the reset carries none."""
    if lif.v_reset is not None:
        grad = grad * _silent(fired, grad.dtype)
    return grad / lif.tau if lif.decay_input else grad


class _FromState(torch.autograd.Function):
    """Hands spike and membrane on; backward recomputes u − V_th from what the neuron keeps anyway.

    After a soft reset that is v[t] where the neuron fired and v[t] − V_th where it did not, to the
    last bit. A hard reset forgets u[t], which is then kept beside v[t].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        spike: Tensor,
        v: Tensor,
        u: Tensor | None,  # after a hard reset
        fired: Tensor,
        lif: LIF,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(v if u is None else u, fired)
        ctx.lif = lif
        return spike.view_as(spike), v.view_as(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_v: Tensor | None) -> tuple[Any, ...]:
        membrane, fired = ctx.saved_tensors
        lif = ctx.lif
        grad_x = None if grad_v is None else membrane_gradient(grad_v, fired, lif)
        if grad is not None:
            fired = None if lif.v_reset is not None else fired[None]
            free = not torch.compiler.is_compiling() and holders(grad) in of_one()
            (from_spike,) = gradient_from_spike(grad[None], membrane[None], fired, lif, free)
            grad_x = from_spike if grad_x is None else from_spike.add_(grad_x)
        return grad_x, None, None, None, None, None


def gradient_from_spike(
    grad: Tensor, membrane: Tensor, fired: Tensor | None, lif: LIF, free: bool
) -> Tensor:
    """Return the gradient of I[t] by way of s[t], of one or more steps.

    Args:
        grad: That of s[t], [K, N, ...].
        membrane: u[t]; with `fired`, v[t] after a soft reset.
        fired: s[t], as booleans or as the top bit of bytes.
        lif: Constants.
        free: Whether the result may take the memory of `grad`.
    """
    grads, fired = laid_out_like(membrane, grad), laid_out_like(membrane, fired)
    free = free and grads.data_ptr() == grad.data_ptr() and grads.dtype == membrane.dtype
    grad_x = grads if free else torch.empty_like(membrane)
    for block in blocks(membrane, grads, fired, grad_x):
        for t, (m, g, out) in enumerate(zip(block[0], block[1], block[3], strict=True)):
            below = 1 if block[2] is None else _silent(block[2][t], m.dtype)
            z = torch.sub(m, below, alpha=lif.v_threshold, out=None if free else out)
            surrogate_gradient(g, z, lif.surrogate_function)
            if lif.decay_input:
                z.div_(lif.tau)
            if free:
                out.copy_(z)
    return grad_x


def lif_step(x: Tensor, state: LIFState, lif: LIF, trace_decay: float = 0.0) -> Tensor:
    """Do `ottt_lif_step`, for any decay of the trace, and keep less for the backward pass.

    Where the surrogate has a closed gradient, nothing is kept but the state itself and one byte per
    neuron, or none with a packed trace, whose top bit is the spike.

    Args:
        x: Input current I[t], [N, ...].
        state: That of t − 1, which becomes that of t. Where its trace is None, none is kept.
        lif: Constants.
        trace_decay: δ, what is left of the trace after one step: λ for OTTT, 0 for SLTT.

    Returns:
        The spike s[t], which carries the gradient, as `v` in the state does.
    """
    if not has_closed_gradient(lif.surrogate_function):
        spike, state["v"] = reference_lif_step(x, state["v"], lif)
        if state["trace"] is not None:
            state["trace"] = traces.advance(state["trace"], spike.detach(), trace_decay)
        return spike
    step = _whole if torch.compiler.is_compiling() else _by_blocks
    with torch.no_grad():
        spike, u, fired = step(x, state, lif, trace_decay)
    if torch.is_grad_enabled() and x.requires_grad:
        if spike.is_cpu and not torch.compiler.is_compiling():
            of_one()
        hard = lif.v_reset is not None
        spike, state["v"] = _FromState.apply(x, spike, state["v"], u if hard else None, fired, lif)
    return spike


def _whole(
    x: Tensor, state: LIFState, lif: LIF, trace_decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Advance a state; return the spike, u[t] where a hard reset follows, and where it fired."""
    u = state["v"] = lif.charge(x.detach(), state["v"])
    fired = u >= lif.v_threshold
    if state["trace"] is not None:
        stored = state["trace"] = traces.advance(state["trace"], fired, trace_decay)
        fired = stored if stored.dtype == torch.uint8 else fired
    spike = torch.ge(u, lif.v_threshold, out=torch.empty_like(u))
    if lif.v_reset is None:
        u.sub_(spike, alpha=lif.v_threshold)
    else:
        state["v"] = torch.where(spike > 0, lif.v_reset, u)
    return spike, u, fired


def fire(
    lif: LIF,
    trace_decay: float,
    u: Tensor,
    spike: Tensor,
    v: Tensor,
    trace: Tensor | None,
    stored: Tensor | None,
) -> None:
    """Write s[t], v[t] and â[t] of some neurons from u[t] and â[t−1]; v may be the memory of u."""
    # A comparison that writes numbers is several times as fast as one that writes booleans.
    torch.ge(u, lif.v_threshold, out=spike)
    lif.reset(u, spike, out=v)
    if trace is not None and stored is not None:
        traces.advance(trace, spike, trace_decay, out=stored)


def _by_blocks(
    x: Tensor, state: LIFState, lif: LIF, trace_decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same block by block, and let v[t−1] go before anything but u[t] is made."""
    u = state["v"] = _charged(x, state["v"], lif)
    spike, stored, before = torch.empty_like(u), None, laid_out_like(u[None], state["trace"])
    v = state["v"] = u if lif.v_reset is None else torch.empty_like(u)
    if before is not None:
        stored = state["trace"] = torch.empty_like(u, dtype=before.dtype)
    one_step = (None if part is None else part[None] for part in (u, spike, v))
    for block in blocks(*one_step, before, None if stored is None else stored[None]):
        parts: list[Any] = [None if part is None else part[0] for part in block]
        fire(lif, trace_decay, *parts)
    if stored is not None and stored.dtype == torch.uint8:
        return spike, u, stored
    return spike, u, spike > 0


def _charged(x: Tensor, v: Tensor, lif: LIF) -> Tensor:
    """Return u[t], in the memory of the current where that was given away."""
    given_away = is_given_away(x)
    x = x.detach() if is_dense(x[None]) else x.detach().contiguous()
    u = x if given_away else torch.empty_like(x)
    for (current,), (before,), (now,) in blocks(x[None], laid_out_like(x[None], v), u[None]):
        lif.charge(current, before, out=now)
    return u
