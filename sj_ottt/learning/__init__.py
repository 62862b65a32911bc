"""Training steps of all learning rules, and the rules themselves in `sj_ottt.learning.rules`."""

from sj_ottt.learning.fptt import FPTT, Divergence
from sj_ottt.learning.losses import CrossEntropyMSE
from sj_ottt.learning.predict import predict
from sj_ottt.learning.pull import Pull
from sj_ottt.learning.state import reset_state
from sj_ottt.learning.train_step import ottt_online_training, train_step

__all__ = [
    "FPTT",
    "CrossEntropyMSE",
    "Divergence",
    "Pull",
    "ottt_online_training",
    "predict",
    "reset_state",
    "train_step",
]
