"""SpikingJelly's functions, and the pure functions of online training beside them."""

from sj_ottt._ops.lif import ottt_lif_step
from sj_ottt._ops.pool import avg_pool2d
from sj_ottt._ops.standardize import scaled_weight_standardization
from sj_ottt._ops.synapse import traced_conv, traced_linear
from sj_ottt._passthrough import pass_through, public_names

__all__ = [
    "avg_pool2d",
    "ottt_lif_step",
    "scaled_weight_standardization",
    "traced_conv",
    "traced_linear",
]

__getattr__, __dir__ = pass_through(__name__, "spikingjelly.activation_based.functional")
__all__ += public_names("spikingjelly.activation_based.functional")
