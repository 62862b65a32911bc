"""The trace of NDOT, whose decay follows the ratio of the neuron's own membranes."""

from typing import NamedTuple

import torch
from torch import Tensor

from sj_ottt._ops.lif import LIF, LIFState, lif_step

__all__ = ["NDOT_VARIANTS", "NDOTState", "advance_ndot", "ndot_step"]

NDOT_VARIANTS = ("paper", "code")


class NDOTState(NamedTuple):
    """What NDOT keeps between steps beside the membrane. Both start at zero.

    Attributes:
        trace: â[t].
        memory: What is left of it for step t + 1, e[t] â[t], in variant "paper"; q[t] in "code".
    """

    trace: Tensor
    memory: Tensor


def advance_ndot(
    state: NDOTState,
    spike: Tensor,
    v_before: Tensor,
    v: Tensor,
    *,
    lam: float,
    v_threshold: float,
    variant: str,
) -> NDOTState:
    """Advance NDOT's trace to step t; every ratio is clamped to [−λ, λ].

    Variant "paper": â[t] = e[t−1] â[t−1] + s[t], e[t] = v[t] / v[t−1]. A membrane v[t−1] of
    exactly 0 counts as a tiny positive one, so that the ratio is λ, −λ or, for v[t] = 0, 0.

    Variant "code", as the authors' program: â[t] = e[t] â[t−1] + s[t], e[t] = q[t] / q[t−1] with
    q = v − V_th s, so that the threshold is taken off twice; a ratio that is no number is λ.

    Args:
        state: That of step t − 1; its tensors, and all that follow, are shaped alike, [N, ...].
        spike: s[t].
        v_before: v[t−1].
        v: v[t], the membrane after the reset.
        lam: λ.
        v_threshold: V_th.
        variant: One of `NDOT_VARIANTS`.

    Returns:
        The state of step t.
    """
    trace, memory = state
    if variant == "paper":
        trace = memory + spike
        ratio = torch.where(v_before == 0, torch.finfo(v.dtype).tiny, v_before)
        memory = torch.div(v, ratio, out=ratio).clamp_(-lam, lam).mul_(trace)
        return NDOTState(trace, memory)
    q = torch.sub(v, spike, alpha=v_threshold)
    ratio = (q / memory).nan_to_num_(nan=lam, posinf=lam, neginf=lam)
    return NDOTState(ratio.clamp_(-lam, lam).mul_(trace).add_(spike), q)


def ndot_step(x: Tensor, state: LIFState, lif: LIF, variant: str) -> Tensor:
    """Do `lif_step` with NDOT's trace beside it.

    Args:
        x: Input current I[t], [N, ...].
        state: That of t − 1, which becomes that of t; its trace is an `NDOTState`.
        lif: Constants.
        variant: One of `NDOT_VARIANTS`.

    Returns:
        The spike s[t], which carries the gradient.
    """
    v_before, plain = state["v"].detach(), LIFState(v=state["v"], trace=None)
    spike = lif_step(x, plain, lif)
    state["v"] = plain["v"]
    state["trace"] = advance_ndot(
        state["trace"],
        spike.detach(),
        v_before,
        state["v"].detach(),
        lam=lif.lam,
        v_threshold=lif.v_threshold,
        variant=variant,
    )
    return spike
