"""The state of a network between time steps: reset, cut from its graph, saved and put back."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

from sj_ottt._ops.pair import Pair
from sj_ottt._ops.rule import LearningModule
from sj_ottt.errors import InputError

__all__ = [
    "SavedState",
    "carried",
    "detach_modules",
    "detach_state",
    "load_state",
    "map_state",
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
    detach_modules(stateful_modules(model))


def detach_modules(modules: Iterable[base.MemoryModule]) -> None:
    """Do `detach_state` for modules that are known already."""
    for module in modules:
        for name, value in module._memories.items():
            # Not in place, as SpikingJelly does: what is kept may be a view.
            module._memories[name] = map_state(Tensor.detach, value)
        if isinstance(module, LearningModule):
            module.drop_graph()


def map_state(f: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return what a module keeps between steps, with f of each tensor in the tensor's place."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Pair):
        return value.through(f)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_state(f, item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_state(f, item) for item in value)
    return value


@contextmanager
def carried(model: nn.Module, n: int, reset: bool) -> Iterator[None]:
    """Reset the state before and after a sequence; or carry it on, without the graph that it has.

    Args:
        model: Runs the sequence inside.
        n: Size of the batch.
        reset: Whether to reset.

    Raises:
        InputError: If the state is to be carried on and is not that of n samples, or has no trace.
    """
    if reset:
        reset_state(model)
    else:
        _check_continues(model, n)
        detach_state(model)
    try:
        yield
    finally:
        if reset:
            reset_state(model)
        else:
            detach_state(model)


def _check_continues(model: nn.Module, n: int) -> None:
    for module in stateful_modules(model):
        states = [s for s in module._memories.values() if isinstance(s, Tensor) and s.dim()]
        if not isinstance(module, LearningModule) or not states:
            continue
        if len(states[0]) != n:
            raise InputError(
                f"reset=False: the state of {type(module).__name__} is that of {len(states[0])} "
                f"samples, and x_seq has {n}: give as many, or call reset_state(model)"
            )
        traced = not module.rule.spike_suffices
        if module.training and traced and module._memories.get("trace", states) is None:
            raise InputError(
                f"reset=False: the state of {type(module).__name__} comes from an evaluation and "
                "has no trace to go on from: call reset_state(model)"
            )


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
