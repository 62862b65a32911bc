"""NDOT: ∇W = g_u[t] â[t]ᵀ, with a trace that decays by the ratio of the neuron's own membranes.

"NDOT: Neuronal Dynamics-based Online Training for Spiking Neural Networks", ICML 2024; in variant
"code", what the authors' program computes instead (`sj_ottt._ops.ndot.advance_ndot` has both).
"""

from functools import partial

import torch
from torch import Tensor

from sj_ottt._ops.lif import LIF, LIFState
from sj_ottt._ops.lif_fused import fused_lif_scan, fused_lif_step
from sj_ottt._ops.ndot import NDOT_VARIANTS, NDOTState, ndot_step
from sj_ottt._ops.rule import Rule
from sj_ottt._ops.scan import lif_scan
from sj_ottt._ops.trace import Trace

__all__ = ["NDOT"]


def _start(v: Tensor, trace_dtype: str) -> NDOTState:
    return NDOTState(torch.zeros_like(v), torch.zeros_like(v))  # always in full precision


def _step(x: Tensor, state: LIFState, lif: LIF, fused: bool, *, variant: str) -> Tensor:
    if fused:
        spike: Tensor = fused_lif_step(x, state, lif, ndot=variant)
        return spike
    return ndot_step(x, state, lif, variant)


def _scan(
    x_seq: Tensor, state: LIFState, lif: LIF, fused: bool, *, variant: str
) -> tuple[Tensor, Tensor | None]:
    return (fused_lif_scan if fused else lif_scan)(x_seq, state, lif, ndot=variant)


def _trace(state: NDOTState) -> Trace:
    return Trace(state.trace)


NDOT = tuple(
    Rule(
        name="ndot",
        variant=variant,
        start=_start,
        step=partial(_step, variant=variant),
        trace=_trace,
        has_fused_step=True,
        scan=partial(_scan, variant=variant),
    )
    for variant in NDOT_VARIANTS
)
"""A rule for each variant."""
