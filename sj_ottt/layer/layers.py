"""Trace-aware layers: what each does with the pair [spike, trace] that a neuron hands on.

Every layer here is SpikingJelly's layer of the same name and behaves as it does on a tensor. On
the list [spike, trace], which neurons hand on in training, a synapse gives a tensor whose weight
gradient is taken with the trace, and a pool, `Scale`, `Dropout` or `Flatten` gives the list again.
"""

from collections.abc import Callable
from functools import partial
from typing import Self

import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from sj_ottt._ops.lif import Product, avg_pool2d, scaled_weight_standardization, traced_product
from sj_ottt._ops.trace import Pair, Trace
from sj_ottt.errors import InputError
from sj_ottt.layer import feedback
from sj_ottt.layer.feedback import Feedback
from sj_ottt.layer.step_weights import Gather, Made, fast_layout

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Conv2d",
    "Dropout",
    "Dropout2d",
    "Feedback",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "OTTTSequential",
    "Pair",
    "Scale",
    "WSConv2d",
    "WSLinear",
]


def _synapse(module: nn.Module, spike: Tensor, trace: Tensor | Trace) -> Tensor:
    """Send spike and trace through a linear or convolutional module: one product, traced."""
    product = Product()
    if not isinstance(module, nn.Linear):
        padding = module.padding
        if module.padding_mode != "zeros" or isinstance(padding, str):
            # The product knows symmetric zeros only; anything else is added beforehand, to both.
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            pad = partial(F.pad, pad=module._reversed_padding_repeated_twice, mode=mode)
            spike, trace = _through(pad, [spike, trace])
            padding = (0,) * len(module.stride)
        product = Product(module.stride, padding, module.dilation, module.groups)
    gather = getattr(module, "gather", None)
    if gather is not None:
        return gather(product, spike, trace)
    weight = module.get_weight() if hasattr(module, "get_weight") else module.weight
    return traced_product(product, spike, trace, weight, module.bias)


def _through(linear_map: Callable[[Tensor], Tensor], pair: Pair) -> Pair:
    """Send spike and trace through a linear map; a stored trace waits until it is needed."""
    spike, trace = pair
    if isinstance(trace, Trace):
        return Pair([linear_map(spike), trace.through(linear_map)])
    return _on_both(linear_map, pair)


def _on_both(module: Callable[[Tensor], Tensor], pair: Pair) -> Pair:
    """Send spike and trace through the same map; only the spike carries a gradient."""
    pair = Pair(pair)
    with torch.no_grad():
        trace = module(pair.values)
    return Pair([module(pair[0]), trace])


class _Synapse:
    """Mixin: a tensor as SpikingJelly's layer takes it, a pair as one traced product."""

    gather: Gather | Made | None = None
    """Makes the weight once for the steps of an update; see `sj_ottt.gather`."""

    def forward(self, x: Tensor | Pair) -> Tensor:
        """Map a tensor, or a pair [spike, trace], to a tensor."""
        if isinstance(x, (list, tuple)):
            return _synapse(self, *x)
        if self.gather is not None and self.step_mode == "s":
            return _synapse(self, x, x)
        return super().forward(x)


class _OnBoth:
    """Mixin: the same map for spike and trace."""

    def forward(self, x: Tensor | Pair) -> Tensor | Pair:
        """Map a tensor to a tensor, or a pair [spike, trace] to a pair."""
        return _on_both(super().forward, x) if isinstance(x, (list, tuple)) else super().forward(x)


class _LinearOnBoth(_OnBoth):
    """Mixin: the same linear map for spike and trace."""

    def forward(self, x: Tensor | Pair) -> Tensor | Pair:
        """Map a tensor to a tensor, or a pair [spike, trace] to a pair."""
        return _through(super().forward, x) if isinstance(x, (list, tuple)) else super().forward(x)


class Linear(_Synapse, sj_layer.Linear):
    """Fully connected layer, [N, in_features] → [N, out_features]."""


class Conv2d(_Synapse, sj_layer.Conv2d):
    """Convolution, [N, C, H, W] → [N, C_out, H', W']."""


class _Standardized(_Synapse):
    """Mixin: scaled weight standardization in the words of `functional`.

    Where no gradient is asked for, Ŵ is kept until a parameter changes. An edit through
    `parameter.data`, which PyTorch does not count as a change, is seen at the next call of
    `train()` or `eval()`.
    """

    _kept: tuple[tuple, Tensor] | None = None

    def get_weight(self, fast: bool = False) -> Tensor:
        """Return the standardized weight Ŵ, shaped like `weight`; `fast` lays it out for speed."""
        if torch.is_grad_enabled() or self.weight.is_inference():
            self._kept = None
            weight = fast_layout(self.weight) if fast else self.weight
            return scaled_weight_standardization(weight, self.gain, self.eps)
        version = tuple(
            None if p is None else (p.data_ptr(), p._version, p.dtype, p.device)
            for p in (self.weight, self.gain)
        )
        if self._kept is None or self._kept[0] != version:
            weight = fast_layout(self.weight)
            made = scaled_weight_standardization(weight, self.gain, self.eps)
            self._kept = (version, made)
        return self._kept[1]

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and forget what was kept."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        """Return what a copy or a pickle holds: not what can be made again."""
        return {**self.__dict__, "_kept": None}


class WSConv2d(_Standardized, sj_layer.WSConv2d):
    """Convolution with scaled weight standardization, [N, C, H, W] → [N, C_out, H', W']."""

    def _forward(self, x: Tensor) -> Tensor:
        # SpikingJelly's layer takes `padding_mode` and then pads with zeros all the same.
        return self._conv_forward(x, self.get_weight(), self.bias)


class WSLinear(_Standardized, sj_layer.WSLinear):
    """Fully connected layer with scaled weight standardization."""


class _LeanAvgPool2d(sj_layer.AvgPool2d):
    """SpikingJelly's average pooling, which keeps nothing for the backward pass where it can."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool a tensor."""
        k = self.kernel_size
        blocks = isinstance(k, int) and self.stride == k and self.padding == 0
        if self.step_mode == "s" and blocks and not self.ceil_mode and not self.divisor_override:
            return avg_pool2d(x, k)
        return super().forward(x)


class AvgPool2d(_LinearOnBoth, _LeanAvgPool2d):
    """Average pooling of spike and trace."""


class MaxPool2d(_OnBoth, sj_layer.MaxPool2d):
    """Maximum pooling of spike and trace, each by its own maximum."""


class AdaptiveAvgPool2d(_LinearOnBoth, sj_layer.AdaptiveAvgPool2d):
    """Average pooling of spike and trace to a given size."""


class Flatten(_LinearOnBoth, sj_layer.Flatten):
    """Flattens spike and trace."""


class Scale(_OnBoth, nn.Module):
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
        if isinstance(x, (list, tuple)):
            return _through(partial(torch.mul, other=self.scale), x)
        return x * self.scale


class _OneMask(_OnBoth):
    """Mixin: SpikingJelly's dropout, whose mask follows a changed batch size or dtype.

    The mask is drawn once per sequence (the first step after a reset) and shared by spike and
    trace, so that â stays the trace of the spikes that the synapse really saw.
    """

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[object, ...]:
        """Drop a mask that was drawn for another shape; move it to the input's dtype."""
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        (mask,) = states
        if mask is None or mask.shape != x.shape:
            return (None,)
        return (mask.to(x),)

    def forward(self, x: Tensor | Pair) -> Tensor | Pair:
        """Mask a tensor, or spike and trace."""
        if not (isinstance(x, (list, tuple)) and isinstance(x[1], Trace)):
            return super().forward(x)
        spike, trace = super().forward(x[0]), x[1]
        if self.training:
            # The mask itself, not this module: when the trace is needed, a reset may be past.
            trace = trace.through(partial(torch.mul, other=self.mask))
        return Pair([spike, trace])


class Dropout(_OneMask, sj_layer.Dropout):
    """Dropout with one mask per sequence, shared by spike and trace.

    Args:
        p: Probability that an element is zeroed; the others grow by 1 / (1 − p).
    """


class Dropout2d(_OneMask, sj_layer.Dropout2d):
    """Dropout of whole channels with one mask per sequence, shared by spike and trace."""


_SYNAPSES = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    sj_layer.Linear,
    sj_layer.Conv1d,
    sj_layer.Conv2d,
    sj_layer.Conv3d,
    sj_layer.WSConv2d,
    sj_layer.WSLinear,
)
"""Foreign modules whose whole forward pass is one linear map. Exact classes only: a subclass may
do anything."""


def _is_synapse(module: nn.Module) -> bool:
    """Whether a foreign module is one product; SpikingJelly's WSConv2d ignores `padding_mode`."""
    ignored = type(module) is sj_layer.WSConv2d and module.padding_mode != "zeros"
    return type(module) in _SYNAPSES and not ignored


class _TwicePass(torch.autograd.Function):
    """Forward: the second tensor. Backward: the gradient goes to both."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
        return grad, grad


def _replay(module: nn.Module, pair: Pair) -> Tensor:
    """Any other parametrised map: its value at the spike, its gradient at the trace.

    This is how SpikingJelly treats every synapse, at the price of a second forward pass.
    """
    pair = Pair(pair)
    with torch.no_grad():
        value = module(pair[0])
    return _TwicePass.apply(module(_TwicePass.apply(pair[0], pair.values)), value)


class OTTTSequential(nn.Sequential):
    """A chain of layers and neurons for one time step, as SpikingJelly's class of this name.

    Takes this module's layers, SpikingJelly's and plain torch modules. Where a neuron has handed
    on [spike, trace], the next module is treated by what it is:

    - a layer of this module, or a nested chain, takes the pair;
    - a neuron takes the spike;
    - a linear or convolutional layer of torch or SpikingJelly computes one traced product;
    - a module without parameters maps spike and trace alike;
    - any other module with parameters runs on both, as in SpikingJelly.

    Args:
        *modules: The chain.

    Raises:
        InputError: At build time, if a pair would reach a module that cannot take one: a dropout
            that would draw one mask for the spikes and another for the trace, or a module with
            a state that spike and trace would both advance.
    """

    def __init__(self, *modules: nn.Module):
        super().__init__(*modules)
        _check_chain(self, pair=False)

    def forward(self, x: Tensor | Pair) -> Tensor | Pair:
        """Run one time step; in evaluation in step mode "m", all of them."""
        if not self.training and _at_once(self) and feedback.within(self):
            return one_by_one(self, x)
        for module in self:
            x = _step(module, x) if isinstance(x, (list, tuple)) else module(x)
        return x


def _at_once(module: nn.Module) -> list[nn.Module]:
    """Return the parts of a module that are to run all time steps in one call."""
    return [part for part in module.modules() if getattr(part, "step_mode", "s") == "m"]


def one_by_one(module: nn.Module, x_seq: Tensor) -> Tensor:
    """Run a module in step mode "m" as time steps: [T, N, ...] → [T, N, ...]."""
    parts = _at_once(module)
    for each in feedback.within(module):
        parts += _at_once(each)
    try:
        for part in parts:
            part.step_mode = "s"
        return torch.stack([module(x) for x in x_seq])
    finally:
        for part in parts:
            part.step_mode = "m"


def _takes_pairs(module: nn.Module) -> bool:
    """Whether a module is one of ours, or built of ours, such as a residual block."""
    ours = (_Synapse, _OnBoth, OTTTSequential)
    return any(isinstance(part, ours) for part in module.modules())


def _step(module: nn.Module, pair: Pair) -> Tensor | Pair:
    if isinstance(module, nn.Sequential):
        return OTTTSequential.forward(module, pair)
    if isinstance(module, sj_neuron.BaseNode):
        return module(pair[0])
    if _takes_pairs(module):
        return module(pair)
    if _is_synapse(module):
        return _synapse(module, *pair)
    _refuse_unfit(module)
    if next(module.parameters(), None) is None:
        return _on_both(module, pair)
    return _replay(module, pair)


def _refuse_unfit(module: nn.Module) -> None:
    """Raise for a module whose result depends on how often it is called."""
    for part in module.modules():
        if isinstance(part, _DropoutNd) and part.p > 0:
            raise InputError(
                f"{type(part).__name__} after a neuron would draw one mask for the spikes and "
                f"another for the trace: use sj_ottt.layer.Dropout(p={part.p})"
            )
        if isinstance(part, base.MemoryModule) and not isinstance(part, sj_layer.Dropout):
            raise InputError(
                f"{type(module).__name__} keeps a state ({type(part).__name__}) and would be "
                "advanced twice a step, by spike and by trace: put its layers into the "
                "OTTTSequential directly, or write a module that takes [spike, trace]"
            )


def _check_chain(chain: nn.Sequential, pair: bool) -> bool:
    """Follow the pair through a chain without running it; return whether it comes out."""
    for module in chain:
        if isinstance(module, nn.Sequential):
            pair = _check_chain(module, pair)
        elif isinstance(module, sj_neuron.OTTTLIFNode):
            pair = True
        elif pair:
            if isinstance(module, (_Synapse, sj_neuron.BaseNode)) or _is_synapse(module):
                pair = False
            elif not _takes_pairs(module):
                _refuse_unfit(module)
                pair = next(module.parameters(), None) is None
    return pair
