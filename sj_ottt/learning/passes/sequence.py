"""The passes through a sequence: online, through time, and part by part (FPTT)."""

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from sj_ottt._ops.rule import LearningModule
from sj_ottt.errors import InputError
from sj_ottt.layer.feedback import check_connected
from sj_ottt.layer.step_weights import online_weights, through_time_weights
from sj_ottt.layer.synapse import Synapse
from sj_ottt.learning.fptt import FPTT
from sj_ottt.learning.passes.chunks import ONE_STEP, Chunk, Group, grouped
from sj_ottt.learning.passes.lengths import Lengths
from sj_ottt.learning.passes.neurons import check_neurons, is_their_online_node
from sj_ottt.learning.passes.outputs import Structure, detached, plain
from sj_ottt.learning.passes.processes import Processes
from sj_ottt.learning.passes.update import NOT_FINITE, Update, refuse_not_finite
from sj_ottt.learning.rules import rule_of
from sj_ottt.learning.state import (
    SavedState,
    detach_modules,
    detach_state,
    load_state,
    save_state,
    stateful_modules,
)

__all__ = ["join_without_samples", "train_sequence"]

_StepLoss = Callable[[Structure, int], Tensor]
_PartResult = tuple[Tensor, list[Structure]]
"""Loss and outputs of a part, detached."""


def train_sequence(
    update: Update | FPTT,
    model: nn.Module,
    x_seq: Iterable[Tensor],
    loss_at: _StepLoss,
    *,
    online: bool,
    backward_at: Container[int] | None = None,
    processes: Processes | None = None,
    chunk: Chunk = ONE_STEP,
    lengths: Lengths | None = None,
) -> Iterator[tuple[Tensor, Structure]]:
    """Train on a sequence by the model's rule.

    Args:
        update: Updates the model's parameters.
        model: Called once per time step.
        x_seq: The input [N, ...] of each time step; for FPTT, a tensor [T, N, ...].
        loss_at: (outputs of a step, its number) → loss; with `FPTT`, the number of the part.
        online: Update at every step.
        backward_at: The steps that have a backward pass; None for all.
        processes: Those that train the model together; None for this one alone.
        chunk: How many steps run together.
        lengths: Of the sequences, where they differ.

    Yields:
        Each step's loss and outputs, both detached.

    Raises:
        InputError: If a feedback connects nothing, a neuron cannot take part (`check_neurons`), a
            loss is not finite or depends on no parameter, or the model learns through time, or has
            neurons in evaluation mode, and is asked for what that cannot have.
    """
    check_connected(model)
    rule = rule_of(model)
    check_neurons(model, rule)
    call = _theirs(model) if any(map(is_their_online_node, model.modules())) else model
    if isinstance(update, FPTT):
        assert isinstance(x_seq, Tensor)
        return _in_parts(model, call, update, x_seq, loss_at, processes or Processes(), chunk)
    if backward_at is not None:
        _refuse_frozen(model)
    if not rule.through_time:
        groups = grouped(x_seq, chunk, lambda t: (_learns(t, backward_at), _running(t, lengths)))
        return _step_by_step(update, call, groups, loss_at, online=online, backward_at=backward_at)
    for wrong, name in ((online, "online update"), (backward_at is not None, "backward_steps")):
        if wrong:
            raise InputError(
                f'rule="{rule.name}" has one backward pass through all time steps, so it knows no '
                f"{name}: leave it out, or train by another rule"
            )
    groups = grouped(x_seq, chunk, lambda t: _running(t, lengths))
    return _through_time(update, groups, loss_at)


def _learns(t: int, backward_at: Container[int] | None) -> bool:
    return backward_at is None or t in backward_at


def _running(t: int, lengths: Lengths | None) -> int | None:
    return None if lengths is None else lengths.running(t)


def _refuse_frozen(model: nn.Module) -> None:
    """Refuse neurons in evaluation, which keep no trace in the steps without gradients."""
    for name, part in model.named_modules():
        if isinstance(part, LearningModule) and not part.training:
            raise InputError(
                f"backward_steps: {name} ({type(part).__name__}) is in evaluation mode, and would "
                "lose its trace in the steps without a backward pass: call train() on it, or leave "
                "backward_steps out"
            )


def _theirs(model: nn.Module) -> Callable[[Tensor], Structure]:
    """Return a call of a model that may end with SpikingJelly's OTTT node: its spikes alone."""

    def call(x: Tensor) -> Structure:
        out = model(x)
        is_list = type(out) is list and len(out) == 2  # [spike, trace], whose trace never learns
        return out[0] if is_list and not out[1].requires_grad else out

    return call


def _step_by_step(
    update: Update,
    call: Callable[[Tensor], Structure],
    groups: Iterable[Group],
    loss_at: _StepLoss,
    *,
    online: bool,
    backward_at: Container[int] | None = None,
) -> Iterator[tuple[Tensor, Structure]]:
    """Train on a sequence with one backward pass for each group of its steps.

    No parameter moves on a loss that is not finite. Accumulating, the losses are looked at once,
    before the only update, so that a GPU need not wait for the host at every step.
    """
    losses: list[Tensor] = []
    model, learnt = update.model, backward_at is not None
    stateful = stateful_modules(model)
    per_sequence = nullcontext() if online else online_weights(model)
    with per_sequence:
        for group in groups:
            t, learns = group.first, _learns(group.first, backward_at)
            if t == 0 or (online and learns):
                update.start()
            per_step = online_weights(model) if online else nullcontext()
            with per_step, torch.set_grad_enabled(learns), group.run(model, call) as outputs:
                # A penalty on spikes may make a loss a pair.
                found = [plain(loss_at(y, t + i)) for i, y in enumerate(outputs)]
                losses += [loss.detach() for loss in found]
                total = sum(found[1:], found[0])
                # Behind a feedback alone, nothing learns in the first step.
                learns = any_learns = learns and total.requires_grad
                if online:
                    any_learns = _check_losses(losses[-1:], t, update, learns)
                if learns:
                    update.backward(total)
            learnt = learnt or any_learns
            if online and any_learns:
                update.finish()
            detach_modules(stateful)  # for neurons that are not ours: ours never hold a graph
            yield from zip(losses[t:], map(detached, outputs), strict=True)
        if not online:  # before the block's end, where hooks on gradients run
            learnt = _check_losses(losses, 0, update, learnt)
    _check_learnt(learnt)
    if not online:
        update.finish()


def _through_time(
    update: Update, groups: Iterable[Group], loss_at: _StepLoss
) -> Iterator[tuple[Tensor, Structure]]:
    """Train on a sequence with one backward pass at its end: the exact gradient.

    The graph of all T steps is kept until then.
    """
    update.start()
    with through_time_weights(update.model):
        outputs: list[Structure] = []
        for group in groups:
            with group.run(update.model, update.model) as found:
                outputs += found
        losses = [plain(loss_at(y, t)) for t, y in enumerate(outputs)]
        total = sum(losses[1:], losses[0])
        _check_learnt(
            _check_losses([loss.detach() for loss in losses], 0, update, total.requires_grad)
        )
        update.backward(total)
    update.finish()
    for loss, y in zip(losses, outputs, strict=True):
        yield loss.detach(), detached(y)


def _in_parts(
    model: nn.Module,
    call: Callable[[Tensor], Structure],
    fptt: FPTT,
    x_seq: Tensor,
    loss_at: _StepLoss,
    processes: Processes,
    chunk: Chunk,
) -> Iterator[tuple[Tensor, Structure]]:
    """Train on [T, N, ...] with an update after each part of it.

    The loss of a part is that of its last output; within the part, the gradient is that of the
    model's rule.
    """
    shared_weights = through_time_weights if rule_of(model).through_time else online_weights
    has_synapses = any(isinstance(module, Synapse) for module in model.modules())
    end = 0
    for p, part in enumerate(x_seq.tensor_split(fptt.parts or len(x_seq))):
        end += len(part)
        detach_state(model)
        entry = save_state(model) if fptt.form == "grad" else None

        def run_part(x_seq: Tensor = part, p: int = p, last: int = end - 1) -> _PartResult:
            fptt.optimizer.zero_grad()
            with shared_weights(model) if has_synapses else nullcontext():
                outputs: list[Structure] = []
                for group in grouped(x_seq, chunk):
                    with group.run(model, call) as found:
                        outputs += map(detached, found)
                        if len(outputs) == len(x_seq):
                            loss = plain(loss_at(found[-1], p))
                            _check_finite([loss.detach()], last, fptt.optimizer, processes)
                            processes.weighed(loss).backward()
            processes.add_up(fptt.optimizer)
            return loss.detach(), outputs

        loss, outputs = run_part()
        fptt.update(run_part if entry is None else partial(_repeat, model, entry, run_part))
        for y in outputs[:-1]:
            yield torch.zeros_like(loss), y
        yield loss, outputs[-1]


def join_without_samples(
    update: Update | FPTT,
    processes: Processes,
    steps: int,
    *,
    online: bool,
    backward_at: Container[int] | None,
) -> None:
    """Take part in the updates of a batch of which this process has no sample.

    It adds nothing to the gradients, and takes the same steps as the others.

    Args:
        update: As in `train_sequence`, as are the next ones.
        processes: Those that train the model together.
        steps: T.
        online: As there.
        backward_at: As there.

    Raises:
        InputError: If a loss of another process is not finite.
    """
    if isinstance(update, FPTT):
        fptt = update

        def run_part() -> None:
            fptt.optimizer.zero_grad()
            _check_finite([], 0, fptt.optimizer, processes)
            processes.add_up(fptt.optimizer)

        for _ in range(fptt.parts or steps):
            run_part()
            fptt.update(run_part)
        return
    for t in range(steps) if online else (0,):
        if t == 0 or backward_at is None or t in backward_at:
            update.start()
            update.initialize_scale()
        if _check_losses([], t, update, False):
            update.finish()


def _repeat(model: nn.Module, entry: SavedState, run_part: Callable[[], object]) -> None:
    """Go through a part once more from its entry, leaving nothing but the gradients."""
    detach_state(model)
    after = save_state(model)
    load_state(model, entry)
    run_part()
    load_state(model, after)


def _check_learnt(learnt: bool) -> None:
    """Refuse a batch that nothing can be learnt from.

    Raises:
        InputError: If no loss depends on a parameter that learns.
    """
    if not learnt:
        raise InputError(
            "the loss depends on no parameter that learns: look for requires_grad=False on all of "
            "the model, for detach() or .data in its forward, and for a loss_fn that leaves its "
            "graph"
        )


def _check_losses(losses: list[Tensor], first: int, update: Update, learns: bool) -> bool:
    """Check losses as `_check_finite` does; return whether anything learns, in any process."""
    if update.recorded:
        return learns
    clean = update.input_is_finite
    return _check_finite(losses, first, update.optimizer, update.processes, learns, clean)


def _check_finite(
    losses: list[Tensor],
    first: int,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
    learns: bool = False,
    input_is_finite: Tensor | None = None,
) -> bool:
    """Refuse losses that are not finite, in all processes, without leaving a gradient.

    This is where the host waits for the device, once an update.

    Args:
        losses: Scalars.
        first: The step of the first.
        optimizer: Its gradients are set to zero where one is not finite.
        processes: Those that train the model together.
        learns: Whether a loss of this process depends on a parameter.
        input_is_finite: See `Update`.

    Returns:
        ``learns``, of any process.

    Raises:
        NotFiniteError: If a loss is not finite.
    """
    finite: list[bool] = []
    if losses:
        flags = torch.isfinite(torch.stack(losses))
        clean = flags.new_ones(()) if input_is_finite is None else input_is_finite
        *finite, is_clean = torch.cat([flags, clean.reshape(1)]).tolist()
        if not is_clean:
            optimizer.zero_grad()
            raise InputError(NOT_FINITE)
    all_finite, any_learns = processes.all_and_any(all(finite), learns)
    refuse_not_finite(finite, losses, first, optimizer, all_finite=all_finite)
    return any_learns
