"""Several time steps in one call of a network, a chunk: time becomes a part of the batch.

The network takes the inputs of K steps as one batch [K N, ...], so that what treats every sample
by itself, whether of ours, of PyTorch or of one's own, is right without knowing of time. Modules
that keep something between time steps, and those that take statistics of a batch, are given the
steps back: as [K, N, ...], or one after the other.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sj_ottt._ops.blocks import give_away, is_given_away
from sj_ottt._ops.pair import Pair
from sj_ottt._ops.rule import LearningModule
from sj_ottt._ops.scan import own
from sj_ottt._ops.trace import Trace, View
from sj_ottt.errors import InputError
from sj_ottt.layer.feedback import Feedback
from sj_ottt.layer.layers import OneMask
from sj_ottt.layer.synapse import merge_steps
from sj_ottt.learning.passes.living import LivingBytes
from sj_ottt.learning.passes.outputs import Structure, map_tensors, plain, tensors_in
from sj_ottt.learning.rules import rule_of
from sj_ottt.learning.state import detach_state

__all__ = ["ONE_STEP", "AutoChunk", "Chunk", "Group", "find_chunk", "grouped"]


MAX_GROWTH = 0.25
"""By how much, at most, "auto" lets the memory grow that one step a call needs."""


class Chunk:
    """How many time steps run together.

    Args:
        size: The largest number of them.
    """

    def __init__(self, size: int = 1):
        self._size = size

    def size(self) -> int:
        """Return the largest number of steps of the next group."""
        return self._size

    def watched(self, steps: int) -> AbstractContextManager[object]:
        """Return the block in which that many steps run, forward and backward."""
        return nullcontext()


ONE_STEP = Chunk()


class AutoChunk(Chunk):
    """As many time steps together as a bound on memory allows.

    What one step needs and what one more adds is measured: the first two groups are one step, the
    third is two, and all later ones are as large as the measurements say. (Sums of gradients live
    from the second group on.) Counted are the parameters, and all tensors that are made on the way
    and live at once.

    Args:
        model: The network.
        budget: Largest number of bytes; None for a quarter more than one step a call needs.
    """

    def __init__(self, model: nn.Module, budget: int | None = None):
        super().__init__()
        self._budget = budget
        self._living = LivingBytes()
        self._peaks: list[int] = []
        self._parameters = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))

    def size(self) -> int:
        """Return the largest number of steps of the next group."""
        if len(self._peaks) < 3:
            return 1 if len(self._peaks) < 2 else 2
        _, one, two = self._peaks
        needed = one + self._parameters
        bound = (1 + MAX_GROWTH) * needed if self._budget is None else self._budget
        return 1 + max(0, int((bound - needed) / max(two - one, 1)))

    @contextmanager
    def watched(self, steps: int) -> Iterator[object]:
        """Measure the memory of the block where it is not known yet."""
        if len(self._peaks) == 3 or steps != self.size():
            yield None  # it is known, or this is the rest of a sequence
            return
        with self._living:
            yield None
        self._peaks.append(self._living.peak)


_MEASURED: WeakKeyDictionary[nn.Module, dict[object, AutoChunk]] = WeakKeyDictionary()
"""What "auto" has measured, by network, and by what else it depends on."""


def find_chunk(
    chunk: int | str,
    memory_budget: int | None,
    model: nn.Module,
    x_seq: Tensor,
    *,
    online: bool = False,
) -> Chunk:
    """Return how many steps run together, from the arguments of `train_step` and `predict`.

    Args:
        chunk: The number, or "auto".
        memory_budget: Of "auto": the largest number of bytes.
        model: The network.
        x_seq: Its input, [T, N, ...].
        online: Whether the weights are updated after every step.

    Raises:
        InputError: If an argument is out of range, or the steps cannot run together.
    """
    number = isinstance(chunk, int) and not isinstance(chunk, bool) and chunk >= 1
    if not number and chunk != "auto":
        raise InputError(f'chunk={chunk!r}: give a whole number of time steps from 1 on, or "auto"')
    if memory_budget is not None and (chunk != "auto" or not memory_budget > 0):
        raise InputError(
            f"memory_budget={memory_budget!r}, chunk={chunk!r}: give a number of bytes above 0, "
            'and chunk="auto", which keeps to it'
        )
    reason = _step_by_step_only(model, online)
    if reason is not None and chunk not in (1, "auto"):
        raise InputError(f"chunk={chunk}: {reason}, so it goes step by step: leave chunk out")
    if isinstance(chunk, int):
        return Chunk(chunk)
    if reason is not None:
        return ONE_STEP
    kind = (
        *(x_seq.shape[1:], x_seq.dtype, x_seq.device, memory_budget, str(rule_of(model))),
        *(model.training, torch.is_grad_enabled(), torch.is_autocast_enabled(x_seq.device.type)),
    )
    measured = _MEASURED.setdefault(model, {})
    return measured.setdefault(kind, AutoChunk(model, memory_budget))


def _step_by_step_only(model: nn.Module, online: bool) -> str | None:
    """Return why time steps cannot run together; None where they can."""
    if online:
        return 'update="online" updates the weights after every time step'
    if any(isinstance(part, Feedback) for part in model.modules()):
        return "the model has a Feedback, which needs the step before"
    return None


@dataclass(frozen=True)
class Group:
    """Time steps that run together.

    Attributes:
        first: The number of the first.
        inputs: The input [N, ...] of each.
        chunk: As it was given.
    """

    first: int
    inputs: list[Tensor]
    chunk: Chunk

    @contextmanager
    def run(
        self, model: nn.Module, call: Callable[[Tensor], Structure]
    ) -> Iterator[list[Structure]]:
        """Run a network on all steps; their losses and backward passes belong into the block.

        Args:
            model: The network, in step mode "s".
            call: Calls it.

        Yields:
            The outputs of each step, plain tensors.

        Raises:
            InputError: If an output is not one of all samples, or as `time_in_batch`.
        """
        steps = len(self.inputs)
        with self.chunk.watched(steps), time_in_batch(model, steps):
            yield _outputs(call, self.inputs)


def grouped(
    inputs: Iterable[Tensor],
    chunk: Chunk,
    alike: Callable[[int], object] = lambda t: None,
) -> Iterator[Group]:
    """Group the inputs of time steps that run together.

    An input is not asked for before the groups before its own have run: it may depend on them.

    Args:
        inputs: The input [N, ...] of each step.
        chunk: How many steps run together.
        alike: (number of a step) → what all steps of a group share.

    Yields:
        The groups, one after the other.
    """
    group: list[Tensor] = []
    first = largest = 0
    for t, x in enumerate(inputs):
        if not group:
            first, largest = t, chunk.size()
        group.append(x)
        if len(group) == largest or alike(t + 1) != alike(t):
            yield Group(first, group, chunk)
            group = []
    if group:
        yield Group(first, group, chunk)


def _outputs(call: Callable[[Tensor], Structure], inputs: list[Tensor]) -> list[Structure]:
    """Run a network on the inputs of several steps and part its outputs."""
    if len(inputs) == 1:
        return [plain(call(inputs[0]))]
    steps, n = len(inputs), len(inputs[0])
    out = plain(call(torch.cat(inputs)))
    parts = []
    for y in tensors_in(out):
        if y.dim() == 0 or len(y) != steps * n:
            raise InputError(
                f"chunk={steps}: the model gave an output of shape {list(y.shape)} for {steps} "
                f"steps of {n} samples in one batch: give outputs [N, ...], or leave chunk out"
            )
        parts.append(y.unflatten(0, (steps, n)).unbind())

    def step(t: int) -> Structure:
        tensors = iter([part[t] for part in parts])
        return map_tensors(lambda y: next(tensors), out)

    return [step(t) for t in range(steps)]


@contextmanager
def time_in_batch(model: nn.Module, steps: int) -> Iterator[None]:
    """Let a network take several time steps in one batch [K N, ...] inside the block.

    Args:
        model: Is in step mode "s".
        steps: K.

    Raises:
        InputError: If a part of the model that this does not know changes a buffer at a call, or
            one that keeps something is called twice.
    """
    if steps == 1:
        yield
        return
    online = not rule_of(model).through_time
    parts = dict(_parts_with_time(model))
    known = {part for module in parts for part in module.modules()}
    buffers = [
        (f"{name}.{key}".lstrip("."), buffer, buffer._version)
        for name, module in model.named_modules()
        if module not in known
        for key, buffer in module.named_buffers(recurse=False)
    ]
    before = {module: vars(module).get("forward") for module in parts}
    try:
        called: set[nn.Module] = set()
        for module, at_once in parts.items():
            run = _all_at_once if at_once else partial(_one_by_one, online=online)
            run_steps = partial(run, module, module.forward, steps)
            module.forward = partial(_once, module, run_steps, called)
            if isinstance(module, LearningModule):
                module.in_chunk = True
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward
            if isinstance(module, LearningModule):
                module.in_chunk = False
                own(module._memories)
    for name, buffer, version in buffers:
        if buffer._version != version:
            raise InputError(
                f"chunk={steps}: the model changes its buffer {name} at every call, which should "
                "be once per time step: leave chunk out"
            )


def _once(
    module: nn.Module, forward: Callable[..., Any], called: set[nn.Module], *args: Any
) -> Any:
    """Call a module that keeps something; a second call would come after all steps of the first.

    Raises:
        InputError: At the second.
    """
    in_backward = torch._C._current_graph_task_id() != -1  # a checkpoint, which is refused below
    if module in called and not isinstance(module, OneMask) and not in_backward:
        raise InputError(
            f"chunk: the model calls one {type(module).__name__} more than once per time step, "
            "and its calls would not be in the order of the steps: leave chunk out"
        )
    called.add(module)
    return forward(*args)


def _parts_with_time(module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Yield the modules that must see time, and whether they take all steps at once.

    What is inside of them is theirs to call.
    """
    if isinstance(module, LearningModule | OneMask):
        yield module, True
    elif isinstance(module, base.MemoryModule) or _takes_statistics(module):
        yield module, False
    else:
        for child in module.children():
            yield from _parts_with_time(child)


def _takes_statistics(module: nn.Module) -> bool:
    """Whether a module normalizes by what it finds in the batch, or counts it."""
    if not isinstance(module, _NormBase):
        return False
    return module.training or (module.running_mean is None and not _by_sample(module))


def _by_sample(norm: nn.Module) -> bool:
    return isinstance(norm, nn.modules.instancenorm._InstanceNorm)


def _all_at_once(
    module: base.MemoryModule, forward: Callable[..., Any], steps: int, x: Any, *args: Any
) -> Any:
    """Call a module that knows of time on [K N, ...]."""
    module.step_mode = "m"
    try:
        out = forward(_with_time(x, steps), *args)
    finally:
        module.step_mode = "s"
    return out.through(View(merge_steps)) if isinstance(out, Pair) else merge_steps(out)


def _one_by_one(
    module: nn.Module, forward: Callable[..., Any], steps: int, *args: Any, online: bool
) -> Any:
    """Call a module on one step after the other; online, no graph goes from one to the next."""
    outputs = []
    for t in range(steps):
        outputs.append(forward(*(_at(arg, t, steps) for arg in args)))
        if online:
            detach_state(module)
    return _joined(outputs)


def _with_time(x: Any, steps: int) -> Any:
    """Return [K N, ...] as [K, N, ...], and what is no tensor as it is."""
    unflatten = partial(torch.unflatten, dim=0, sizes=(steps, -1))
    if isinstance(x, list | tuple):
        return Pair.of(x).through(View(unflatten))
    if not isinstance(x, Tensor):
        return x
    with_time = unflatten(x)
    if is_given_away(x):
        give_away(with_time)
    return with_time


def _at(x: Any, t: int, steps: int) -> Any:
    """Return step t of [K N, ...], and what is no tensor as it is."""
    if isinstance(x, list | tuple):
        pair = Pair.of(x)
        return pair.through(partial(_at, t=t, steps=steps))
    # A slice: PyTorch's batch norm sums up wrongly over one sample of a larger tensor's last
    # channels when it comes by its index, with a first stride of its own.
    n = len(x) // steps if isinstance(x, Tensor) else 0
    return x[t * n : (t + 1) * n] if isinstance(x, Tensor) else x


def _joined(outputs: list[Any]) -> Any:
    """Return the outputs [N, ...] of several steps as [K N, ...]."""
    first = outputs[0]
    if isinstance(first, Pair):
        spikes, traces = (torch.cat(items) for items in zip(*outputs, strict=True))
        return Pair(spikes, Trace(traces), first.spike_suffices)
    if isinstance(first, list | tuple):
        return type(first)(_joined(list(items)) for items in zip(*outputs, strict=True))
    return torch.cat(outputs)
