"""BPTT: the exact gradient through time, but for the reset, which is detached."""

from torch import Tensor

from sj_ottt._ops.lif import LIF, LIFState, bptt_lif_step
from sj_ottt._ops.rule import Rule

__all__ = ["BPTT"]


def _start(v: Tensor, trace_dtype: str) -> None:
    return None


def _step(x: Tensor, state: LIFState, lif: LIF, fused: bool) -> Tensor:
    spike, state["v"] = bptt_lif_step(x, state["v"], lif)
    return spike


def _trace(kept: None) -> None:
    return None


BPTT = Rule(
    name="bptt",
    start=_start,
    step=_step,
    trace=_trace,
    through_time=True,
    spike_suffices=True,
)
