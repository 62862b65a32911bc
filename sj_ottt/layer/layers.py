"""Layers that map spike and trace alike: pools, dropout, flattening, a constant factor."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn

from sj_ottt._ops.hooks import PairHooks
from sj_ottt._ops.pair import Pair
from sj_ottt._ops.pool import avg_pool2d
from sj_ottt._ops.trace import BySlices, LinearMap, Trace

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Dropout",
    "Dropout2d",
    "Flatten",
    "MaxPool2d",
    "OnBoth",
    "OneMask",
    "Scale",
]


def map_both(module: Callable[[Tensor], Tensor], pair: Pair) -> Pair:
    """Send spike and trace through the same map at once; only the spike carries a gradient."""
    with torch.no_grad():
        trace = Trace(module(pair.values))
    return Pair(module(pair.spike), trace, pair.spike_suffices)


class OnBoth(PairHooks, nn.Module):
    """Base of the layers that map spike and trace alike; it comes before SpikingJelly's class."""

    def forward(self, x: Tensor | Pair) -> Tensor | Pair:
        """Map a tensor to a tensor, or a pair [spike, trace] to a pair."""
        if isinstance(x, list | tuple):
            return map_both(super().forward, Pair.of(x))
        out: Tensor = super().forward(x)
        return out


class _LinearOnBoth(OnBoth):
    """The same for a linear map: a stored trace waits until it is needed."""

    by_slices = False  # see `BySlices`

    def forward(self, x: Tensor | Pair) -> Tensor | Pair:
        """Map a tensor to a tensor, or a pair [spike, trace] to a pair."""
        if isinstance(x, list | tuple):
            linear_map = cast(LinearMap, super().forward)
            return Pair.of(x).through(BySlices(linear_map) if self.by_slices else linear_map)
        return super().forward(x)


class _BlockAvgPool2d(sj_layer.AvgPool2d):
    """SpikingJelly's average pooling, which keeps nothing for the backward pass where it can."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool a tensor."""
        k = self.kernel_size
        blocks = isinstance(k, int) and self.stride == k and self.padding == 0
        if blocks and not self.ceil_mode and not self.divisor_override:
            if self.step_mode == "s":
                return avg_pool2d(x, k)
            return torch.unflatten(avg_pool2d(x.flatten(0, 1), k), 0, x.shape[:2])
        out: Tensor = super().forward(x)
        return out


# The first base turns pairs into the tensors that the second takes.
class AvgPool2d(_LinearOnBoth, _BlockAvgPool2d):  # type: ignore[misc]
    """Average pooling of spike and trace."""

    by_slices = True


class MaxPool2d(OnBoth, sj_layer.MaxPool2d):
    """Maximum pooling of spike and trace, each by its own maximum."""


class AdaptiveAvgPool2d(_LinearOnBoth, sj_layer.AdaptiveAvgPool2d):
    """Average pooling of spike and trace to a given size."""

    by_slices = True


class Flatten(_LinearOnBoth, sj_layer.Flatten):
    """Flattens spike and trace."""


class Scale(OnBoth):
    """Multiplies by a constant: the γ that follows each neuron of a network with sWS.

    Args:
        scale: The factor; 2.74 in the authors' networks.
    """

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def extra_repr(self) -> str:
        """Describe the layer in `print(model)`."""
        return f"{self.scale}"

    def forward(self, x: Tensor | Pair) -> Tensor | Pair:
        """Multiply a tensor, or spike and trace."""
        if isinstance(x, list | tuple):
            return Pair.of(x).scaled(self.scale)
        return x * self.scale


class OneMask(OnBoth):
    """Base of dropouts: SpikingJelly's dropout, whose mask follows a changed batch size or dtype.

    The mask is drawn once per sequence (the first step after a reset) and shared by spike and
    trace, so that â stays the trace of the spikes that the synapse really saw.
    """

    mask: Tensor

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Tensor | None], step_mode: str
    ) -> tuple[Tensor | None]:
        """Drop a mask that was drawn for another shape; move one that fits to the input's dtype."""
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        (mask,) = states
        if mask is None or mask.shape != x.shape:
            return (None,)
        return (mask.to(x),)

    def forward(self, x: Tensor | Pair) -> Tensor | Pair:
        """Mask a tensor, or spike and trace."""
        if not isinstance(x, list | tuple):
            return super().forward(x)
        pair = Pair.of(x)
        spike, trace = super().forward(pair.spike), pair.trace
        if self.training:
            # The mask itself, not this module: when the trace is needed, a reset may be past.
            trace = trace.through(partial(torch.mul, other=self.mask))
        return Pair(cast(Tensor, spike), trace, pair.spike_suffices)


class Dropout(OneMask, sj_layer.Dropout):
    """Dropout with one mask per sequence, shared by spike and trace.

    Args:
        p: Probability that an element is zeroed; the others grow by 1 / (1 − p).
    """


class Dropout2d(OneMask, sj_layer.Dropout2d):
    """Dropout of whole channels with one mask per sequence, shared by spike and trace.

    Args:
        p: Probability that a channel is zeroed; the others grow by 1 / (1 − p).
    """
