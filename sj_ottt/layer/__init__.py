"""Layers: SpikingJelly's names, with those that know what to do with a trace in place of theirs."""

from sj_ottt._ops.pair import Pair
from sj_ottt._passthrough import pass_through, public_names
from sj_ottt.layer.feedback import Feedback
from sj_ottt.layer.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Dropout,
    Dropout2d,
    Flatten,
    MaxPool2d,
    Scale,
)
from sj_ottt.layer.sequential import OTTTSequential
from sj_ottt.layer.synapse import Conv2d, Linear, WSConv2d, WSLinear

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Conv2d",
    "Dropout",
    "Dropout2d",
    "Feedback",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "OTTTSequential",
    "Pair",
    "Scale",
    "WSConv2d",
    "WSLinear",
]

__getattr__, __dir__ = pass_through(__name__, "spikingjelly.activation_based.layer")
__all__ += public_names("spikingjelly.activation_based.layer")
