"""Chains of layers and neurons: what each does with the pair that a neuron hands on."""

from typing import TypeGuard

import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from sj_ottt._ops.pair import Pair
from sj_ottt._ops.synapse import replay
from sj_ottt.errors import InputError
from sj_ottt.layer.feedback import feedbacks_within, multi_step_parts
from sj_ottt.layer.layers import OnBoth, map_both
from sj_ottt.layer.synapse import Synapse, apply_synapse

__all__ = ["OTTTSequential", "one_by_one"]

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


def _is_synapse(module: nn.Module) -> TypeGuard[nn.Linear | _ConvNd]:
    """Whether a foreign module is one product; SpikingJelly's WSConv2d ignores `padding_mode`."""
    ignored = type(module) is sj_layer.WSConv2d and module.padding_mode != "zeros"
    return type(module) in _SYNAPSES and not ignored


class OTTTSequential(sj_layer.OTTTSequential):
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

    def forward(self, input: Tensor | Pair) -> Tensor | Pair:
        """Run one time step [N, ...]; in evaluation in step mode "m", all of them [T, N, ...]."""
        if isinstance(input, Tensor) and not self.training and _needs_single_steps(self):
            return one_by_one(self, input)
        return _run(self, input)


def _needs_single_steps(chain: nn.Sequential) -> bool:
    """Whether all steps are to run in one call, but a feedback makes each need the one before."""
    return bool(multi_step_parts(chain) and feedbacks_within(chain))


def _run(chain: nn.Sequential, x: Tensor | Pair) -> Tensor | Pair:
    """Send a tensor or a pair through the modules of a chain."""
    for module in chain:
        x = _step(module, Pair.of(x)) if isinstance(x, list | tuple) else module(x)
    return x


def one_by_one(module: nn.Module, x_seq: Tensor) -> Tensor:
    """Run a module in step mode "m" as time steps: [T, N, ...] → [T, N, ...]."""
    parts = multi_step_parts(module)
    for feedback in feedbacks_within(module):
        parts += multi_step_parts(feedback)
    try:
        for part in parts:
            part.step_mode = "s"
        return torch.stack([module(x) for x in x_seq])
    finally:
        for part in parts:
            part.step_mode = "m"


def _takes_pairs(module: nn.Module) -> bool:
    """Whether a module is one of ours, or built of ours, such as a residual block."""
    ours = (Synapse, OnBoth, OTTTSequential)
    return any(isinstance(part, ours) for part in module.modules())


def _step(module: nn.Module, pair: Pair) -> Tensor | Pair:
    """Send a pair through a module, which is treated by what it is; see `OTTTSequential`."""
    out: Tensor | Pair
    if isinstance(module, nn.Sequential):
        return _run(module, pair)
    if isinstance(module, sj_neuron.BaseNode):
        out = module(pair.spike)
        return out
    if _takes_pairs(module):
        out = module(pair)
        return out
    if _is_synapse(module):
        return apply_synapse(module, pair)
    _refuse_unfit(module)
    if next(module.parameters(), None) is None:
        return map_both(module, pair)
    return replay(module, pair.spike, pair.values)


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
            if isinstance(module, (Synapse, sj_neuron.BaseNode)) or _is_synapse(module):
                pair = False
            elif not _takes_pairs(module):
                _refuse_unfit(module)
                pair = next(module.parameters(), None) is None
    return pair
