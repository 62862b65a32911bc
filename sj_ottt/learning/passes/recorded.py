"""The passes of a training step as a CUDA graph: recorded once for a shape, and replayed.

A small batch leaves a GPU waiting for the host, which takes longer to ask for an operation than the
GPU to do it. A graph asks for all of them at once. Recorded are the forward and backward passes of
all time steps, the clipping of their gradients, and what tells whether all is finite; the host
looks at that once, and the optimizer steps as ever, so that learning rates may change from call to
call.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sj_ottt.errors import InputError
from sj_ottt.learning.passes.outputs import Structure, map_tensors
from sj_ottt.learning.passes.update import NOT_FINITE, Update, is_finite, refuse_not_finite
from sj_ottt.learning.state import load_state, save_state

__all__ = [
    "Passes",
    "Recorded",
    "check_recordable",
    "find_recorded",
    "kind_of",
    "record",
    "refuse_given",
    "replay",
]

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

    Raises:
        InputError: If the function does what cannot be recorded; PyTorch stays usable then.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        outside = torch.cuda.current_stream()
        stream = _side_stream(outside.device)
        stream.wait_stream(outside)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        outside.wait_stream(stream)
        self._graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        error: RuntimeError | None = None
        try:
            # Threads that load data may go on meanwhile.
            with torch.cuda.graph(
                self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                try:
                    self.returned = run()
                except RuntimeError as first:
                    error = first  # the end of the recording then fails, and says less
                    raise
        except BaseException as last:
            _clean_up(outside, pool)
            if not isinstance(last, RuntimeError):
                raise
            words = str(error or last).strip().splitlines()[0]
            raise InputError(
                f"cuda_graph=True: the passes cannot be recorded as a CUDA graph ({words}): take "
                "out of the model and of loss_fn what waits for values (.item(), .cpu(), print, "
                "if), or leave cuda_graph out"
            ) from (error or last)

    def replay(self) -> None:
        """Run the function once more."""
        self._graph.replay()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of a device on which all graphs are recorded.

    On another one, what is left of an earlier recording would be waited for, which cannot be
    recorded.
    """
    return torch.cuda.Stream(device)


def _clean_up(outside: torch.cuda.Stream, pool: Any) -> None:
    """Undo what PyTorch leaves behind where a recording fails: stream, allocator, generator.

    Args:
        outside: The stream that was the current one before.
        pool: Memory of the recording.
    """
    torch.cuda.set_stream(outside)
    device = outside.device_index
    with suppress(RuntimeError):  # where the recording has ended it itself
        torch._C._cuda_endAllocateToPool(device, pool)
    # The generator takes itself to be recorded for ever; a copy of its state does not. The graphs
    # that draw from the old state are gone with it.
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())
    _RECORDED.clear()


class _Network:
    """A network as a graph has taken it: where its tensors lie, and what learns how.

    Looked at are flat lists, so that a replay need not walk through the network.

    Args:
        model: The network.
        optimizer: Its parameters count, too.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        # Not the model itself, which would stay alive for good.
        self._parts = [*model.modules()][1:]
        self.parameters = [*model.parameters()]
        known = set(self.parameters)
        groups = (p for group in optimizer.param_groups for p in group["params"])
        self.parameters += [p for p in groups if p not in known]
        self._tensors = [*self.parameters, *model.buffers()]
        self._nodes = [m for m in self._parts if hasattr(m, "rule") or hasattr(m, "backend")]
        self._optimizer = optimizer
        self._before = self._now(model)

    def _now(self, model: nn.Module) -> tuple[object, ...]:
        modules = [model, *self._parts]
        nodes = [model, *self._nodes]
        return (
            [(m.training, *m._modules.values()) for m in modules],
            [(*map(id, m._parameters.values()), *map(id, m._buffers.values())) for m in modules],
            [(t.data_ptr(), t.requires_grad) for t in self._tensors],
            [(getattr(m, "rule", None), getattr(m, "backend", None)) for m in nodes],
        )

    def is_still(self, model: nn.Module, optimizer: object) -> bool:
        """Whether all is as it was, and no hook has come."""
        if optimizer is not self._optimizer or self._now(model) != self._before:
            return False
        hooked = (
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in (model, *self._parts)
        )
        watched = (p._backward_hooks or p._post_accumulate_grad_hooks for p in self.parameters)
        return not any(hooked) and not any(watched)


@dataclass
class Recorded:
    """What was recorded for one kind of batch.

    Attributes:
        network: The network as it was.
        loss_fn: As it was given.
        looks_first: Whether the input must be known to be finite before a replay.
        x_seq: Takes the input.
        target: Takes the target.
        graph: Returns `_Returned`.
    """

    network: _Network
    loss_fn: object
    looks_first: bool
    x_seq: Tensor
    target: Tensor
    graph: _Graph


class _Returned(NamedTuple):
    """What lies in a graph's memory after a replay.

    Attributes:
        losses: Of each step, [T].
        loss: Their sum.
        prediction: Detached.
        grads: Of each parameter; None without one.
        seen: For the host to look at, [T + 2]: whether each loss is finite and whether the input
            is, and the norm of the gradients before they were clipped (0 without a limit).
    """

    losses: Tensor
    loss: Tensor
    prediction: Structure
    grads: list[Tensor | None]
    seen: Tensor


_RECORDED: WeakKeyDictionary[nn.Module, dict[object, Recorded]] = WeakKeyDictionary()


def refuse_given(**given: bool) -> None:
    """Refuse arguments that a CUDA graph does not know.

    Args:
        **given: Names of arguments, and whether they were given.

    Raises:
        InputError: Naming one.
    """
    for name, is_given in given.items():
        if is_given:
            raise InputError(
                f"cuda_graph=True replays one and the same passes and knows no {name}: leave one "
                "of the two out"
            )


def check_recordable(model: nn.Module, x_seq: Tensor, target: Structure) -> None:
    """Refuse what a CUDA graph cannot do.

    Args:
        model: The network.
        x_seq: Its input.
        target: Its target.

    Raises:
        InputError: Naming it.
    """
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


def kind_of(x_seq: Tensor, target: Structure, *options: object) -> tuple[object, ...]:
    """Return what batches that share a graph have in common."""
    device = x_seq.device.type
    autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    tensors = (x for x in (x_seq, target) if isinstance(x, Tensor))
    kinds = ((tuple(x.shape), x.stride(), x.dtype, x.device) for x in tensors)
    return *kinds, autocast, *options


def find_recorded(
    model: nn.Module, optimizer: object, kind: tuple[object, ...], loss_fn: object
) -> Recorded | None:
    """Return what was recorded for a kind of batch; None where it does not fit any more."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    kinds = _RECORDED.get(model, {})
    recorded = kinds.get(kind)
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if recorded is None or several:
        return None
    if recorded.loss_fn is not loss_fn or not recorded.network.is_still(model, optimizer):
        return None
    kinds[kind] = kinds.pop(kind)  # the one that was used last
    return recorded


def record(
    update: Update,
    passes: Passes,
    x_seq: Tensor,
    target: Tensor,
    kind: tuple[object, ...],
    loss_fn: object,
    *,
    looks_first: bool,
) -> Recorded:
    """Record the passes of a training step, and leave the network as it was.

    Args:
        update: Whose gradients they make.
        passes: The passes; they begin and end with a state that is reset.
        x_seq: The input [T, N, ...].
        target: The target.
        kind: See `kind_of`.
        loss_fn: As the user has given it.
        looks_first: See `Recorded`.

    Raises:
        InputError: If they cannot be recorded.
    """
    model = update.model
    kinds = _RECORDED.setdefault(model, {})
    old = kinds.pop(kind, None)
    if old is not None and old.loss_fn is not loss_fn:
        warnings.warn(
            "cuda_graph=True: loss_fn is another object than in the call before, so the passes "
            "are recorded anew, which takes as long as several batches: give the same one",
            stacklevel=3,
        )
    while len(kinds) >= MAX_GRAPHS:
        kinds.pop(next(iter(kinds)))  # the one that was used longest ago
    recording = replace(update, recorded=True, input_is_finite=None)
    network = _Network(model, update.optimizer)
    _let_go_of_graphs(network.parameters)
    x_seq, target = _kept(x_seq), target.clone()

    def run() -> _Returned:
        for parameter in network.parameters:
            parameter.grad = None  # what stands there then is the graph's own
        clean = is_finite(x_seq)
        losses, prediction = passes(recording, x_seq, target)
        grads = [p.grad for p in network.parameters]
        norm = _clipped(grads, update.clip_norm)
        together = torch.stack(losses)
        numbers = [torch.isfinite(together).double(), norm.double().reshape(1)]
        numbers.insert(1, torch.ones_like(numbers[1]) if clean is None else clean.reshape(1))
        loss = sum(losses[1:], losses[0])
        return _Returned(together, loss, prediction, grads, torch.cat(numbers))

    with _left_as_it_was(model):
        graph = _Graph(run)
    made = Recorded(network, loss_fn, looks_first, x_seq, target, graph)
    _RECORDED.setdefault(model, {})[kind] = made
    return made


def replay(
    recorded: Recorded, update: Update, x_seq: Tensor, target: Tensor
) -> tuple[Tensor, Structure]:
    """Do the passes of a training step by their graph, and update.

    Returns:
        The loss summed over the steps, and the prediction.

    Raises:
        InputError: If the input, a loss, or a norm that is to be clipped is not finite.
    """
    if recorded.looks_first:
        clean = is_finite(x_seq)
        if clean is not None and not clean:
            raise InputError(NOT_FINITE)
    _fill(recorded.x_seq, x_seq)
    recorded.target.copy_(target)
    recorded.graph.replay()
    returned: _Returned = recorded.graph.returned
    for parameter, grad in zip(recorded.network.parameters, returned.grads, strict=True):
        parameter.grad = grad
    # What the next replay overwrites is copied before the host waits for the device.
    loss, prediction = returned.loss.clone(), map_tensors(Tensor.clone, returned.prediction)
    *finite, clean, norm = returned.seen.tolist()
    if not clean:
        update.optimizer.zero_grad()
        raise InputError(NOT_FINITE)
    refuse_not_finite(finite, returned.losses, 0, update.optimizer)
    update.finish(norm)
    return loss, prediction


@torch.no_grad()
def _clipped(grads: list[Tensor | None], limit: float | None) -> Tensor:
    """Limit the norm of all gradients together, and return what it was."""
    found = [grad for grad in grads if grad is not None]
    norm = torch.nn.utils.get_total_norm(found) if limit is not None else found[0].new_zeros(())
    if limit is not None:
        torch._foreach_mul_(found, (limit / norm).clamp(max=1.0))
    return norm


@torch.no_grad()
def _let_go_of_graphs(parameters: Iterable[Tensor]) -> None:
    """Part parameters from graphs that somebody still holds, such as of a loss that is kept.

    Such a graph shares with all later ones the node that adds to a parameter's gradient, on the
    stream of its own forward pass, which a recording cannot wait for. PyTorch makes a new node
    where a parameter's dtype has changed.
    """
    for parameter in parameters:
        parameter.grad = None
        data = parameter.data
        other = torch.float32 if data.dtype == torch.float64 else torch.float64
        parameter.data = data.new_empty(0, dtype=other)
        parameter.data = data


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
