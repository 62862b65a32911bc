"""Online training: one forward and one backward pass per time step, nothing kept in between."""

import copy
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import base
from torch import Tensor, nn

from sj_ottt.errors import InputError
from sj_ottt.layer.feedback import check_connected
from sj_ottt.layer.step_weights import gathered, made_once
from sj_ottt.learning.fptt import FPTT, Divergence
from sj_ottt.learning.rules.switch import follows, rule_of, set_rule

__all__ = [
    "FPTT",
    "CrossEntropyMSE",
    "Divergence",
    "Pull",
    "ottt_online_training",
    "predict",
    "reset_state",
    "train_step",
]


@dataclass(frozen=True)
class CrossEntropyMSE:
    """The paper's loss of one time step: (1 − a) cross entropy + a mean squared error to one-hot.

    Attributes:
        mse_weight: a. The authors take 0.05 on images, 0.001 on event recordings.
        class_weights: Factor on the loss of a sample of each class [classes]; None for 1. The mean
            is taken over the samples, not over the weights, so that it counts with one sample too.
    """

    mse_weight: float = 0.05
    class_weights: Tensor | None = None

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of logits [N, classes].

        The target is class indices [N], or probabilities of the classes [N, classes], which then
        take the place of one-hot.
        """
        if target.is_floating_point():
            target = target.to(logits)
        weights, reduction = None, "mean"
        if self.class_weights is not None:
            weights, reduction = self.class_weights.to(logits), "none"
            weights = target @ weights if target.dim() == 2 else weights[target]
        loss = F.cross_entropy(logits, target, reduction=reduction)
        if self.mse_weight:
            soft = target.dim() == 2
            one_hot = target if soft else F.one_hot(target, logits.shape[1]).to(logits)
            error = F.mse_loss(logits, one_hot, reduction=reduction)
            error = error if weights is None else error.mean(1)
            loss = (1 - self.mse_weight) * loss + self.mse_weight * error
        return loss if weights is None else (weights * loss).mean()


class Pull:
    """The second stage of FTRL-OTTT: a pull of the weights towards those of a first stage.

    It adds the gradient of ρ ‖W − Ŵ‖² (norm "l2") or ρ ‖W − Ŵ‖₁ ("l1") before every update:

        optimizer.register_step_pre_hook(Pull(model, weights_of_stage_one, rho=1e-3))

    The first stage trains with few time steps (T = 2 in the NDOT paper), the second with all.

    Args:
        model: The model that is trained.
        reference: Ŵ, by the model's parameter names; copied. Other names are left out.
        rho: ρ, from 0 on.
        norm: "l2" or "l1".

    Raises:
        InputError: If `rho` or `norm` is out of range, or a parameter is missing in `reference` or
            has another shape there.
    """

    def __init__(
        self, model: nn.Module, reference: Mapping[str, Tensor], rho: float, norm: str = "l2"
    ):
        if norm not in ("l1", "l2"):
            raise InputError(f'norm="{norm}" is unknown: use "l2" or "l1"')
        if not 0 <= rho < float("inf"):
            raise InputError(f"rho={rho}: give a finite number from 0 on")
        for name, parameter in model.named_parameters():
            if name not in reference or reference[name].shape != parameter.shape:
                raise InputError(
                    f"reference has no {name} of shape {list(parameter.shape)}: give the weights "
                    "of a first stage of the same model"
                )
        self._rho, self._norm = rho, norm
        self._pairs = [
            (parameter, reference[name].detach().to(parameter, copy=True))
            for name, parameter in model.named_parameters()
        ]

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        """Add the pull to the gradients; an optimizer's step pre-hook."""
        for parameter, reference in self._pairs:
            if parameter.grad is not None:
                away = parameter - reference
                pull = 2 * away if self._norm == "l2" else away.sign()
                parameter.grad.add_(pull, alpha=self._rho)


def reset_state(model: nn.Module) -> None:
    """Put every neuron and dropout of the model back to its state before the first time step."""
    for module in _stateful(model):
        module.reset()


def _stateful(model: nn.Module) -> list[base.MemoryModule]:
    # SpikingJelly's reset_net caches the list of modules by model and misses a replaced head.
    return [module for module in model.modules() if isinstance(module, base.MemoryModule)]


def _detach_state(model: nn.Module) -> None:
    for module in _stateful(model):
        module.detach()


def _steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_seq: Iterable[Tensor],
    loss_at: Callable[[Tensor, int], Tensor],
    *,
    online: bool,
    static_input: bool,
    backward_at: Container[int] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train on a sequence, yielding each step's loss and output, both detached.

    No parameter moves on a loss that is not finite. Accumulating, the losses are looked at once,
    before the only update, so that a GPU need not wait for the host at every step.

    Args:
        model: Called once per time step.
        optimizer: Updates the model's parameters.
        x_seq: T time steps.
        loss_at: Loss of an output at step t.
        online: Update at every step.
        static_input: Whether all steps show the same tensor.
        backward_at: The steps that have a backward pass; None for all.
        scaler: As in `train_step`.
    """
    losses = []
    per_sequence = nullcontext() if online else gathered(model, static_input)
    with per_sequence:
        for t, x in enumerate(x_seq):
            learns = backward_at is None or t in backward_at
            if t == 0 or (online and learns):
                optimizer.zero_grad()
            per_step = gathered(model) if online else nullcontext()
            with per_step, torch.set_grad_enabled(learns):
                y = model(x)
                if isinstance(y, (list, tuple)):
                    y = y[0]
                loss = loss_at(y, t)
                losses.append(loss.detach())
                if online:
                    _check_finite(losses[-1:], t, optimizer)
                if learns:
                    (loss if scaler is None else scaler.scale(loss)).backward()
            if online and learns:
                _update(optimizer, scaler)
            _detach_state(model)  # for neurons that are not ours: ours never hold a graph
            yield losses[-1], y.detach()
    if not online:
        _check_finite(losses, 0, optimizer)
        _update(optimizer, scaler)


def _bptt(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_seq: Iterable[Tensor],
    loss_at: Callable[[Tensor, int], Tensor],
    scaler: torch.amp.GradScaler | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train on a sequence with the exact gradient: as `_steps`, but one backward pass at the end.

    The graph of all T steps is kept until then.
    """
    optimizer.zero_grad()
    with made_once(model):
        outputs = [model(x) for x in x_seq]
        losses = [loss_at(y, t) for t, y in enumerate(outputs)]
        _check_finite([loss.detach() for loss in losses], 0, optimizer)
        total = sum(losses)
        (total if scaler is None else scaler.scale(total)).backward()
    _update(optimizer, scaler)
    for loss, y in zip(losses, outputs, strict=True):
        yield loss.detach(), y.detach()


def _fptt(
    model: nn.Module,
    fptt: FPTT,
    x_seq: Tensor,
    loss_at: Callable[[Tensor, int], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train on [T, N, ...] with an update after each part of it: as `_steps`.

    The loss of a part is that of its last output; within the part, the gradient is that of the
    model's rule.

    Args:
        model: Called once per time step.
        fptt: Has at most T parts.
        x_seq: [T, N, ...].
        loss_at: Weighted loss of the output at the end of part p.
    """
    # Looked up once, as a part may be a single step of a small network.
    stateful = _stateful(model)
    weights_once = partial(made_once if rule_of(model) == "bptt" else gathered, model)
    if not any(hasattr(module, "gather") for module in model.modules()):
        weights_once = nullcontext
    end = 0
    for p, part in enumerate(x_seq.tensor_split(fptt.parts or len(x_seq))):
        end += len(part)
        for module in stateful:
            module.detach()
        entry = _save_state(model) if fptt.form == "grad" else None
        loss_of = partial(loss_at, t=p)
        passes = partial(_part, model, fptt.optimizer, weights_once, part, loss_of, end - 1)
        loss, outputs = passes()
        fptt.update(partial(_again, model, entry, passes))
        for y in outputs[:-1]:
            yield torch.zeros_like(loss), y
        yield loss, outputs[-1]


def _part(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights_once: Callable[[], AbstractContextManager],
    x_seq: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    last: int,
) -> tuple[Tensor, list[Tensor]]:
    """Leave the gradients of the last output's loss; return that loss and all outputs, detached.

    `last` is that output's time step in the whole sequence.
    """
    optimizer.zero_grad()
    outputs = []
    with weights_once():
        for x in x_seq:
            y = model(x)
            y = y[0] if isinstance(y, (list, tuple)) else y
            outputs.append(y.detach())
        loss = loss_of(y)
        _check_finite([loss.detach()], last, optimizer)
        loss.backward()
    return loss.detach(), outputs


def _again(model: nn.Module, entry: tuple, passes: Callable[[], object]) -> None:
    """Go through a part once more from its entry, leaving nothing but the gradients."""
    _detach_state(model)
    after = _save_state(model)
    _load_state(model, entry)
    passes()
    _load_state(model, after)


def _save_state(model: nn.Module) -> tuple:
    """Return what a pass through the model changes, beside the gradients; it holds no graph."""
    memories = [module._memories for module in _stateful(model)]
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    buffers = [buffer.clone() for buffer in model.buffers()]
    return copy.deepcopy(memories), buffers, torch.get_rng_state(), gpu


@torch.no_grad()
def _load_state(model: nn.Module, saved: tuple) -> None:
    memories, buffers, cpu, gpu = saved
    for module, memory in zip(_stateful(model), memories, strict=True):
        module._memories = memory
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(value)
    torch.set_rng_state(cpu)
    if gpu is not None:
        torch.cuda.set_rng_state_all(gpu)


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | FPTT,
    x_seq: Tensor,
    loss_at: Callable[[Tensor, int], Tensor],
    *,
    online: bool,
    backward_at: Container[int] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train on [T, N, ...] by the model's rule, yielding each step's loss and output."""
    check_connected(model)
    if isinstance(optimizer, FPTT):
        return _fptt(model, optimizer, x_seq, loss_at)
    if rule_of(model) != "bptt":
        static = x_seq.stride(0) == 0
        extra = {"online": online, "static_input": static, "backward_at": backward_at}
        return _steps(model, optimizer, x_seq, loss_at, scaler=scaler, **extra)
    for wrong, name in ((online, "online update"), (backward_at is not None, "backward_steps")):
        if wrong:
            raise InputError(
                f'rule="bptt" has one backward pass through all time steps, so it knows no {name}: '
                "leave it out, or train by another rule"
            )
    return _bptt(model, optimizer, x_seq, loss_at, scaler)


def _update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)  # leaves the update out where a gradient overflowed
        scaler.update()


def _check_finite(losses: list[Tensor], first: int, optimizer: torch.optim.Optimizer) -> None:
    finite = torch.isfinite(torch.stack(losses)).tolist()
    if not all(finite):
        optimizer.zero_grad()
        t = finite.index(False)
        raise InputError(
            f"the loss of time step {first + t} is {losses[t].item()}; no parameter was changed by "
            "it: lower the learning rate, or look for extreme values in x_seq and in the weights"
        )


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

    steps = _train(model, optimizer, x_seq.transpose(0, 1), loss_at, online=online)
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
    rule: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Train a classifier on one batch, one time step after the other (equations (4) and (5)).

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
        steps: T for a static batch, whose first convolution is then done once where that is worth
            its memory (see `gather.WORTH_KEEPING`).
        backward_steps: K, the number of steps that have a backward pass, drawn anew from the T for
            each batch (from torch's global generator); the others run forward only. The loss of a
            step stays divided by T. None takes all.
        scaler: Scales the loss against underflow of float16 gradients under `torch.autocast`; one
            backward pass per step and one update of the scale per update of the weights.
        rule: Switches the model to a learning rule first (`rules.set_rule`); None leaves it as
            it is. "bptt" keeps the graph of all steps, and has one backward pass and update.

    Returns:
        The loss summed over the steps (with FPTT: the mean of the parts' losses by their weights),
        a scalar, and the logits, [N, classes], summed over the steps or, of a model whose
        `prediction` is "last", those of the last step; both detached.

    Raises:
        InputError: If the model is in evaluation mode, shapes do not fit, the input is not
            finite, `update` or `rule` is unknown, `backward_steps` is not in 1 … T, BPTT is asked
            for an online update or for `backward_steps`, FPTT for these or a `scaler` or more
            parts than steps, or a loss is not finite (named by its step; no parameter is changed by
            it).
    """
    if rule is not None and not follows(model, rule):
        set_rule(model, rule)
    if update not in ("accumulate", "online"):
        raise InputError(f'update="{update}" is unknown: use "accumulate" or "online"')
    if not model.training:
        raise InputError("the model is in evaluation mode and keeps no trace: call model.train()")
    x_seq, n_steps = _sequence(x_seq, steps)
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

    loss_sum, logits_sum = 0.0, 0.0
    reset_state(model)
    try:
        for loss, logits in _train(
            model,
            optimizer,
            x_seq,
            loss_at,
            online=update == "online",
            backward_at=backward_at,
            scaler=scaler,
        ):
            loss_sum = loss_sum + loss
            logits_sum = logits if predicts_last(model) else logits_sum + logits
    finally:
        reset_state(model)
    if fptt is not None:
        loss_sum = loss_sum / fptt.total_weight(fptt.parts or n_steps)
    return loss_sum, logits_sum


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


def predicts_last(model: nn.Module) -> bool:
    """Whether a model says of itself that its last output is its prediction, not their sum."""
    return getattr(model, "prediction", "sum") == "last"


def predict(model: nn.Module, x_seq: Tensor, steps: int | None = None) -> Tensor:
    """Classify one batch without gradients, traces or a memory of earlier steps.

    The model may be in either mode and is left in the one it was in.

    Args:
        model: Maps [N, ...] to logits [N, classes], one time step a call.
        x_seq: A sequence [T, N, ...]; or, with `steps`, a static batch [N, ...].
        steps: T for a static batch.

    Returns:
        Logits, [N, classes], summed over the steps or, of a model whose `prediction` is "last",
        those of the last step; the prediction is their argmax.

    Raises:
        InputError: If the shape does not fit or the input is not finite.
    """
    x_seq, _ = _sequence(x_seq, steps)
    reset_state(model)
    try:
        with _evaluating(model), torch.inference_mode():
            total = 0.0
            for x in x_seq:
                total = model(x) if predicts_last(model) else total + model(x)
    finally:
        reset_state(model)
    return total.clone()  # an ordinary tensor, which may enter a loss


def _sequence(x: Tensor, steps: int | None) -> tuple[Tensor, int]:
    """Return the sequence [T, N, ...] and T, the static batch repeated without a copy."""
    # A membrane that is NaN never fires: the loss would stay finite, and wrong, for ever. The
    # extremes tell in no memory, where isfinite() would make masks as large as the sequence.
    if x.is_floating_point() and x.numel() and not torch.stack(x.aminmax()).isfinite().all():
        raise InputError("x_seq holds values that are not finite (NaN or inf): clean the input")
    if steps is not None:
        if steps < 1:
            raise InputError(f"steps={steps}: give at least 1 time step")
        x = x.unsqueeze(0).expand(steps, *x.shape)
    if x.dim() < 3 or x.shape[0] == 0 or x.shape[1] == 0:
        raise InputError(
            f"x_seq of shape {list(x.shape)} is not a sequence [T, N, ...]: for a static batch "
            "[N, ...] give steps=T"
        )
    return x, x.shape[0]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module then has the mode it had, frozen parts too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
