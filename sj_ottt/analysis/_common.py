"""What the instruments share: neurons and layers found, copied and watched."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based.surrogate import SurrogateFunctionBase
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sj_ottt.errors import InputError
from sj_ottt.learning import reset_state
from sj_ottt.learning.rules import LearningModule, set_rule
from sj_ottt.neuron import OTTTLIFNode
from sj_ottt.neuron.readout import LeakyIntegrator

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output of one step, target) → scalar."""


Neuron = TypeVar("Neuron", bound=nn.Module)


def neurons_of(model: nn.Module, *kinds: type[Neuron]) -> dict[str, Neuron]:
    """Return the neurons of some kinds by their names.

    Raises:
        InputError: If there is none.
    """
    nodes = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if not nodes:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(
            f"{type(model).__name__} has no neuron to look at, which is {names} (of LTC networks "
            "rates and latency can be measured)"
        )
    return nodes


def integrators_of(model: nn.Module) -> list[LeakyIntegrator]:
    """Return the readouts of a model that have a membrane."""
    return [module for module in model.modules() if isinstance(module, LeakyIntegrator)]


def copy_for_rule(model: nn.Module, rule: str) -> nn.Module:
    """Return a copy in training mode that learns by a rule, without gradients and dropout.

    Its traces are stored in full precision. The model itself is reset.
    """
    reset_state(model)
    clone = copy.deepcopy(model).train()
    for node in neurons_of(clone, OTTTLIFNode).values():
        node.trace_dtype = "float32"
    for module in clone.modules():
        if isinstance(module, _DropoutNd | sj_layer.Dropout):
            module.p = 0.0
    clone.zero_grad()
    return set_rule(clone, rule)


def is_neuron(module: nn.Module) -> bool:
    """Whether a module is a neuron: ours, SpikingJelly's, or one that holds a surrogate of its."""
    kinds = sj_neuron.BaseNode, LearningModule
    surrogates = (isinstance(part, SurrogateFunctionBase) for part in module.children())
    return isinstance(module, kinds) or any(surrogates)


def sends_spikes(out: object) -> bool:
    """Whether what a neuron hands on is spikes, all of it 0 or 1."""
    return isinstance(out, Tensor) and bool(((out == 0) | (out == 1)).all())


@contextmanager
def watching(
    modules: Mapping[str, nn.Module], look: Callable[[str, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Call look(name, arguments, output) whenever one of the modules runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, args, out: look(name, args, out)

    hooks = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
