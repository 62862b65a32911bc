"""Online training: one forward and one backward pass per time step, nothing kept in between."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sj_ottt.errors import InputError
from sj_ottt.learning.fptt import FPTT
from sj_ottt.learning.losses import CrossEntropyMSE
from sj_ottt.learning.passes.chunks import find_chunk
from sj_ottt.learning.passes.lengths import Lengths
from sj_ottt.learning.passes.outputs import Structure, map_tensors, stacked
from sj_ottt.learning.passes.processes import Processes, unwrapped
from sj_ottt.learning.passes.recorded import (
    check_recordable,
    find_recorded,
    kind_of,
    record,
    refuse_given,
    replay,
)
from sj_ottt.learning.passes.sequence import join_without_samples, train_sequence
from sj_ottt.learning.passes.update import Update, is_finite
from sj_ottt.learning.predict import as_sequence, combine_outputs, with_lengths
from sj_ottt.learning.state import carried

__all__ = ["ottt_online_training", "train_step"]

_Loss = Callable[[Any, Any], Tensor]


def ottt_online_training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_seq: Tensor,
    target_seq: Structure,
    f_loss_t: _Loss,
    online: bool,
    chunk: int | str = 1,
    memory_budget: int | None = None,
) -> tuple[Tensor, Structure]:
    """Train on one batch of sequences; SpikingJelly's function of the same name.

    As there, the caller resets the model's state between batches (`reset_state`), and the loss
    of a step is taken as `f_loss_t` gives it, not divided by T.

    Args:
        model: Called once per time step on [N, ...]. It may return several outputs, in lists,
            tuples or dicts.
        optimizer: Updates the model's parameters.
        x_seq: [N, T, ...], batch first, as in SpikingJelly.
        target_seq: [N, T, ...], or lists, tuples or dicts of such tensors.
        f_loss_t: Loss of one step, (outputs, target) → scalar.
        online: Update after every step (OTTT_O) instead of once per sequence (OTTT_A).
        chunk: How many time steps run together, as in `train_step`.
        memory_budget: As in `train_step`.

    Returns:
        The loss summed over the steps, and the outputs [N, T, ...], in the structure in which the
        model gives them; both detached. In several processes, one without a sample returns 0 and
        [0].

    Raises:
        InputError: If a neuron of the model does not take part in its rule, a loss is not finite
            (no parameter is changed by that step), or `chunk` does not fit.
    """
    if isinstance(optimizer, FPTT):
        raise InputError("ottt_online_training takes an optimizer: give FPTT to train_step")

    def loss_at(y: Structure, t: int) -> Tensor:
        return f_loss_t(y, map_tensors(lambda target: target[:, t].contiguous(), target_seq))

    processes = Processes.of(model, len(x_seq))
    model = unwrapped(model)
    update = Update(model, optimizer, processes=processes)
    x_seq = x_seq.transpose(0, 1)
    if online:
        processes.must_agree_on_steps(len(x_seq))
    if processes.size > 1 and not x_seq.shape[1]:
        join_without_samples(update, processes, len(x_seq), online=online, backward_at=None)
        return torch.zeros((), device=x_seq.device), torch.zeros(0, device=x_seq.device)
    together = find_chunk(chunk, memory_budget, model, x_seq, online=online)
    steps = train_sequence(update, model, x_seq, loss_at, online=online, chunk=together)
    losses, outputs = zip(*steps, strict=True)
    return torch.stack(losses).sum(), stacked(outputs, dim=1)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | FPTT,
    x_seq: Tensor,
    target: Structure,
    *,
    loss_fn: _Loss | None = None,
    update: str = "accumulate",
    steps: int | None = None,
    backward_steps: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
    lengths: Tensor | None = None,
    reset: bool = True,
    accumulation: tuple[int, int] | None = None,
    clip_norm: float | None = None,
    ema: AveragedModel | None = None,
    chunk: int | str = 1,
    memory_budget: int | None = None,
    cuda_graph: bool = False,
) -> tuple[Tensor, Structure]:
    """Train on one batch, one time step after the other (equations (4) and (5)).

    The gradient is that of the model's learning rule (`sj_ottt.set_rule`). BPTT keeps the graph of
    all steps, and has one backward pass and one update.

    The loss of step t is L[t] = loss_fn(outputs[t], target) / T. The state is reset before and
    after, so batches of any size may follow each other.

    In several processes (`torch.distributed`), with the model in `DistributedDataParallel` or as it
    is, each gives its part of the batch, and all call this together. The gradient is then that of
    the whole batch where `loss_fn` is a mean over samples, whatever the sizes of the parts; a part
    may be empty. It is added up once an update. Random numbers and batch statistics are each
    process's own.

    Args:
        model: Maps [N, ...] to logits [N, classes], one time step a call. With a `loss_fn` of your
            own it may return what that takes: one tensor, or lists, tuples or dicts of tensors.
        optimizer: Updates the model's parameters. `FPTT` cuts the sequence into parts and updates
            after each, by the loss of the part's last output in the weight that it gives the part.
        x_seq: A sequence [T, N, ...]; or, with `steps`, a static batch [N, ...] that is shown at
            every step.
        target: Class indices [N], or probabilities of the classes [N, classes]; with a `loss_fn`
            of your own, what it takes: a tensor of N samples, or anything else.
        loss_fn: Loss of one step before the division by T, which FPTT leaves out; None takes
            `CrossEntropyMSE()`.
        update: "accumulate" adds the gradients of the T steps and updates once (OTTT_A);
            "online" updates after every step (OTTT_O).
        steps: T for a static batch.
        backward_steps: K, the number of steps that have a backward pass, drawn anew from the T for
            each batch (from torch's global generator); the others run forward only. The loss of a
            step stays divided by T. None takes all.
        scaler: Scales the loss against underflow of float16 gradients under `torch.autocast`; one
            backward pass per step and one update of the scale per update of the weights.
        lengths: Lengths T_n [N] of the samples' sequences, whole numbers from 1 to T; None for T.
            Only those run at a step that still go on, so what stands behind a sequence's end in
            `x_seq` is finite and has no influence. A sample's loss is divided by its own T_n, and
            `loss_fn` must be a mean over samples: samples of one length go through it together.
            Then a target's tensors hold N samples each, and so do its lists, unless they are lists
            of such tensors. `backward_steps` are drawn from those of the longest sequence.
        reset: Whether the state is reset before and after. Otherwise the sequence goes on from
            where the last call has left it, and the next call may go on from here; no gradient
            flows into earlier calls, under BPTT neither.
        accumulation: (i, k): this call is number i, from 0, of k whose mean gradient makes one
            update. The gradients are set to zero before the first, the weights follow after the
            last. None for (0, 1).
        clip_norm: Largest norm of all gradients together; None for no limit.
        ema: An average of the model, which takes part in each update of the weights.
        chunk: K, how many time steps run together, layer by layer, as one batch of K N samples:
            faster, with the same gradient, for memory that grows by about 5 bytes a neuron and step
            as long as the rule is not BPTT. "auto" takes the largest K that keeps to
            `memory_budget`. Hooks on modules then see K steps at once, and so does what a network
            computes across samples or keeps in attributes of its own; batch norm and SpikingJelly's
            stateful modules are given one step after the other.
        memory_budget: Of "auto", the largest number of bytes of parameters and of tensors that are
            made on the way; None for a quarter more than one step at a time needs. It is measured
            in the first four steps of the network on an input of new shape.
        cuda_graph: Record the passes of the first call as a CUDA graph and replay it in the calls
            that follow, for batches that leave the GPU waiting for the host. Batches of another
            shape get a graph of their own (of up to four shapes), and a network in which something
            has changed but its parameters' values a new one. Python code in the model and in
            `loss_fn` runs when the passes are recorded and not again; give one `loss_fn` for all
            calls, and one tensor as target. The update itself is not recorded.

    Returns:
        The loss summed over the steps (with FPTT: the mean of the parts' losses by their weights),
        a scalar, and the logits, [N, classes], summed over the steps or, of a model whose
        `prediction` is "last", those of the last step; both detached. Several outputs come in the
        structure in which the model gives them. In several processes, they are those of this
        process's samples; without one, the loss is 0 and the logits are [0].

    Raises:
        InputError: If the model is in evaluation mode, a neuron of it does not take part in its
            rule, shapes do not fit, the input is not finite, an argument is out of range or does
            not go with another one, BPTT is asked for an online update or for `backward_steps`,
            time steps are to run together that cannot (online updates, `layer.Feedback`, a network
            whose outputs are not one of each sample or that changes buffers at every call),
            `cuda_graph` meets what it cannot do (a CPU, hooks, FPTT, online updates, several
            processes, `backward_steps`, `scaler`, `lengths`, `accumulation`, `reset=False`), or a
            loss, or a norm that is to be clipped, is not finite (named; no parameter is changed by
            it, and gradients of earlier calls are gone).
    """
    if update not in ("accumulate", "online"):
        raise InputError(f'update="{update}" is unknown: use "accumulate" or "online"')
    if not model.training:
        raise InputError("the model is in evaluation mode and keeps no trace: call model.train()")
    how: Update | FPTT
    if cuda_graph:
        refuse_given(
            **{
                "FPTT": isinstance(optimizer, FPTT),
                'update="online"': update == "online",
                "backward_steps": backward_steps is not None,
                "scaler (bfloat16 needs none)": scaler is not None,
                "lengths": lengths is not None,
                "reset=False": not reset,
                "accumulation": accumulation is not None,
            },
        )
        kind = kind_of(x_seq, target, steps, chunk, memory_budget, clip_norm)
        known = find_recorded(model, optimizer, kind, loss_fn)
        if known is not None:
            assert isinstance(optimizer, torch.optim.Optimizer) and isinstance(target, Tensor)
            how = Update(model, optimizer, clip_norm=clip_norm, ema=ema)
            x_seq = x_seq if steps is None else x_seq.expand(steps, *x_seq.shape)
            return replay(known, how, x_seq, target)
    n_samples = x_seq.shape[1 if steps is None else 0] if x_seq.dim() > 1 else 0
    processes = Processes.of(model, n_samples)
    model = unwrapped(model)
    idle = processes.size > 1 and n_samples == 0
    # On a GPU, whether the input is finite is looked at together with the losses, unless what is
    # not would be kept, in a state that goes on or in statistics.
    asks_later = x_seq.is_cuda and processes.size == 1 and reset
    asks_later = asks_later and not isinstance(optimizer, FPTT)
    asks_later = asks_later and not any(b.is_floating_point() for b in model.buffers())
    clean = is_finite(x_seq) if asks_later else None
    x_seq, n_steps = as_sequence(x_seq, steps, may_be_empty=idle, look=not asks_later)
    different, inputs = with_lengths(model, x_seq, None if idle else lengths, reset)
    n_steps = n_steps if different is None else different.steps
    _check_target(target, loss_fn, x_seq)
    if backward_steps is not None and not 1 <= backward_steps <= n_steps:
        raise InputError(
            f"backward_steps={backward_steps}: x_seq has {n_steps} time steps; give 1 to {n_steps}"
        )
    if isinstance(optimizer, FPTT):
        how = optimizer
        _check_fptt(
            optimizer,
            n_steps,
            {
                f'update="{update}"': update != "accumulate",
                "backward_steps": backward_steps is not None,
                "scaler (bfloat16 needs none)": scaler is not None,
                "lengths": lengths is not None,
                "accumulation": accumulation is not None,
                "clip_norm (FPTT has its own clip)": clip_norm is not None,
                "ema (FPTT keeps averages of its own)": ema is not None,
            },
        )
    else:
        how = Update(model, optimizer, scaler, accumulation, clip_norm, ema, processes, clean)
    if (
        processes.size > 1
        and lengths is not None
        and (update == "online" or backward_steps is not None)
    ):
        raise InputError(
            "lengths in several processes: the longest sequence of each ends at another step, so "
            'online updates and backward_steps cannot be taken together: use update="accumulate" '
            "without backward_steps, or leave lengths out"
        )
    if accumulation is not None and update == "online":
        raise InputError(
            'update="online" updates at every step and knows no accumulation: leave one out'
        )
    if cuda_graph:
        refuse_given(**{"training in several processes": processes.size > 1})
        check_recordable(model, x_seq, target)
    together = find_chunk(chunk, memory_budget, model, x_seq, online=update == "online")
    every = backward_steps is None
    if update == "online" or not every or isinstance(optimizer, FPTT):
        processes.must_agree_on_steps(n_steps)
    backward_at = None if every else torch.randperm(n_steps)[:backward_steps].tolist()
    if backward_at is not None:
        backward_at = processes.agreed(backward_at)
    if idle:
        join_without_samples(
            how, processes, n_steps, online=update == "online", backward_at=backward_at
        )
        return torch.zeros((), device=x_seq.device), torch.zeros(0, device=x_seq.device)
    online = update == "online"

    def passes(
        how: Update | FPTT, inputs: Iterable[Tensor], target: Structure
    ) -> tuple[list[Tensor], Structure]:
        loss_at = _loss_of_steps(loss_fn, target, n_steps, how, different)
        losses = []

        def outputs() -> Iterator[Structure]:
            for loss, y in train_sequence(
                how,
                model,
                inputs,
                loss_at,
                online=online,
                backward_at=backward_at,
                processes=processes,
                chunk=together,
                lengths=different,
            ):
                losses.append(loss)
                yield y

        with carried(model, x_seq.shape[1], reset):
            return losses, combine_outputs(model, outputs(), different)

    if cuda_graph:
        assert isinstance(how, Update) and isinstance(target, Tensor)
        looks_first = not asks_later
        recorded = record(how, passes, x_seq, target, kind, loss_fn, looks_first=looks_first)
        return replay(recorded, how, x_seq, target)
    losses, prediction = passes(how, inputs, target)
    loss_sum = sum(losses[1:], losses[0])
    if isinstance(how, FPTT):
        loss_sum = loss_sum / how.total_weight(how.parts or n_steps)
    return loss_sum, prediction


def _is_default(loss_fn: _Loss | None) -> bool:
    return loss_fn is None or isinstance(loss_fn, CrossEntropyMSE)


def _check_target(target: Structure, loss_fn: _Loss | None, x_seq: Tensor) -> None:
    """Refuse a target that is not one of each sample."""
    if isinstance(target, Tensor):
        fits = not _is_default(loss_fn) or target.dim() == 1 + target.is_floating_point()
        if fits and target.dim() and len(target) == x_seq.shape[1]:
            return
        what = f"target {target.dtype} of shape {list(target.shape)}"
    elif not _is_default(loss_fn):
        return
    else:
        what = f"target of type {type(target).__name__}"
    raise InputError(
        f"{what} does not fit x_seq of shape {list(x_seq.shape)} = [T, N, ...]: give one class "
        "index per sample, [N], or its classes' probabilities, [N, classes]; or a loss_fn of your "
        "own, which takes other targets of N samples"
    )


def _loss_of_steps(
    loss_fn: _Loss | None,
    target: Structure,
    n_steps: int,
    how: Update | FPTT,
    lengths: Lengths | None,
) -> Callable[[Structure, int], Tensor]:
    """Return (outputs of a step, its number) → loss; with FPTT, the number of the part."""
    used: _Loss = CrossEntropyMSE() if loss_fn is None else loss_fn

    def loss_at(outputs: Structure, t: int) -> Tensor:
        if _is_default(loss_fn):
            _check_logits(outputs, target)
        if lengths is not None:
            return lengths.mean_loss(used, outputs, target, t)
        loss = used(outputs, target)
        if isinstance(how, FPTT):
            return how.weighted(loss, outputs, target, t, how.parts or n_steps)
        return loss / n_steps

    return loss_at


def _check_logits(outputs: Structure, target: Tensor) -> None:
    """Refuse outputs that `CrossEntropyMSE` does not take."""
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"the model gave a {type(outputs).__name__} for one time step, and the loss "
            "CrossEntropyMSE takes one tensor of logits: give a loss_fn of your own, which takes "
            "(outputs, target)"
        )
    if outputs.dim() != 2:
        raise InputError(
            f"the model gave an output of shape {list(outputs.shape)} for one time step; "
            'train_step needs logits [N, classes] (step_mode="s", num_classes > 0)'
        )
    if target.dim() == 2 and target.shape[1] != outputs.shape[1]:
        raise InputError(
            f"target of shape {list(target.shape)} does not fit the logits of shape "
            f"{list(outputs.shape)}: give a probability of each class"
        )


def _check_fptt(fptt: FPTT, n_steps: int, unknown: dict[str, bool]) -> None:
    """Refuse what FPTT does not know: argument → whether it was given."""
    for name, given in unknown.items():
        if given:
            raise InputError(f"FPTT updates once a part and knows no {name}: leave it out")
    if fptt.parts is not None and fptt.parts > n_steps:
        raise InputError(
            f"parts={fptt.parts}: x_seq has {n_steps} time steps; give FPTT 1 to {n_steps}, or None"
        )
