"""SpikingJelly's functions, and the pure functions of online training beside them."""

from spikingjelly.activation_based import functional as sj_functional

from sj_ottt._ops.lif import ottt_lif_step
from sj_ottt._ops.pool import avg_pool2d
from sj_ottt._ops.standardize import scaled_weight_standardization
from sj_ottt._ops.synapse import traced_conv, traced_linear

__all__ = [
    "avg_pool2d",
    "ottt_lif_step",
    "scaled_weight_standardization",
    "traced_conv",
    "traced_linear",
]


def __getattr__(name: str) -> object:
    """Give SpikingJelly's functions for every other public name: switching one import is enough."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(sj_functional, name)
