"""Neurons that a new model never uses: it then learns chance, with losses that look fine."""

import warnings

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sj_ottt.learning.spikes import count_spikes

__all__ = ["warn_of_silence"]

_SILENT = 1e-4  # spikes per neuron and time step; a new network as it should be has 0.01 to 0.3


def warn_of_silence(model: nn.Module, x_seq: Tensor, steps: int | None) -> None:
    """Warn of layers whose neurons do not fire, as nothing behind them learns.

    Args:
        model: Is run once more on the batch, in evaluation mode, and left as it was. One with batch
            norm passes, since its statistics are not those of the data yet.
        x_seq: A batch to train on, as in `predict`.
        steps: As there.

    Warns:
        UserWarning: If less than one neuron in 10,000 of a layer fires.
    """
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    counts = count_spikes(model, x_seq, steps)
    silent = [name for name, (spikes, outputs) in counts.items() if spikes < _SILENT * outputs]
    if silent:
        named = ", ".join(silent[:3]) + (f" and {len(silent) - 3} more" if silent[3:] else "")
        warnings.warn(
            f"hardly a neuron fires in {named}, so the layers behind learn nothing: give stronger "
            "frames or more time steps, or start a new model with calibrate (--calibrate)",
            stacklevel=2,
        )
