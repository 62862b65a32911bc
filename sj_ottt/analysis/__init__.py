"""Instruments for activity and gradients, and their tables and pictures."""

from sj_ottt.analysis.instruments import (
    firing_rates,
    gradient_alignment,
    latency_curve,
    synaptic_operations,
    theorem1,
    three_factor,
)

__all__ = [
    "firing_rates",
    "gradient_alignment",
    "latency_curve",
    "synaptic_operations",
    "theorem1",
    "three_factor",
]
