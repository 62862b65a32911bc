"""OTTT: ∇W = g_u[t] â[t]ᵀ, with a trace that decays as the membrane does, â[t] = λ â[t−1] + s[t].

Equations (4) and (5) of "Online Training Through Time for Spiking Neural Networks", NeurIPS 2022.
"""

from torch import Tensor

from sj_ottt._ops import trace
from sj_ottt._ops.lif import LIF, LIFState, lif_step
from sj_ottt._ops.lif_fused import fused_lif_scan, fused_lif_step
from sj_ottt._ops.rule import Rule
from sj_ottt._ops.scan import lif_scan
from sj_ottt._ops.trace import Trace

__all__ = ["OTTT"]


def _step(x: Tensor, state: LIFState, lif: LIF, fused: bool) -> Tensor:
    return (fused_lif_step if fused else lif_step)(x, state, lif, lif.lam)


def _scan(x_seq: Tensor, state: LIFState, lif: LIF, fused: bool) -> tuple[Tensor, Tensor | None]:
    return (fused_lif_scan if fused else lif_scan)(x_seq, state, lif, lif.lam)


OTTT = Rule(
    name="ottt",
    start=trace.zeros,
    step=_step,
    trace=Trace,
    check_trace_dtype=trace.check,
    has_fused_step=True,
    scan=_scan,
)
