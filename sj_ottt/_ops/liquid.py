"""The step of a liquid time-constant neuron, and of its leaky readout, as pure functions."""

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor

__all__ = ["Gates", "leaky_step", "ltc_step"]

BETA = 1.8
"""How much of the adaptation b is added to the threshold."""

Gates = tuple[Tensor, Tensor | None]
"""The logits of the update fraction and of what the adaptation retains, None without one."""


def ltc_step(
    current: Tensor,
    gates: Gates,
    v: Tensor,
    b: Tensor,
    spike: Tensor,
    *,
    b0: float,
    surrogate_function: surrogate.SurrogateFunctionBase,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do one time step of a liquid time-constant neuron.

    b[t] = ρ b[t−1] + (1 − ρ) s[t−1];  θ = b0 + 1.8 b[t];  u = v[t−1] + α (I − v[t−1]);
    s[t] = 1[u > θ];  v[t] = (1 − s[t]) u, whose gradient goes through s too.

    Args:
        current: I[t], the weighted input.
        gates: Logits of α, the update fraction 1/τ_m, and of ρ, what the adaptation retains; None
            for ρ leaves b as it is and the threshold at b0.
        v: v[t−1], the membrane after the reset.
        b: b[t−1], the adaptation.
        spike: s[t−1].
        b0: Lowest threshold.
        surrogate_function: Maps u − θ to the spike.

    Returns:
        s[t], v[t] and b[t]; all tensors are shaped alike.
    """
    update, retain = gates
    v = torch.lerp(v, current, update.sigmoid().to(current))  # autocast mixes the dtypes
    if retain is None:
        spike = surrogate_function(v - b0)
    else:
        b = torch.lerp(spike, b, retain.sigmoid().to(current))
        spike = surrogate_function((v - b0).sub(b, alpha=BETA))
    return spike, torch.addcmul(v, v, spike, value=-1), b


def leaky_step(x: Tensor, o: Tensor, gate: Tensor) -> Tensor:
    """Do one time step of a leaky integrator: o[t] = o[t−1] + α (x − o[t−1]), α = σ(gate)."""
    return torch.lerp(o, x, gate.sigmoid().to(x))
