"""Spiking neurons: SpikingJelly's names, with those that carry a trace in place of theirs."""

from spikingjelly.activation_based import neuron as sj_neuron

from sj_ottt.neuron.lif import NDOTLIFNode, OTTTLIFNode, SLTTLIFNode
from sj_ottt.neuron.liquid import (
    ASRNode,
    ASRRecurrent,
    LeakyReadout,
    LTCConvNode,
    LTCNode,
    LTCRecurrent,
)

__all__ = [
    "ASRNode",
    "ASRRecurrent",
    "LTCConvNode",
    "LTCNode",
    "LTCRecurrent",
    "LeakyReadout",
    "NDOTLIFNode",
    "OTTTLIFNode",
    "SLTTLIFNode",
]


def __getattr__(name: str) -> object:
    """Give SpikingJelly's neurons for every other public name: switching one import is enough."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(sj_neuron, name)
