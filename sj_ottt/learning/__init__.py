"""Training steps of all learning rules, the rules in `rules`, and SpikingJelly's names of learning.

`online_learning` says whose OTTT and FPTT answer to SpikingJelly's names.
"""

from sj_ottt._passthrough import pass_through
from sj_ottt.learning import online_learning
from sj_ottt.learning.distill import Distillation, StageTarget
from sj_ottt.learning.fptt import FPTT, Divergence
from sj_ottt.learning.losses import CrossEntropyMSE
from sj_ottt.learning.passes.processes import share_buffers
from sj_ottt.learning.predict import predict
from sj_ottt.learning.pull import Pull
from sj_ottt.learning.state import reset_state
from sj_ottt.learning.train_step import ottt_online_training, train_step

__all__ = [
    "FPTT",
    "CrossEntropyMSE",
    "Distillation",
    "Divergence",
    "MSTDPETLearner",
    "MSTDPLearner",
    "Pull",
    "STDPLearner",
    "StageTarget",
    "fptt_online_training",
    "fptt_online_training_init_w_ra",
    "online_learning",
    "ottt_online_training",
    "plasticity",
    "predict",
    "reset_state",
    "share_buffers",
    "train_step",
]

# Their names are written out above, as importing the module for a list takes seconds.
__getattr__, __dir__ = pass_through(
    __name__,
    "spikingjelly.activation_based.learning",
    "spikingjelly.activation_based.learning.online_learning",
)
