"""Training steps of all learning rules, and the rules themselves in `sj_ottt.learning.rules`."""

from sj_ottt.learning.fptt import FPTT, Divergence
from sj_ottt.learning.train_step import (
    CrossEntropyMSE,
    Pull,
    ottt_online_training,
    predict,
    reset_state,
    train_step,
)

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
