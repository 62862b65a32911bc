"""Online training: one forward and one backward pass per time step, nothing kept in between."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sj_ottt.errors import InputError
from sj_ottt.learning.fptt import FPTT
from sj_ottt.learning.losses import CrossEntropyMSE
from sj_ottt.learning.passes import train_sequence
from sj_ottt.learning.predict import as_sequence, combine_outputs
from sj_ottt.learning.state import reset_state

__all__ = ["ottt_online_training", "train_step"]


def ottt_online_training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_seq: Tensor,
    target_seq: Tensor,
    f_loss_t: Callable[[Tensor, Tensor], Tensor],
    online: bool,
) -> tuple[Tensor, Tensor]:
    """Train on one batch of sequences; SpikingJelly's function of the same name.

    As there, the caller resets the model's state between batches (`reset_state`), and the loss
    of a step is taken as `f_loss_t` gives it, not divided by T.

    Args:
        model: Called once per time step on [N, ...].
        optimizer: Updates the model's parameters.
        x_seq: [N, T, ...], batch first, as in SpikingJelly.
        target_seq: [N, T, ...].
        f_loss_t: Loss of one step, (output, target) → scalar.
        online: Update after every step (OTTT_O) instead of once per sequence (OTTT_A).

    Returns:
        The loss summed over the steps, and the outputs [N, T, ...]; both detached.

    Raises:
        InputError: If a loss is not finite; no parameter is changed by that step.
    """
    if isinstance(optimizer, FPTT):
        raise InputError("ottt_online_training takes an optimizer: give FPTT to train_step")
    targets = target_seq.transpose(0, 1)

    def loss_at(y: Tensor, t: int) -> Tensor:
        return f_loss_t(y, targets[t].contiguous())

    steps = train_sequence(model, optimizer, x_seq.transpose(0, 1), loss_at, online=online)
    losses, outputs = zip(*steps, strict=True)
    return torch.stack(losses).sum(), torch.stack(outputs, dim=1)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | FPTT,
    x_seq: Tensor,
    target: Tensor,
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    update: str = "accumulate",
    steps: int | None = None,
    backward_steps: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[Tensor, Tensor]:
    """Train a classifier on one batch, one time step after the other (equations (4) and (5)).

    The gradient is that of the model's learning rule (`sj_ottt.set_rule`). BPTT keeps the graph of
    all steps, and has one backward pass and one update.

    The loss of step t is L[t] = loss_fn(logits[t], target) / T. The state is reset before and
    after, so batches of any size may follow each other.

    Args:
        model: Maps [N, ...] to logits [N, classes], one time step a call; with a `loss_fn` of your
            own, to what it takes.
        optimizer: Updates the model's parameters. `FPTT` cuts the sequence into parts and updates
            after each, by the loss of the part's last output in the weight that it gives the part.
        x_seq: A sequence [T, N, ...]; or, with `steps`, a static batch [N, ...] that is shown at
            every step.
        target: Class indices [N], or probabilities of the classes [N, classes]; with a `loss_fn`
            of your own, what it takes, of N samples.
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

    Returns:
        The loss summed over the steps (with FPTT: the mean of the parts' losses by their weights),
        a scalar, and the logits, [N, classes], summed over the steps or, of a model whose
        `prediction` is "last", those of the last step; both detached.

    Raises:
        InputError: If the model is in evaluation mode, shapes do not fit, the input is not
            finite, `update` is unknown, `backward_steps` is not in 1 … T, BPTT is asked
            for an online update or for `backward_steps`, FPTT for these or a `scaler` or more
            parts than steps, or a loss is not finite (named by its step; no parameter is changed by
            it).
    """
    if update not in ("accumulate", "online"):
        raise InputError(f'update="{update}" is unknown: use "accumulate" or "online"')
    if not model.training:
        raise InputError("the model is in evaluation mode and keeps no trace: call model.train()")
    x_seq, n_steps = as_sequence(x_seq, steps)
    own_loss = loss_fn is not None and not isinstance(loss_fn, CrossEntropyMSE)
    fits = own_loss or target.dim() == 1 + target.is_floating_point()
    if not fits or len(target) != x_seq.shape[1]:
        raise InputError(
            f"target {target.dtype} of shape {list(target.shape)} does not fit x_seq of shape "
            f"{list(x_seq.shape)} = [T, N, ...]: give one class index per sample, [N], or its "
            "classes' probabilities, [N, classes]"
        )
    if backward_steps is not None and not 1 <= backward_steps <= n_steps:
        raise InputError(
            f"backward_steps={backward_steps}: x_seq has {n_steps} time steps; give 1 to {n_steps}"
        )
    fptt = optimizer if isinstance(optimizer, FPTT) else None
    if fptt is not None:
        _check_fptt(fptt, n_steps, update, backward_steps, scaler)
    every = backward_steps is None
    backward_at = None if every else torch.randperm(n_steps)[:backward_steps].tolist()
    loss_fn = CrossEntropyMSE() if loss_fn is None else loss_fn

    def loss_at(logits: Tensor, t: int) -> Tensor:
        if logits.dim() != 2 and not own_loss:
            raise InputError(
                f"the model gave an output of shape {list(logits.shape)} for one time step; "
                'train_step needs logits [N, classes] (step_mode="s", num_classes > 0)'
            )
        if not own_loss and target.dim() == 2 and target.shape != logits.shape:
            raise InputError(
                f"target of shape {list(target.shape)} does not fit the logits of shape "
                f"{list(logits.shape)}: give a probability of each class"
            )
        if fptt is None:
            return loss_fn(logits, target) / n_steps
        parts = fptt.parts or n_steps
        return fptt.weighted(loss_fn(logits, target), logits, target, t, parts)

    losses = []

    def outputs() -> Iterator[Tensor]:
        for loss, logits in train_sequence(
            model,
            optimizer,
            x_seq,
            loss_at,
            online=update == "online",
            backward_at=backward_at,
            scaler=scaler,
        ):
            losses.append(loss)
            yield logits

    reset_state(model)
    try:
        prediction = combine_outputs(model, outputs())
    finally:
        reset_state(model)
    loss_sum = sum(losses[1:], losses[0])
    if fptt is not None:
        loss_sum = loss_sum / fptt.total_weight(fptt.parts or n_steps)
    return loss_sum, prediction


def _check_fptt(
    fptt: FPTT,
    n_steps: int,
    update: str,
    backward_steps: int | None,
    scaler: torch.amp.GradScaler | None,
) -> None:
    for wrong, name in (
        (update != "accumulate", f'update="{update}"'),
        (backward_steps is not None, "backward_steps"),
        (scaler is not None, "scaler (bfloat16 needs none)"),
    ):
        if wrong:
            raise InputError(f"FPTT updates once a part and knows no {name}: leave it out")
    if fptt.parts is not None and fptt.parts > n_steps:
        raise InputError(
            f"parts={fptt.parts}: x_seq has {n_steps} time steps; give FPTT 1 to {n_steps}, or None"
        )
