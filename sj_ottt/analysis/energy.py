"""What a network's products cost: joules by stated constants."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from sj_ottt.analysis.activity import synaptic_operations
from sj_ottt.errors import InputError

__all__ = ["EnergyCosts", "EnergyRow", "energy"]


@dataclass(frozen=True)
class EnergyCosts:
    """Joules of one operation.

    The defaults are those of 32-bit floating point in 45 nm: a multiplication takes 3.7 pJ and an
    addition 0.9 pJ (M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC
    2014).

    Attributes:
        mac: A multiplication and its addition.
        ac: An addition alone.

    Raises:
        InputError: If one is negative or not finite.
    """

    mac: float = 4.6e-12
    ac: float = 0.9e-12

    def __post_init__(self) -> None:
        for name, value in (("mac", self.mac), ("ac", self.ac)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}={value}: give the joules of an operation, from 0 on")


@dataclass(frozen=True)
class EnergyRow:
    """What one layer does for a sample, over all time steps.

    Attributes:
        layer: Its name; "total" for all layers together.
        accumulates: Additions that spikes cause.
        multiply_accumulates: Multiplications of real values, each with its addition.
        joules: What they take.
    """

    layer: str
    accumulates: float
    multiply_accumulates: float
    joules: float


def energy(model: nn.Module, x_seq: Tensor, costs: EnergyCosts | None = None) -> list[EnergyRow]:
    """Estimate the energy of a network's products, per sample over all time steps, in evaluation.

    A product with spikes takes one addition for each spike and each weight that it meets, one of
    real values, such as the frames in the first layer, a multiplication and an addition for each
    pair of numbers, as `synaptic_operations` counts them. Memory, and what a neuron does to its own
    membrane, are left out.

    Args:
        model: Holds neurons; called once per time step.
        x_seq: [T, N, ...].
        costs: Joules of an operation; `EnergyCosts()` if not given.

    Returns:
        A row for each layer, and one for their sum.

    Raises:
        InputError: As `synaptic_operations`.

    Warns:
        UserWarning: As `synaptic_operations`.
    """
    costs = EnergyCosts() if costs is None else costs
    additions = synaptic_operations(model, x_seq)
    total, macs = additions.pop("total"), additions.multiplications
    # In the network's order, a layer of real values first where it runs first.
    names = [name for name, _ in model.named_modules() if name in additions or name in macs]
    names += [name for name in (*macs, *additions) if name not in names]
    counts = [
        (name, additions.get(name, 0.0), macs.get(name, 0.0)) for name in dict.fromkeys(names)
    ]
    counts.append(("total", total, sum(macs.values())))
    return [EnergyRow(name, ac, mac, ac * costs.ac + mac * costs.mac) for name, ac, mac in counts]
