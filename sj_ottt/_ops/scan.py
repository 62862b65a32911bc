"""Several time steps of a neuron in one call, a chunk: the numbers of `lif_step`, step after step.

The gradient of every step is its own, so the chunk is one elementwise function of its currents. For
its backward pass it keeps a membrane per step; with the packed traces that the next synapse keeps
(their top bit is the spike) that makes five bytes per neuron and step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sj_ottt._ops.blocks import blocks, is_dense, is_given_away, laid_out_like
from sj_ottt._ops.held import holders, of_one
from sj_ottt._ops.lif import (
    LIF,
    LIFState,
    fire,
    gradient_from_spike,
    has_closed_gradient,
    lif_step,
    membrane_gradient,
)
from sj_ottt._ops.ndot import ndot_step

__all__ = ["lif_scan", "own"]


def lif_scan(
    x_seq: Tensor, state: LIFState, lif: LIF, trace_decay: float = 0.0, ndot: str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Do K steps of `lif_step`, and of the trace beside it.

    Args:
        x_seq: Input currents I[t], [K, N, ...].
        state: That before the first step, which becomes that after the last one. Its `v` then
            carries the gradient of the last step. Where its trace is None, none is kept. Until the
            backward pass, which needs all steps, it may be a view of them (`own`).
        lif: Constants.
        trace_decay: δ, what is left of the trace after one step: λ for OTTT, 0 for SLTT.
        ndot: Variant of NDOT's trace, which takes the place of one that decays by δ; what the state
            keeps is then an `NDOTState`.

    Returns:
        The spikes s[t], [K, N, ...], which carry the gradient; and the trace of each step,
        [K, N, ...], in the form in which the state keeps it: packed into bytes, its top bit is the
        spike. None where none is kept.
    """
    if ndot is not None or not has_closed_gradient(lif.surrogate_function):
        return _one_by_one(x_seq, state, lif, trace_decay, ndot)
    learns = torch.is_grad_enabled() and x_seq.requires_grad
    with torch.no_grad():
        # Not detach(): PyTorch would see that u is written there, and take the gradient of this
        # view of the synapse's batch by way of one more tensor as large.
        x = x_seq.data if is_dense(x_seq) else x_seq.detach().contiguous()
        u = x if is_given_away(x_seq) else torch.empty_like(x if learns else x[:1])
        spike = torch.empty_like(x)
        v_before, trace_before = (laid_out_like(x, state[key]) for key in ("v", "trace"))
        stored = None
        if trace_before is not None:
            stored = torch.empty_like(x, dtype=trace_before.dtype)
        packed = stored is not None and stored.dtype == torch.uint8
        # With the bit of the spike, v[t] after a soft reset is as good as u[t].
        v = u if lif.v_reset is None and packed else torch.empty_like(u[:1])
        for block in blocks(x, u, spike, stored, v_before, trace_before, v):
            _advance(lif, trace_decay, *block)
        state["v"] = v[-1]
        if stored is not None:
            state["trace"] = stored[-1]
    if learns:
        fired = stored if v is u else None
        if spike.is_cpu and not torch.compiler.is_compiling():
            of_one()
        spike, state["v"] = _Scan.apply(x_seq, spike, state["v"], u, fired, lif, state)
    else:
        own(state)
    return spike, stored


def own(state: Any) -> None:
    """Copy what a state has of the last of several steps, or it would keep the memory of all."""
    if torch.compiler.is_compiling():  # a compiled network's results are new
        return
    for key, part in state.items():
        if isinstance(part, Tensor) and part.untyped_storage().nbytes() > part.nbytes:
            state[key] = part.clone()


_Steps = Sequence[Tensor]
"""A block of a tensor's neurons, one time step after the other."""


def _advance(
    lif: LIF,
    trace_decay: float,
    x: _Steps,
    u: _Steps,
    spike: _Steps,
    stored: _Steps | None,
    v_before: _Steps,
    trace_before: _Steps | None,
    v: _Steps,
) -> None:
    """Take a block of neurons through all steps; u and v may have room for one step alone."""
    before, trace = v_before[0], None if trace_before is None else trace_before[0]
    for t, current in enumerate(x):
        now, after = lif.charge(current, before, out=u[t % len(u)]), v[t % len(v)]
        out = None if stored is None else stored[t]
        fire(lif, trace_decay, now, spike[t], after, trace, out)
        before, trace = after, out


class _Scan(torch.autograd.Function):
    """Hands spikes and the last membrane on; backward needs u[t], or v[t] and where it fired."""

    @staticmethod
    def forward(
        ctx: Any,
        x_seq: Tensor,
        spike: Tensor,
        v: Tensor,
        membrane: Tensor,
        fired: Tensor | None,
        lif: LIF,
        state: LIFState,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(membrane, fired)
        ctx.lif, ctx.state = lif, state
        return spike.view_as(spike), v.view_as(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_v: Tensor | None) -> tuple[Any, ...]:
        membrane, fired = ctx.saved_tensors
        lif = ctx.lif
        if grad is None:
            grad_x = torch.zeros_like(membrane)
        else:
            free = not torch.compiler.is_compiling() and holders(grad) in of_one()
            grad_x = gradient_from_spike(grad, membrane, fired, lif, free)
        if grad_v is not None:
            last = membrane[-1] >= lif.v_threshold if fired is None else fired[-1]
            grad_x[-1] += membrane_gradient(grad_v, last, lif)
        own(ctx.state)  # now, when all other steps are no longer needed
        return grad_x, None, None, None, None, None, None


def _one_by_one(
    x_seq: Tensor, state: LIFState, lif: LIF, trace_decay: float, ndot: str | None
) -> tuple[Tensor, Tensor | None]:
    """Do the steps with a graph each."""
    spikes, stored = [], []
    for x in x_seq:
        if ndot is None:
            spikes.append(lif_step(x, state, lif, trace_decay))
            stored.append(state["trace"])
        else:
            spikes.append(ndot_step(x, state, lif, ndot))
            stored.append(state["trace"].trace)
    return torch.stack(spikes), None if stored[0] is None else torch.stack(stored)
