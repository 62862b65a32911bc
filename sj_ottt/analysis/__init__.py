"""Instruments for activity and gradients, and their tables and pictures."""

from sj_ottt.analysis.activity import (
    SynapticOperations,
    firing_rates,
    latency_curve,
    synaptic_operations,
)
from sj_ottt.analysis.energy import EnergyCosts, EnergyRow, energy
from sj_ottt.analysis.gradients import gradient_alignment, theorem1, three_factor

__all__ = [
    "EnergyCosts",
    "EnergyRow",
    "SynapticOperations",
    "energy",
    "firing_rates",
    "gradient_alignment",
    "latency_curve",
    "synaptic_operations",
    "theorem1",
    "three_factor",
]
