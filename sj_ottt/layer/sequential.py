"""Chains of layers and neurons: what each does with the pair that a neuron hands on."""

from collections.abc import Iterable

import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.modules.dropout import _DropoutNd

from sj_ottt._ops.blocks import give_away
from sj_ottt._ops.hooks import PairHooks
from sj_ottt._ops.pair import Pair
from sj_ottt._ops.rule import LearningModule
from sj_ottt.errors import InputError
from sj_ottt.layer.feedback import feedbacks_within, multi_step_parts
from sj_ottt.layer.layers import OnBoth, map_both
from sj_ottt.layer.synapse import Synapse

__all__ = ["OTTTSequential", "one_by_one", "run_all"]


class OTTTSequential(PairHooks, sj_layer.OTTTSequential):
    """A chain of layers and neurons for one time step, as SpikingJelly's class of this name.

    Takes this module's layers, SpikingJelly's, plain torch modules and modules of one's own. Where
    a neuron has handed on [spike, trace], the next module is called with the pair, and PyTorch's
    functions inside do with it what `Pair` says: products take the trace, linear maps are taken of
    both, and what the trace cannot follow is refused. A neuron takes the spike.

    Args:
        *modules: The chain.

    Raises:
        InputError: At build time, if a pair would reach a dropout of PyTorch or a module with
            neurons that hand on no trace; in training, if something is done to a pair that the
            trace cannot follow.
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


def _run(modules: Iterable[nn.Module], x: Tensor | Pair) -> Tensor | Pair:
    """Send a tensor or a pair through the modules of a chain."""
    before: nn.Module | None = None
    for module in modules:
        if isinstance(x, Tensor) and _goes_to_none_but(module, before):
            give_away(x)
        x = _step(module, Pair.of(x)) if isinstance(x, list | tuple) else module(x)
        before = module
    return x


def _goes_to_none_but(neuron: nn.Module, synapse: nn.Module | None) -> bool:
    """Whether a neuron's current is new from a synapse, both of ours, and no hook sees it."""
    if not isinstance(neuron, LearningModule) or not isinstance(synapse, Synapse):
        return False
    ours = type(synapse).__module__ == Synapse.__module__ and "forward" not in vars(synapse)
    if not ours or not type(neuron).__module__.startswith("sj_ottt.neuron."):
        return False
    hooks = (synapse._forward_hooks, neuron._forward_pre_hooks, neuron._forward_hooks)
    everywhere = (nn_module._global_forward_hooks, nn_module._global_forward_pre_hooks)
    backward = (synapse._backward_hooks, synapse._backward_pre_hooks)
    return not (any(hooks) or any(everywhere) or any(backward) or torch.compiler.is_compiling())


def run_all(modules: Iterable[nn.Module], x: Tensor | Pair) -> Tensor | Pair:
    """Send a tensor or a pair through several modules.

    The modules of an `OTTTSequential` that nothing watches are called by themselves: a call of the
    chain would keep its input alive until it ends, spikes before a pooling for example.
    """
    parts: list[nn.Module] = []
    for module in modules:
        # Its modules one by one, also those that it has twice.
        parts += module if isinstance(module, OTTTSequential) and _unwatched(module) else [module]
    return _run(parts, x)


def _unwatched(module: nn.Module) -> bool:
    """Whether a module is a chain, and nobody would miss its call."""
    tables = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    if type(module) is not OTTTSequential or any(tables) or module._backward_pre_hooks:
        return False
    return module.training and module._compiled_call_impl is None and "forward" not in vars(module)


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


def _step(module: nn.Module, pair: Pair) -> Tensor | Pair:
    """Send a pair through a module."""
    if isinstance(module, sj_layer.Dropout) and not isinstance(module, OnBoth):
        return map_both(module, pair)  # SpikingJelly's keeps its mask for the trace, too
    takes_spikes = isinstance(module, sj_neuron.BaseNode)  # SpikingJelly's do not know of pairs
    out: Tensor | Pair = module(pair.spike if takes_spikes else pair)
    return out


def _check_chain(chain: nn.Sequential, pair: bool) -> bool:
    """Follow the pair through a chain without running it; return whether it surely comes out.

    Raises:
        InputError: If it would surely reach a dropout that draws one mask for the spikes and
            another for the trace, or neurons inside a module that hand on no trace.
    """
    for module in chain:
        if isinstance(module, nn.Sequential):
            pair = _check_chain(module, pair)
        elif isinstance(module, sj_neuron.OTTTLIFNode):
            pair = not isinstance(module, LearningModule) or not module.rule.spike_suffices
        elif pair:
            _refuse_unfit(module)
            pair = isinstance(module, OnBoth) or next(module.parameters(), None) is None
    return pair


def _refuse_unfit(module: nn.Module) -> None:
    """Refuse a module that no pair can pass through."""
    if isinstance(module, _DropoutNd) and module.p > 0:
        raise InputError(
            f"{type(module).__name__} after a neuron would draw one mask for the spikes and "
            f"another for the trace: use sj_ottt.layer.Dropout(p={module.p})"
        )
    for part in module.modules():
        traced = isinstance(part, LearningModule | sj_neuron.OTTTLIFNode | sj_layer.Dropout)
        if part is not module and isinstance(part, base.MemoryModule) and not traced:
            raise InputError(
                f"{type(module).__name__} has a part with a state that hands on no trace, "
                f"{type(part).__name__}: use sj_ottt.convert(model), or neurons of sj_ottt.neuron"
            )
