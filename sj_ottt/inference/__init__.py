"""A trained model on raw recordings and streams: it labels them, and learns from them.

`OneStep` is a model's time step with its state as inputs and outputs, for export.
"""

from sj_ottt.inference.one_step import OneStep

__all__ = ["OneStep"]
