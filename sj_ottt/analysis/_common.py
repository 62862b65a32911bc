"""What the instruments share: neurons found, and models copied."""

import copy
from collections.abc import Callable
from typing import TypeVar

from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sj_ottt.errors import InputError
from sj_ottt.learning import reset_state
from sj_ottt.learning.rules import set_rule
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
