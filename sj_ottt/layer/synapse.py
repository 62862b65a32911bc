"""Synapses: layers that are one linear map of spikes, whose weight gradient takes the trace."""

from functools import partial
from typing import Any, Protocol, Self

import torch
from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from sj_ottt._ops.calls import is_recorded
from sj_ottt._ops.hooks import PairHooks
from sj_ottt._ops.pair import Pair
from sj_ottt._ops.standardize import scaled_weight_standardization
from sj_ottt._ops.synapse import Product, traced_product
from sj_ottt._ops.trace import Trace

__all__ = ["Conv2d", "Linear", "StepWeight", "Synapse", "WSConv2d", "WSLinear", "fast_format"]


class StepWeight(Protocol):
    """Applies a synapse in the synapse's stead while several time steps share one weight."""

    def __call__(
        self, product: Product, x: Tensor, trace: Trace | None, factor: float = 1.0
    ) -> Tensor:
        """Map the input of one time step, times a factor; see `traced_product`."""

    def finish(self) -> None:
        """Give the parameters what the steps have left for them."""


class Synapse(PairHooks, nn.Module):
    """Base of the layers that are one linear map of spikes: W s + b, with ∇W = g âᵀ.

    A tensor goes the way of SpikingJelly's layer; a pair [spike, trace] is one traced product. In
    the list of bases of a layer, this class comes before SpikingJelly's.

    Attributes:
        weight: What learns; W itself, or what `make_weight` makes W of.
        bias: b, or None.
        step_mode: "s" or "m", as in SpikingJelly.
        step_weight: Applies the synapse for the steps of an update; see `layer.step_weights`.
    """

    weight: Tensor
    bias: Tensor | None
    step_mode: str
    step_weight: StepWeight | None = None

    def make_weight(self) -> Tensor:
        """Return the weight that the product takes, W."""
        return self.weight

    def product_parameters(self) -> tuple[Tensor | None, ...]:
        """Return the parameters that W and b are made of: when one changes, W is made anew."""
        return self.weight, self.bias

    def make_fast_weight(
        self,
        factor: float = 1.0,
        memory_format: torch.memory_format | None = None,
        again: bool = False,
    ) -> Tensor:
        """Return W times a factor, laid out in memory as the product runs fastest.

        Args:
            factor: What the spikes are multiplied by elsewhere, (γ W) s = W (γ s).
            memory_format: As `fast_format` returns it; None for that of a large input.
            again: Whether it may lie where the last one that was made so lay.
        """
        memory_format = memory_format or fast_format(self.weight)
        weight = self.make_weight().contiguous(memory_format=memory_format)
        return weight if factor == 1 else factor * weight

    def forward(self, x: Tensor | Pair) -> Tensor:
        """Map a tensor, or a pair [spike, trace], to a tensor."""
        if isinstance(x, list | tuple):
            pair = Pair.of(x)
            if self.step_mode == "s":
                return apply_synapse(self, pair)
            steps = pair.spike.shape[:2]
            return torch.unflatten(apply_synapse(self, pair.through(merge_steps)), 0, steps)
        if self.step_weight is not None and self.step_mode == "s":
            return apply_synapse(self, x)
        out: Tensor = super().forward(x)
        return out


merge_steps = partial(torch.flatten, start_dim=0, end_dim=1)
"""[T, N, ...] → [T N, ...]: what knows of no time takes all steps as one batch."""


def apply_synapse(module: Synapse, x: Tensor | Pair) -> Tensor:
    """Send an input through a synapse: one product, traced.

    Args:
        module: The synapse.
        x: A pair [N, ...], or a real-valued tensor [N, ...], which has no trace.

    Returns:
        W s + b, [N, ...].
    """
    if isinstance(x, Pair):
        x.refuse_cut(type(module).__name__)
    product = Product()
    if isinstance(module, _ConvNd):
        x, product = _convolution(module, x)
    if isinstance(x, Pair) and module.step_weight is not None:
        return module.step_weight(product, *x.without_factor())
    spike, trace = (x.spike, x.trace) if isinstance(x, Pair) else (x, None)
    if module.step_weight is not None:
        return module.step_weight(product, spike, trace)
    return traced_product(product, spike, trace, module.make_weight(), module.bias)


def _convolution(module: _ConvNd, x: Tensor | Pair) -> tuple[Tensor | Pair, Product]:
    """Return a convolution's product, and its input, padded where the product cannot.

    A product pads with zeros only, by as many on both sides.
    """
    padding = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        pad = partial(F.pad, pad=module._reversed_padding_repeated_twice, mode=mode)
        x = x.through(pad) if isinstance(x, Pair) else pad(x)
        padding = (0,) * len(module.stride)
    return x, Product(module.stride, padding, module.dilation, module.groups)


def fast_format(
    weight: Tensor, x: Tensor | None = None, product: Product | None = None
) -> torch.memory_format:
    """Return the memory format in which the product of a weight and an input runs fastest.

    On a CPU, a convolution in channels-last format reads and writes large activations as they are,
    and reorders the weight and its gradient, which oneDNN does for itself in the other format; a
    matrix product in its place takes the weight as it lies. On a GPU it is the user's choice
    (`model.to(memory_format=torch.channels_last)`), as it depends on the dtype.

    Args:
        weight: W.
        x: The input; None for one that is larger than the weight.
        product: How they are multiplied, where an input is given.
    """
    if weight.dim() != 4 or weight.device.type != "cpu":
        return torch.preserve_format
    if x is None or x.numel() >= weight.numel():
        return torch.channels_last
    as_matrix = product is not None and product.few_patches(x, weight) is not None
    return torch.channels_last if as_matrix else torch.contiguous_format


class Linear(Synapse, sj_layer.Linear):
    """Fully connected layer, [N, in_features] → [N, out_features]."""


class Conv2d(Synapse, sj_layer.Conv2d):
    """Convolution, [N, C, H, W] → [N, C_out, H', W']."""


class _Standardized(Synapse):
    """Base of synapses with scaled weight standardization: W = Ŵ, as `_ops.standardize` defines it.

    Where no gradient is asked for, Ŵ is kept until a parameter changes. An edit through
    `parameter.data`, which PyTorch does not count as a change, is seen at the next call of
    `train()` or `eval()`.
    """

    gain: Tensor | None
    eps: float
    _kept: tuple[object, Tensor] | None = None
    _room: Tensor | None = None

    def make_weight(self) -> Tensor:
        """Return the standardized weight Ŵ, shaped like `weight`."""
        return self._standardized(self.weight)

    def make_fast_weight(
        self,
        factor: float = 1.0,
        memory_format: torch.memory_format | None = None,
        again: bool = False,
    ) -> Tensor:
        """Return Ŵ times a factor, in one pass over the weight; see `Synapse.make_fast_weight`."""
        weight = self.weight
        memory_format = memory_format or fast_format(weight)
        room = torch.empty_like(weight, device="meta", memory_format=memory_format)
        if again and weight.device.type == "cpu":  # a GPU's allocator keeps memory ready
            last = self._room
            # New memory would cost a large weight more time than its standardization.
            if last is None or (last.stride(), last.dtype) != (room.stride(), room.dtype):
                last = torch.empty_like(room, device=weight.device)
            self._room = room = last
        else:
            self._room, room = None, torch.empty_like(room, device=weight.device)
        gain = self.gain
        if factor != 1:
            gain = weight.new_full((len(weight), *[1] * (weight.dim() - 1)), factor)
            gain = gain if self.gain is None else factor * self.gain
        return scaled_weight_standardization(weight, gain, self.eps, room)

    def get_weight(self) -> Tensor:
        """Return the standardized weight Ŵ, by SpikingJelly's name for it."""
        return self.make_weight()

    def product_parameters(self) -> tuple[Tensor | None, ...]:
        """Return the parameters that Ŵ and b are made of."""
        return self.weight, self.gain, self.bias

    def _standardized(self, weight: Tensor) -> Tensor:
        # What a parametrization or a hook makes anew may lie where the one before it lay.
        anew = is_recorded() or "weight" not in self._parameters
        if torch.is_grad_enabled() or anew or self.weight.is_inference():
            self._kept = None
            return scaled_weight_standardization(weight, self.gain, self.eps)
        version = tuple(
            None if p is None else (p.data_ptr(), p._version, p.dtype, p.device)
            for p in (self.weight, self.gain)
        )
        if self._kept is None or self._kept[0] != version:
            room = torch.empty_like(self.weight, memory_format=fast_format(self.weight))
            made = scaled_weight_standardization(self.weight, self.gain, self.eps, room)
            self._kept = (version, made)
        return self._kept[1]

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and forget what was kept."""
        self._kept = self._room = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: not what can be made again."""
        return {**self.__dict__, "_kept": None, "_room": None}


class WSConv2d(_Standardized, sj_layer.WSConv2d):
    """Convolution with scaled weight standardization, [N, C, H, W] → [N, C_out, H', W']."""

    _conv_forward: Any

    def _forward(self, x: Tensor) -> Tensor:
        # SpikingJelly's layer takes `padding_mode` and then pads with zeros all the same.
        out: Tensor = self._conv_forward(x, self.get_weight(), self.bias)
        return out


class WSLinear(_Standardized, sj_layer.WSLinear):
    """Fully connected layer with scaled weight standardization."""
