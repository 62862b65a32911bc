"""The state of a network between time steps: reset, cut from its graph, saved and put back."""

import copy
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

__all__ = [
    "SavedState",
    "detach_state",
    "load_state",
    "reset_state",
    "save_state",
    "stateful_modules",
]


def reset_state(model: nn.Module) -> None:
    """Put every neuron and dropout of the model back to its state before the first time step."""
    for module in stateful_modules(model):
        module.reset()


def stateful_modules(model: nn.Module) -> list[base.MemoryModule]:
    """Return the modules of a model that keep something between time steps."""
    # SpikingJelly's reset_net caches the list of modules by model and misses a replaced head.
    return [module for module in model.modules() if isinstance(module, base.MemoryModule)]


def detach_state(model: nn.Module) -> None:
    """Cut the state of a model from the graph of the steps that made it."""
    for module in stateful_modules(model):
        module.detach()


class SavedState(NamedTuple):
    """What a pass through a model changes, beside the gradients.

    Attributes:
        memories: Of each stateful module, without a graph.
        buffers: Values of the model's buffers.
        cpu_rng: State of torch's generator.
        gpu_rng: States of the GPUs' generators; None where no GPU is in use.
    """

    memories: list[dict[str, Any]]
    buffers: list[Tensor]
    cpu_rng: Tensor
    gpu_rng: list[Tensor] | None


def save_state(model: nn.Module) -> SavedState:
    """Return what a pass through the model changes; its state must hold no graph."""
    return SavedState(
        copy.deepcopy([module._memories for module in stateful_modules(model)]),
        [buffer.clone() for buffer in model.buffers()],
        torch.get_rng_state(),
        torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
    )


@torch.no_grad()
def load_state(model: nn.Module, saved: SavedState) -> None:
    """Put back what `save_state` returned."""
    for module, memory in zip(stateful_modules(model), saved.memories, strict=True):
        module._memories = memory
    for buffer, value in zip(model.buffers(), saved.buffers, strict=True):
        buffer.copy_(value)
    torch.set_rng_state(saved.cpu_rng)
    if saved.gpu_rng is not None:
        torch.cuda.set_rng_state_all(saved.gpu_rng)
