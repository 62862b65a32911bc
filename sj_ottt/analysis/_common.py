"""What the instruments share: neurons and layers found, copied and watched."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sj_ottt.errors import InputError
from sj_ottt.learning import reset_state
from sj_ottt.learning.rules import set_rule
from sj_ottt.neuron import OTTTLIFNode

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


def layers_fed_by_spikes(model: nn.Module, x_seq: Tensor) -> dict[str, Any]:
    """Return the synapses whose input is spikes, at most pooled, scaled or summed, by their names.

    They are found in a copy in which the outputs of neurons require a gradient and those of
    synapses do not: an input that requires one has come from neurons through no synapse.

    Raises:
        InputError: If there is none.
    """
    # BPTT, under which nothing but synapses is detached.
    clone = copy_for_rule(model, "bptt").eval().requires_grad_(False)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    synapses: dict[nn.Module, str] = {
        module: name for name, module in clone.named_modules() if isinstance(module, kinds)
    }
    found = set()

    def synapse(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        if args[0].requires_grad:
            found.add(synapses[module])
        return out.detach()

    def neuron(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return out.detach().requires_grad_().clone()  # no leaf: it may be added to in place

    for module in synapses:
        module.register_forward_hook(synapse)
    for node in neurons_of(clone, OTTTLIFNode).values():
        node.register_forward_hook(neuron, prepend=True)  # before a feedback takes its output
    with torch.enable_grad():
        for x in x_seq[:2]:  # a feedback takes part in the second step
            clone(x)
    if not found:
        raise InputError(f"{type(model).__name__} has no layer that sees spikes of a neuron")
    return {name: module for name, module in model.named_modules() if name in found}


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
