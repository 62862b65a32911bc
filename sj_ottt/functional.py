"""SpikingJelly's functions, and the pure functions of online training beside them."""

from sj_ottt._ops.lif import (
    LIF,
    Product,
    avg_pool2d,
    bptt_lif_step,
    has_lean_gradient,
    lean_lif_step,
    ottt_lif_step,
    scaled_weight_standardization,
    traced_conv,
    traced_linear,
    traced_product,
)
from sj_ottt._passthrough import pass_through, public_names

__all__ = [
    "LIF",
    "Product",
    "avg_pool2d",
    "bptt_lif_step",
    "has_lean_gradient",
    "lean_lif_step",
    "ottt_lif_step",
    "scaled_weight_standardization",
    "traced_conv",
    "traced_linear",
    "traced_product",
]

__getattr__, __dir__ = pass_through(__name__, "spikingjelly.activation_based.functional")
__all__ += public_names("spikingjelly.activation_based.functional")
