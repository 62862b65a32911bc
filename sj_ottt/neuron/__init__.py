"""Spiking neurons: SpikingJelly's names, with those that carry a trace in place of theirs."""

from sj_ottt._passthrough import pass_through, public_names
from sj_ottt.neuron.lif import NDOTLIFNode, OTTTLIFNode, SLTTLIFNode, set_backend
from sj_ottt.neuron.liquid import (
    ASRNode,
    ASRRecurrent,
    LeakyReadout,
    LTCConvNode,
    LTCNode,
    LTCRecurrent,
)
from sj_ottt.neuron.parametric import OTTTParametricLIFNode
from sj_ottt.neuron.readout import MembraneReadout

__all__ = [
    "ASRNode",
    "ASRRecurrent",
    "LTCConvNode",
    "LTCNode",
    "LTCRecurrent",
    "LeakyReadout",
    "MembraneReadout",
    "NDOTLIFNode",
    "OTTTLIFNode",
    "OTTTParametricLIFNode",
    "SLTTLIFNode",
    "set_backend",
]

__getattr__, __dir__ = pass_through(__name__, "spikingjelly.activation_based.neuron")
__all__ += public_names("spikingjelly.activation_based.neuron")
