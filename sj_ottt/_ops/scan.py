"""Several time steps of a neuron in one call, a chunk: the numbers of `lif_step`, step after step.

The gradient of every step is its own, so the chunk is one elementwise function of its currents. For
its backward pass it keeps the membrane u[t] before each reset; with the packed traces that the next
synapse keeps (their top bit is the spike) that makes five bytes per neuron and step.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sj_ottt._ops import trace as traces
from sj_ottt._ops.lif import (
    LIF,
    LIFState,
    has_closed_gradient,
    lif_step,
    membrane_gradient,
    surrogate_gradient,
)
from sj_ottt._ops.ndot import ndot_step

__all__ = ["lif_scan"]

_BLOCK = 1 << 16
"""Neurons that a CPU takes through all steps before it goes on to the next ones, so that what lies
between two operations stays in its cache."""


def lif_scan(
    x_seq: Tensor, state: LIFState, lif: LIF, trace_decay: float = 0.0, ndot: str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Do K steps of `lif_step`, and of the trace beside it.

    Args:
        x_seq: Input currents I[t], [K, N, ...].
        state: That before the first step, which becomes that after the last one. Its `v` then
            carries the gradient of the last step. Where its trace is None, none is kept.
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
        x = x_seq.detach() if _is_dense(x_seq) else x_seq.detach().contiguous()
        spike, u = torch.empty_like(x), torch.empty_like(x if learns else x[:1])
        v_before, trace_before = (_laid_out_like(x, state[key]) for key in ("v", "trace"))
        v, stored = torch.empty_like(v_before), None
        if trace_before is not None:
            stored = torch.empty_like(x, dtype=trace_before.dtype)
        for block in _blocks(x, u, spike, stored, v_before, trace_before, v):
            _advance(lif, trace_decay, *block)
        state["v"] = v[0]
        if stored is not None:
            # A copy, or the state would keep the traces of all steps alive.
            state["trace"] = stored[0] if len(stored) == 1 else stored[-1].clone()
    if learns:
        spike, state["v"] = _Scan.apply(x_seq, spike, state["v"], u, lif)
    return spike, stored


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
    """Take a block of neurons through all steps; u may have room for one step alone."""
    before, trace = v_before[0], None if trace_before is None else trace_before[0]
    for t, current in enumerate(x):
        now = lif.charge(current, before, out=u[t % len(u)])
        # A comparison that writes numbers is several times as fast as one that writes booleans.
        torch.ge(now, lif.v_threshold, out=spike[t])
        before = lif.reset(now, spike[t], out=v[0])
        if stored is not None and trace is not None:
            trace = traces.advance(trace, spike[t], trace_decay, out=stored[t])


class _Scan(torch.autograd.Function):
    """Hands spikes and the last membrane on; backward needs nothing but the membranes u[t]."""

    @staticmethod
    def forward(
        ctx: Any, x_seq: Tensor, spike: Tensor, v: Tensor, u: Tensor, lif: LIF
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(u)
        ctx.lif = lif
        return spike.view_as(spike), v.view_as(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_v: Tensor | None) -> tuple[Any, ...]:
        (u,) = ctx.saved_tensors
        lif = ctx.lif
        if grad is None:
            grad_x = torch.zeros_like(u)
        else:
            grad_x, grad = torch.empty_like(u), _laid_out_like(u, grad)
            for g, membrane, out in _blocks(grad, u, grad_x):
                for t, z in enumerate(out):
                    torch.sub(membrane[t], lif.v_threshold, out=z)
                    surrogate_gradient(g[t], z, lif.surrogate_function)
                    if lif.decay_input:
                        z.div_(lif.tau)
        if grad_v is not None:
            grad_x[-1] += membrane_gradient(grad_v, u[-1] >= lif.v_threshold, lif)
        return grad_x, None, None, None, None


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


def _is_dense(x: Tensor) -> bool:
    """Whether steps lie behind each other, and a step's elements fill its memory without gaps."""
    expected = 1
    for stride, size in sorted(zip(x.stride()[1:], x.shape[1:], strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return len(x) == 1 or x.stride(0) == expected


def _laid_out_like(x: Tensor, other: Any) -> Any:
    """Return a tensor [K, N, ...], or [N, ...] as [1, N, ...], with its elements ordered as x.

    Args:
        x: [K, N, ...], dense.
        other: The tensor, or None.
    """
    if other is None:
        return None
    other = other.detach() if other.dim() == x.dim() else other.detach()[None]
    if other.stride()[1:] == x.stride()[1:] and _is_dense(other):
        return other
    return torch.empty_like(x[: len(other)], dtype=other.dtype).copy_(other)


def _blocks(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Yield the tensors [K, N, ...] block by block of their neurons, each as a list of K.

    All lie alike in memory, and None stays None.
    """
    rows = []
    for tensor in tensors:
        if tensor is not None:
            size = tensor[0].numel()
            block = _BLOCK if tensor.device.type == "cpu" else max(size, 1)
            rows.append(tensor.as_strided((len(tensor), size), (size, 1)).split(block, 1))
        else:
            rows.append(None)
    for i in range(max(len(row) for row in rows if row is not None)):
        yield tuple(None if row is None else row[i].unbind() for row in rows)
