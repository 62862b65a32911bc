"""The passes through a sequence: online, through time, and part by part (FPTT)."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from sj_ottt.errors import InputError
from sj_ottt.layer.feedback import check_connected
from sj_ottt.layer.step_weights import online_weights, through_time_weights
from sj_ottt.layer.synapse import Synapse
from sj_ottt.learning.fptt import FPTT
from sj_ottt.learning.rules import rule_of
from sj_ottt.learning.state import (
    SavedState,
    detach_state,
    load_state,
    save_state,
    stateful_modules,
)

__all__ = ["train_sequence"]

_PartResult = tuple[Tensor, list[Tensor]]
"""Loss and outputs of a part, detached."""


def train_sequence(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | FPTT,
    x_seq: Tensor,
    loss_at: Callable[[Tensor, int], Tensor],
    *,
    online: bool,
    backward_at: Container[int] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train on a sequence by the model's rule.

    Args:
        model: Called once per time step.
        optimizer: Updates the model's parameters.
        x_seq: [T, N, ...].
        loss_at: (output of a step, its number) → loss; with `FPTT`, the number of the part.
        online: Update at every step.
        backward_at: The steps that have a backward pass; None for all.
        scaler: As in `train_step`.

    Yields:
        Each step's loss and output, both detached.

    Raises:
        InputError: If a feedback connects nothing, a loss is not finite, or the model learns
            through time and is asked for what that cannot have.
    """
    check_connected(model)
    if isinstance(optimizer, FPTT):
        return _in_parts(model, optimizer, x_seq, loss_at)
    rule = rule_of(model)
    if not rule.through_time:
        return _step_by_step(
            model,
            optimizer,
            x_seq,
            loss_at,
            online=online,
            backward_at=backward_at,
            scaler=scaler,
        )
    for wrong, name in ((online, "online update"), (backward_at is not None, "backward_steps")):
        if wrong:
            raise InputError(
                f'rule="{rule.name}" has one backward pass through all time steps, so it knows no '
                f"{name}: leave it out, or train by another rule"
            )
    return _through_time(model, optimizer, x_seq, loss_at, scaler)


def _step_by_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_seq: Iterable[Tensor],
    loss_at: Callable[[Tensor, int], Tensor],
    *,
    online: bool,
    backward_at: Container[int] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train on a sequence with one backward pass a step.

    No parameter moves on a loss that is not finite. Accumulating, the losses are looked at once,
    before the only update, so that a GPU need not wait for the host at every step.
    """
    losses: list[Tensor] = []
    per_sequence = nullcontext() if online else online_weights(model)
    with per_sequence:
        for t, x in enumerate(x_seq):
            learns = backward_at is None or t in backward_at
            if t == 0 or (online and learns):
                optimizer.zero_grad()
            per_step = online_weights(model) if online else nullcontext()
            with per_step, torch.set_grad_enabled(learns):
                y = _first_output(model(x))
                loss = loss_at(y, t)
                losses.append(loss.detach())
                if online:
                    _check_finite(losses[-1:], t, optimizer)
                if learns:
                    (loss if scaler is None else scaler.scale(loss)).backward()
            if online and learns:
                _update(optimizer, scaler)
            detach_state(model)  # for neurons that are not ours: ours never hold a graph
            yield losses[-1], y.detach()
    if not online:
        _check_finite(losses, 0, optimizer)
        _update(optimizer, scaler)


def _through_time(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_seq: Iterable[Tensor],
    loss_at: Callable[[Tensor, int], Tensor],
    scaler: torch.amp.GradScaler | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train on a sequence with one backward pass at its end: the exact gradient.

    The graph of all T steps is kept until then.
    """
    optimizer.zero_grad()
    with through_time_weights(model):
        outputs = [model(x) for x in x_seq]
        losses = [loss_at(y, t) for t, y in enumerate(outputs)]
        _check_finite([loss.detach() for loss in losses], 0, optimizer)
        total = sum(losses[1:], losses[0])
        (total if scaler is None else scaler.scale(total)).backward()
    _update(optimizer, scaler)
    for loss, y in zip(losses, outputs, strict=True):
        yield loss.detach(), y.detach()


def _in_parts(
    model: nn.Module,
    fptt: FPTT,
    x_seq: Tensor,
    loss_at: Callable[[Tensor, int], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train on [T, N, ...] with an update after each part of it.

    The loss of a part is that of its last output; within the part, the gradient is that of the
    model's rule.
    """
    # Looked up once, as a part may be a single step of a small network.
    stateful = stateful_modules(model)
    shared_weights = through_time_weights if rule_of(model).through_time else online_weights
    has_synapses = any(isinstance(module, Synapse) for module in model.modules())
    end = 0
    for p, part in enumerate(x_seq.tensor_split(fptt.parts or len(x_seq))):
        end += len(part)
        for module in stateful:
            module.detach()
        entry = save_state(model) if fptt.form == "grad" else None

        def run_part(x_seq: Tensor = part, p: int = p, last: int = end - 1) -> _PartResult:
            fptt.optimizer.zero_grad()
            with shared_weights(model) if has_synapses else nullcontext():
                outputs = []
                for x in x_seq:
                    y = _first_output(model(x))
                    outputs.append(y.detach())
                loss = loss_at(y, p)
                _check_finite([loss.detach()], last, fptt.optimizer)
                loss.backward()
            return loss.detach(), outputs

        loss, outputs = run_part()
        fptt.update(run_part if entry is None else partial(_repeat, model, entry, run_part))
        for y in outputs[:-1]:
            yield torch.zeros_like(loss), y
        yield loss, outputs[-1]


def _repeat(model: nn.Module, entry: SavedState, run_part: Callable[[], object]) -> None:
    """Go through a part once more from its entry, leaving nothing but the gradients."""
    detach_state(model)
    after = save_state(model)
    load_state(model, entry)
    run_part()
    load_state(model, after)


def _first_output(out: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the spike of a pair, the first of several outputs, or the output itself."""
    return out if isinstance(out, Tensor) else out[0]


def _update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)  # leaves the update out where a gradient overflowed
        scaler.update()


def _check_finite(losses: list[Tensor], first: int, optimizer: torch.optim.Optimizer) -> None:
    """Refuse losses that are not finite, without leaving a gradient; `first` is their first step.

    Raises:
        InputError: If there is one.
    """
    finite = torch.isfinite(torch.stack(losses)).tolist()
    if not all(finite):
        optimizer.zero_grad()
        t = finite.index(False)
        raise InputError(
            f"the loss of time step {first + t} is {losses[t].item()}; no parameter was changed by "
            "it: lower the learning rate, or look for extreme values in x_seq and in the weights"
        )
