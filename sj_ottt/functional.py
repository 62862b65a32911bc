"""SpikingJelly's functions, and the pure functions of online training beside them."""

from spikingjelly.activation_based import functional as sj_functional

from sj_ottt._ops.lif import (
    LIF,
    Product,
    avg_pool2d,
    bptt_lif_step,
    has_lean_gradient,
    lean_lif_step,
    lif_step,
    ottt_lif_step,
    scaled_weight_standardization,
    traced_conv,
    traced_linear,
    traced_product,
)

__all__ = [
    "LIF",
    "Product",
    "avg_pool2d",
    "bptt_lif_step",
    "has_lean_gradient",
    "lean_lif_step",
    "lif_step",
    "ottt_lif_step",
    "scaled_weight_standardization",
    "traced_conv",
    "traced_linear",
    "traced_product",
]


def __getattr__(name: str) -> object:
    """Give SpikingJelly's functions for every other public name: switching one import is enough."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(sj_functional, name)
