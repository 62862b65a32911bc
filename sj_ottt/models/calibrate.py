"""Gains set from data, so that every layer of a new network has something to learn from."""

from typing import Any

import torch
from torch import Tensor, nn

from sj_ottt import layer
from sj_ottt.errors import InputError
from sj_ottt.learning import predict

__all__ = ["calibrate"]

_OPEN = 0.5  # of a residual branch


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor) -> None:
    """Scale each standardized layer of a new network so that its output has variance 1 on x.

    Its gain and its bias are divided by the standard deviation of its output, that of the first
    call where there are several.

    Weight standardization keeps the variance of dense inputs. Frames of events are sparse: as
    built, 7% of an NF-ResNet-34's first neurons fire on them, and 0.4% of its deepest. Afterwards
    8 to 15% fire at all depths but the first stage. Residual branches, which start closed
    (skipinit 0), are opened by half.

    Args:
        model: At its start, before any training; changed in place.
        x: One time step of a batch as in training, [N, C, H, W].

    Raises:
        InputError: If the model has no standardized layer, or one of them gives the same everywhere
            on x.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, layer.WSConv2d | layer.WSLinear) and module.gain is not None
    }
    if not layers:
        raise InputError(
            f"calibrate sets the gain of WSConv2d and WSLinear, and {type(model).__name__} has "
            "none: leave it out"
        )

    done: set[nn.Module] = set()

    def scale(module: Any, args: object, output: Tensor) -> Tensor:
        if module in done:  # called again, with the gain that it has now
            return output
        done.add(module)
        std = output.std()
        if not std > 0:
            name = next(name for name, known in layers.items() if known is module)
            raise InputError(
                f"layer {name} gives {output.mean():g} everywhere on x, so that no gain helps: "
                "give larger frames, or x with something in it"
            )
        for part in (module.gain, module.bias):
            if part is not None:
                part /= std
        return output / std

    for name, parameter in model.named_parameters():
        if name.endswith("skipinit") and parameter == 0:
            parameter.fill_(_OPEN)
    hooks = [module.register_forward_hook(scale) for module in layers.values()]
    try:
        predict(model, x[None])  # layer by layer, each on what those before it now give
    finally:
        for hook in hooks:
            hook.remove()
