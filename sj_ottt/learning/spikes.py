"""Neurons of a model, watched and counted."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based.surrogate import SurrogateFunctionBase
from torch import Tensor, nn

from sj_ottt.learning.predict import predict
from sj_ottt.learning.rules import LearningModule

__all__ = ["count_spikes", "is_neuron", "sends_spikes", "watching"]


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


def count_spikes(
    model: nn.Module, x_seq: Tensor, steps: int | None = None
) -> dict[str, tuple[int, int]]:
    """Count the spikes of each layer of neurons in evaluation.

    Args:
        model: Called once per time step, and left as it was.
        x_seq: The batch, as in `predict`.
        steps: As there.

    Returns:
        Name of each neuron layer → its spikes, and how many there would be if all neurons always
        fired. One that hands on anything but 0 and 1, such as a readout, is left out.
    """
    nodes = {
        name or type(module).__name__: module
        for name, module in model.named_modules()
        if is_neuron(module)
    }
    counts: dict[str, tuple[int, int]] = {}
    others = set()

    def count(name: str, args: tuple[Any, ...], out: Any) -> None:
        if not sends_spikes(out):
            others.add(name)
            return
        spikes, outputs = counts.get(name, (0, 0))
        counts[name] = spikes + int((out != 0).sum().item()), outputs + out.numel()

    if nodes:
        with watching(nodes, count):
            predict(model, x_seq, steps)
    return {name: counts[name] for name in nodes if name in counts and name not in others}
