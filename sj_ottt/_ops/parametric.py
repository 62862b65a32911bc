"""How the membrane of a LIF neuron depends on its own time constant, carried forward in time.

1/τ = sigmoid(w). With u the membrane before the reset, v after it, and λ = 1 − 1/τ,

    e[t] = ∂u[t]/∂w = λ ∂v[t−1]/∂w + sigmoid'(w) ∂u[t]/∂(1/τ)
"""

from dataclasses import dataclass

from torch import Tensor

from sj_ottt._ops.lif import LIF

__all__ = ["ParametricLIF", "advance_eligibility", "with_eligibility"]


@dataclass(frozen=True)
class ParametricLIF(LIF):
    """The constants of a neuron whose `tau` is 1 / sigmoid(w), a number in a tensor."""

    def __post_init__(self) -> None:
        """Check nothing: to look at `tau` would make the host wait for a GPU at every step."""


def advance_eligibility(e: Tensor, x: Tensor, v: Tensor, w: Tensor, lif: LIF) -> Tensor:
    """Return e[t] = ∂u[t]/∂w.

    Args:
        e: ∂v[t−1]/∂w: e[t−1], or 0 where a hard reset has followed; shaped like `x`.
        x: Input current I[t], [N, ...].
        v: v[t−1], the membrane after the reset.
        w: The parameter, a number.
        lif: Constants; `tau` is 1 / sigmoid(w).
    """
    rate = w.sigmoid()
    leak = v - (lif.v_reset or 0.0)
    slope = x - leak if lif.decay_input else -leak
    return (1.0 - rate) * (e + rate * slope)  # sigmoid' = rate (1 − rate)


def with_eligibility(x: Tensor, e: Tensor, w: Tensor, lif: LIF) -> Tensor:
    """Return the same current, through which the gradient of u[t] reaches `w` too: ∇w = Σ g_u e.

    Args:
        x: Input current I[t], [N, ...].
        e: ∂u[t]/∂w, shaped like it.
        w: The parameter, which learns.
        lif: Constants; of a `decay_input`, u takes I / τ.
    """
    factor = lif.tau * e if lif.decay_input else e
    return x + (w - w.detach()) * factor
