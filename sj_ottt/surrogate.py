"""Surrogate gradients: SpikingJelly's, and the multi-Gaussian of adaptive spiking neurons."""

import math
from typing import Any

import torch
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor

from sj_ottt._passthrough import pass_through, public_names
from sj_ottt.errors import InputError

__all__ = ["MultiGaussian"]
__all__ += public_names(sj_surrogate.__name__)

__getattr__, __dir__ = pass_through(__name__, sj_surrogate.__name__)


def _gaussian(x: Tensor, sd: float) -> Tensor:
    """The normal density of mean 0."""
    return (x * x).mul_(-0.5 / sd**2).exp_().mul_(1 / (sd * math.sqrt(2 * math.pi)))


def _multi_gaussian(x: Tensor, scale: float, height: float, sigma: float, width: float) -> Tensor:
    """Return g(x) of `MultiGaussian`, shaped like x."""
    wide = _gaussian(x - sigma, width * sigma).add_(_gaussian(x + sigma, width * sigma))
    return _gaussian(x, sigma).mul_(scale * (1 + height)).sub_(wide, alpha=scale * height)


class _Spike(torch.autograd.Function):
    """Forward 1[x > 0], backward g(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *shape: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.shape = shape
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return _multi_gaussian(x, *ctx.shape).mul_(grad), *(None for _ in ctx.shape)


class MultiGaussian(sj_surrogate.SurrogateFunctionBase):
    """A narrow positive Gaussian between two wide negative ones.

    g(x) = c [(1 + h) N(x; 0, σ) − h N(x; σ, kσ) − h N(x; −σ, kσ)], N the normal density by mean
    and standard deviation. The negative flanks, beyond |x| = 0.7633 by default, push a membrane
    that is far from the threshold away from it. The spike is 1[x > 0], as the equations of the
    liquid time-constant neuron have it; SpikingJelly's own surrogates fire at x = 0 too.

    Args:
        scale: c.
        height: h, of the flanks.
        sigma: σ, in units of the membrane.
        width: k, of the flanks against the middle.
        spiking: Whether the output is spikes; otherwise it is the integral of g from −∞ to x,
            which ends at c (1 − h), not at 1.

    Raises:
        InputError: If `sigma` or `width` is not above 0.
    """

    def __init__(
        self,
        scale: float = 0.5,
        height: float = 0.15,
        sigma: float = 0.3,
        width: float = 6.0,
        spiking: bool = True,
    ):
        for name, value in (("sigma", sigma), ("width", width)):
            if not value > 0:
                raise InputError(f"{name}={value}: give a number above 0")
        super().__init__(spiking=spiking, scale=scale, height=height, sigma=sigma, width=width)

    @staticmethod
    def spiking_function(
        x: Tensor, scale: float, height: float, sigma: float, width: float
    ) -> Tensor:
        """Return 1[x > 0], whose gradient is g(x)."""
        spike: Tensor = _Spike.apply(x, scale, height, sigma, width)
        return spike

    @staticmethod
    def primitive_function(
        x: Tensor, scale: float, height: float, sigma: float, width: float
    ) -> Tensor:
        """Return the integral of g from −∞ to x."""
        middle: Tensor = torch.special.ndtr(x / sigma)
        flanks: Tensor = sum(
            torch.special.ndtr((x + at) / (width * sigma)) for at in (-sigma, sigma)
        )
        return scale * ((1 + height) * middle - height * flanks)
