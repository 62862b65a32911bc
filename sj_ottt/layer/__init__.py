"""Layers: SpikingJelly's names, with those that know what to do with a trace in place of theirs."""

from spikingjelly.activation_based import layer as sj_layer

from sj_ottt._ops.trace import Pair
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


def __getattr__(name: str) -> object:
    """Give SpikingJelly's layers for every other public name: switching one import is enough."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(sj_layer, name)
