"""SpikingJelly's module of this name: its OTTT is ours here, its FPTT is theirs.

`ottt_online_training` is `sj_ottt.learning.ottt_online_training`: the same numbers, one backward
product a step. `fptt_online_training` and `fptt_online_training_init_w_ra` are SpikingJelly's own
functions, so that a switched import changes no number. The paper's FPTT is `sj_ottt.learning.FPTT`;
its form "grad" is the one that SpikingJelly's follows, but for these points:

- Theirs pulls by the *mean* of (W − W̄ − Λ/(2α))² over a parameter's elements, the paper by the sum:
  the larger a layer, the weaker their pull, while W̄ moves as in the paper.
- Their second pass starts from the neurons' state after the step, and updates running statistics
  once more; ours starts where the first one did and leaves no mark.
- Theirs starts every call with Λ = 0 and leaves out Λ and W̄ after the last step; ours keeps both
  from sequence to sequence.
- Theirs updates after every time step, each of the same weight, without a limit to the norm, and
  fails on a parameter that gets no gradient; ours weighs part p of P by (p + 1)/P by default.
"""

from sj_ottt._passthrough import pass_through
from sj_ottt.learning.train_step import ottt_online_training

__all__ = ["ottt_online_training"]
__all__ += ["fptt_online_training", "fptt_online_training_init_w_ra"]  # noqa: F822  theirs

__getattr__, __dir__ = pass_through(
    __name__, "spikingjelly.activation_based.learning.online_learning"
)
