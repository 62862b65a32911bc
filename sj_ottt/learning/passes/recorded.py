"""The passes of a training step as a CUDA graph: recorded once for a shape, and replayed.

A small batch leaves a GPU waiting for the host, which takes longer to ask for an operation than the
GPU to do it. A graph asks for all of them at once. Recorded are the forward and backward passes of
all time steps; the losses are then looked at, and the update is made, as ever, so that learning
rates, clipping and averages may change from call to call.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sj_ottt.errors import InputError
from sj_ottt.learning.passes.outputs import Structure, map_tensors
from sj_ottt.learning.passes.update import Update
from sj_ottt.learning.state import load_state, save_state

__all__ = ["Passes", "check_recordable", "recorded_passes"]

Passes = Callable[[Update, Tensor, Tensor], tuple[list[Tensor], Structure]]
"""(update, sequence [T, N, ...], target) → the loss of each step, and the prediction, detached."""

_DEVICE = "cuda"
MAX_GRAPHS = 4
"""Of a network: for so many kinds of batches, such as the last and smaller one of an epoch."""

WARM_UPS = 2
"""Passes before the recording, in which libraries choose their kernels and "auto" its chunk."""


class _Graph:
    """A CUDA graph of a function without arguments.

    Args:
        run: Reads and writes tensors that stay where they are; what it returns does, too.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Threads that load data may go on meanwhile.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self.returned = run()

    def replay(self) -> None:
        """Run the function once more."""
        self._graph.replay()


@dataclass
class _Recorded:
    """What was recorded for one kind of batch.

    Attributes:
        made_for: What it depends on beside the batch: the network as it is, and the loss.
        x_seq: Takes the input.
        target: Takes the target.
        graph: Returns the losses [T], the prediction and the gradient of each parameter.
    """

    made_for: tuple[object, ...]
    x_seq: Tensor
    target: Tensor
    graph: _Graph


_RECORDED: WeakKeyDictionary[nn.Module, dict[object, _Recorded]] = WeakKeyDictionary()


def check_recordable(model: nn.Module, x_seq: Tensor, target: Structure, **given: bool) -> None:
    """Refuse what a CUDA graph cannot do.

    Args:
        model: The network.
        x_seq: Its input.
        target: Its target.
        **given: Names of other arguments, and whether they were given.

    Raises:
        InputError: Naming it.
    """
    for name, is_given in given.items():
        if is_given:
            raise InputError(
                f"cuda_graph=True replays one and the same passes and knows no {name}: leave one "
                "of the two out"
            )
    if not isinstance(target, Tensor):
        raise InputError(
            f"cuda_graph=True takes a target that is one tensor, not {type(target).__name__}: "
            "leave cuda_graph out"
        )
    devices = {tensor.device for tensor in (x_seq, target, *model.parameters())}
    if len(devices) > 1 or next(iter(devices)).type != _DEVICE:
        names = ", ".join(sorted(map(str, devices)))
        raise InputError(
            f"cuda_graph=True needs the model, x_seq and target on one GPU, and they are on "
            f"{names}: move them there, or leave cuda_graph out"
        )
    for name, part in model.named_modules():
        tables = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        if any(tables) or part._backward_pre_hooks:
            raise InputError(
                f"cuda_graph=True: {name or type(model).__name__} has a hook, which would run when "
                "the passes are recorded and never again: remove it, or leave cuda_graph out"
            )
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise InputError(
                f"cuda_graph=True: the parameter {name} has a hook on its gradient, which would "
                "run when the passes are recorded and never again: remove it, or leave cuda_graph "
                "out"
            )


def recorded_passes(
    update: Update,
    passes: Passes,
    x_seq: Tensor,
    target: Tensor,
    made_for: tuple[object, ...],
) -> tuple[list[Tensor], Structure]:
    """Do the passes of a training step by a graph, which is recorded where there is none.

    Args:
        update: Whose gradients they make.
        passes: The passes; they begin and end with a state that is reset.
        x_seq: The input [T, N, ...].
        target: The target.
        made_for: What they depend on beside their arguments and the network; the loss comes first.

    Returns:
        The loss of each step and the prediction. The gradients are in `grad`.
    """
    model = update.model
    kinds = _RECORDED.setdefault(model, {})
    device = x_seq.device.type
    autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    kind = (_kind(x_seq), _kind(target), autocast, *made_for[1:])
    made_for = (made_for[0], *_as_it_is(model))
    recorded = kinds.pop(kind, None)
    if recorded is not None and recorded.made_for != made_for:
        if recorded.made_for[0] is not made_for[0]:
            warnings.warn(
                "cuda_graph=True: loss_fn is another object than in the call before, so the passes "
                "are recorded anew, which takes as long as several batches: give the same one",
                stacklevel=3,
            )
        recorded = None
    if recorded is None:
        while len(kinds) >= MAX_GRAPHS:
            kinds.pop(next(iter(kinds)))  # the one that was used longest ago
        recorded = _record(update, passes, x_seq, target, made_for)
    kinds[kind] = recorded
    _fill(recorded.x_seq, x_seq)
    recorded.target.copy_(target)
    recorded.graph.replay()
    losses, prediction, grads = recorded.graph.returned
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad
    return [*losses.clone().unbind()], map_tensors(Tensor.clone, prediction)


def _kind(x: Tensor) -> tuple[object, ...]:
    return tuple(x.shape), x.stride(), x.dtype, x.device


def _as_it_is(model: nn.Module) -> tuple[object, ...]:
    """Return what a graph takes from a network for good: addresses, and what learns how."""
    tensors = (*model.parameters(), *model.buffers())
    addresses = tuple((tensor.data_ptr(), tensor.requires_grad) for tensor in tensors)
    modes = tuple(
        (module.training, getattr(module, "rule", None), getattr(module, "backend", None))
        for module in model.modules()
    )
    return addresses, modes


def _record(
    update: Update, passes: Passes, x_seq: Tensor, target: Tensor, made_for: tuple[object, ...]
) -> _Recorded:
    """Record the passes, and leave the network as it was."""
    model, recording = update.model, replace(update, recorded=True)
    x_seq, target = _kept(x_seq), target.clone()

    def run() -> tuple[Tensor, Structure, list[Tensor | None]]:
        for parameter in model.parameters():
            parameter.grad = None  # what stands there then is the graph's own
        losses, prediction = passes(recording, x_seq, target)
        return torch.stack(losses), prediction, [p.grad for p in model.parameters()]

    with _left_as_it_was(model):
        return _Recorded(made_for, x_seq, target, _Graph(run))


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put the state, the buffers and the generators of random numbers back at the block's end."""
    saved = save_state(model)
    try:
        yield
    finally:
        load_state(model, saved)


def _kept(x_seq: Tensor) -> Tensor:
    """Return a copy of a sequence; of a static batch, one step, shown as often."""
    if x_seq.stride(0) == 0:
        return x_seq[0].clone().expand_as(x_seq)
    return x_seq.clone()


def _fill(kept: Tensor, x_seq: Tensor) -> None:
    """Write a sequence into a copy of one."""
    if kept.stride(0) == 0:
        kept[0].copy_(x_seq[0])
    else:
        kept.copy_(x_seq)
