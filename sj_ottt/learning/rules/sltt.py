"""SLTT: ∇W = g_u[t] s[t]ᵀ. The trace is the spike itself; nothing of it is left for the next step.

"Towards Memory- and Time-Efficient Backpropagation for Training Spiking Neural Networks", ICCV
2023.
"""

from torch import Tensor

from sj_ottt._ops import trace
from sj_ottt._ops.lif import LIF, LIFState, lif_step
from sj_ottt._ops.lif_fused import fused_lif_scan, fused_lif_step
from sj_ottt._ops.rule import Rule
from sj_ottt._ops.scan import lif_scan
from sj_ottt._ops.trace import Trace

__all__ = ["SLTT"]


def _step(x: Tensor, state: LIFState, lif: LIF, fused: bool) -> Tensor:
    return (fused_lif_step if fused else lif_step)(x, state, lif, 0.0)


def _scan(x_seq: Tensor, state: LIFState, lif: LIF, fused: bool) -> tuple[Tensor, Tensor | None]:
    return (fused_lif_scan if fused else lif_scan)(x_seq, state, lif, 0.0)


SLTT = Rule(
    name="sltt",
    start=trace.zeros,
    step=_step,
    trace=Trace,
    spike_suffices=True,
    has_fused_step=True,
    scan=_scan,
)
