"""Train a program both ways and say whether the user got the exact gradient, or a refusal."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sj_ottt import InputError, layer, set_rule
from sj_ottt.learning import ottt_online_training, reset_state, train_step
from tests.exactness.networks import WRAPPERS, Network
from tests.exactness.program import Program, loss
from tests.exactness.reference import NoMeaning, Reference, Update, update

__all__ = ["RULES", "WAYS", "Outcome", "compare", "ways_of"]

TOLERANCE = 1e-9
LR = 0.01
RULES = {
    "ottt": ("ottt", None),
    "sltt": ("sltt", None),
    "ndot": ("ndot", "paper"),
    "ndot code": ("ndot", "code"),
    "bptt": ("bptt", None),
}
WAYS = (
    "train_step",
    "train_step online",
    "train_step static",
    "train_step static online",
    "train_step chunk",
    "train_step static chunk",
    "ottt_online_training",
    "ottt_online_training chunk",
    "ottt_online_training online",
    "own loop",
    "own loop online",
)


def ways_of(rule: str) -> tuple[str, ...]:
    """The ways that a rule knows: BPTT has no online update."""
    return tuple(way for way in WAYS if rule != "bptt" or "online" not in way.split())


@dataclass(frozen=True)
class Outcome:
    """What came of a comparison.

    Attributes:
        kind: "exact", "refused", "wrong", "silent" (the reference's neurons or gradients are) or
            "error" (something else was raised).
        detail: The largest relative error and where, or what was raised.
    """

    kind: str
    detail: str = ""


def compare(
    program: Program,
    rule: str,
    way: str,
    *,
    seed: int = 0,
    steps: int = 3,
    batch: int = 2,
    broken: str | None = None,
    make: Callable[[], nn.Module] | None = None,
) -> Outcome:
    """Train both on the same batch.

    Args:
        program: The network.
        rule: One of `RULES`.
        way: One of `WAYS`.
        seed: Of weights, input, target and masks.
        steps: T.
        batch: N.
        broken: A way to break the reference.
        make: Makes the user's network in the program's stead.

    Returns:
        How the user's update compares.
    """
    torch.manual_seed(seed)
    try:
        network = Network(program) if make is None else make()
    except InputError as error:
        return Outcome("refused", str(error))
    x = 1.5 * torch.rand(steps, batch, *program.shape, dtype=torch.float64)
    if "static" in way:
        x = x[:1].expand(steps, *x.shape[1:])
    targets = torch.randn(steps, batch, len(program.outputs), dtype=torch.float64)
    if way.startswith("train_step"):
        targets = targets[:1].expand_as(targets)
    model = WRAPPERS[program.wrapper](network).train()
    network = next(m for m in model.modules() if hasattr(m, "parts"))  # a wrapper may copy it
    set_rule(model, *RULES[rule])
    parameters, buffers = tensors_of(network)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    masks = _watch_masks(network, batch)
    reference = Reference(program, parameters, buffers, rule, masks, broken)
    try:
        with warnings.catch_warnings(record=True) as warned:
            mine = train(model, network, rule, way, x, targets)
    except InputError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        cut = program.within("no_grad") | program.within("checkpoint reentrant")
        cut |= {i for i, s in enumerate(program.steps) if s.kind == "feedback"}  # not at first
        if "does not require grad" in str(error) and cut:
            return Outcome("silent", "nothing learns")  # as PyTorch itself says
        return Outcome("error", f"{type(error).__name__}: {error}")
    scale = 1 / steps if way.startswith("train_step") else 1.0
    try:
        theirs = update(
            reference, x, lambda y, t: loss(y, targets[t]) * scale, "online" in way.split(), LR
        )
    except NoMeaning as error:
        return Outcome("wrong", f"trained, although {error} has no meaning under {rule}")
    if any("None of the inputs have requires_grad" in str(w.message) for w in warned):
        return Outcome("silent", "PyTorch's older checkpoint says that nothing in it learns")
    silent = _silence(reference, theirs)
    if silent:
        return Outcome("silent", silent)
    error, where = largest_error(mine, theirs, start, way)
    return Outcome("exact" if error < TOLERANCE else "wrong", f"{error:.1e} at {where}")


def train(
    model: nn.Module, network: nn.Module, rule: str, way: str, x: Tensor, targets: Tensor
) -> Update:
    """Do the user's update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    online = "online" in way.split()
    chunk = 2 if "chunk" in way.split() else 1
    if way.startswith("train_step"):
        kwargs: dict[str, Any] = {"update": "online" if online else "accumulate", "chunk": chunk}
        given, kwargs = (x[0], {**kwargs, "steps": len(x)}) if "static" in way else (x, kwargs)
        total, _ = train_step(model, optimizer, given, targets[0], loss_fn=loss, **kwargs)
    elif way.startswith("ottt_online_training"):
        reset_state(model)
        first = x.transpose(0, 1), targets.transpose(0, 1)
        total, _ = ottt_online_training(model, optimizer, *first, loss, online, chunk)
        reset_state(model)
    else:
        total = _own_loop(model, optimizer, rule, x, targets, online)
    parameters, buffers = tensors_of(network, clone=False)
    return Update(
        total.reshape(1),
        {name: p.grad for name, p in parameters.items()},
        {name: p.detach() for name, p in parameters.items()},
        buffers,
        set(),
    )


def _own_loop(
    model: nn.Module, optimizer: Any, rule: str, x: Tensor, targets: Tensor, online: bool
) -> Tensor:
    """Train as a user does without our loops."""
    reset_state(model)
    optimizer.zero_grad()
    losses = []
    for t in range(len(x)):
        if online:
            optimizer.zero_grad()
        losses.append(loss(_tensors(model(x[t])), targets[t]))
        if rule != "bptt":
            losses[-1].backward()
        if online:
            optimizer.step()
    total = torch.stack(losses).sum()
    if rule == "bptt":
        total.backward()
    if not online:
        optimizer.step()
    reset_state(model)
    return total.detach()


def _tensors(y: Any) -> Any:
    """Take the spikes where a network ends with a neuron."""
    if isinstance(y, layer.Pair):
        return y[0]
    if isinstance(y, dict):
        return {key: _tensors(value) for key, value in y.items()}
    return type(y)(map(_tensors, y)) if isinstance(y, list | tuple) else y


def tensors_of(
    network: nn.Module, clone: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and running statistics by the names of the program's modules."""
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, part in network.parts.items():
        part = getattr(part, "synapse", part)  # of a feedback
        for key, p in part.named_parameters():
            new = p.detach().clone().requires_grad_(p.requires_grad) if clone else p
            found[0][f"{name}.{key}"] = new
        for key, buffer in part.named_buffers():
            if buffer.is_floating_point():
                found[1][f"{name}.{key}"] = buffer.clone() if clone else buffer
    return found


def _watch_masks(network: nn.Module, batch: int) -> dict[str, Any]:
    """Return what dropouts multiply by, filled while the network runs."""
    masks: dict[str, Any] = {}
    for name, part in network.parts.items():
        if isinstance(part, layer.Dropout | layer.Dropout2d):
            part.register_forward_hook(
                lambda m, args, out, name=name: masks.__setitem__(name, m.mask)
            )
        elif isinstance(part, nn.Dropout):
            masks[name] = []
            part.register_forward_hook(partial(_note_mask, masks[name], batch))
    return masks


def _note_mask(
    masks: list[Tensor], batch: int, module: nn.Module, args: tuple[Any, ...], out: Any
) -> None:
    """Note what a dropout of PyTorch multiplied by, step by step: its derivative."""
    before, after = (y[0] if isinstance(y, layer.Pair) else y for y in (*args, out))
    if before.requires_grad:
        mask = torch.autograd.grad(after.sum(), before, retain_graph=True)[0]
    else:  # where a value is 0, nobody sees its mask
        mask = torch.where(before == 0, before, after / before)
    masks += mask.split(batch)


def _silence(reference: Reference, theirs: Update) -> str:
    """Which neuron never fires or is never silent, or which gradient is zero; or no bound."""
    if not theirs.losses.abs().max() < 1e6:
        return "the loss knows no bound"
    for name, spikes in reference.fired.items():
        if torch.stack(spikes).mean() in (0, 1):
            return f"{name} fires never or always"
    for name, p in reference.parameters.items():
        if p.requires_grad and name not in theirs.moved and not reference.program.within("no_grad"):
            return f"{name} has no gradient"
    grads = [g.abs().max() for g in theirs.grads.values() if g is not None]
    if not theirs.moved or max(grads) < 1e-5:
        return "nothing learns"
    return ""


def largest_error(
    mine: Update, theirs: Update, start: dict[str, Tensor], way: str
) -> tuple[float, str]:
    """The largest relative error of anything that an update leaves, and where it is."""
    errors = {"loss": relative_error(mine.losses.sum(), theirs.losses.sum())}
    largest = max((g.norm().item() for g in theirs.grads.values() if g is not None), default=0)
    for name, grad in theirs.grads.items():
        errors[f"gradient of {name}"] = relative_error(mine.grads[name], grad, largest)
        moves = [update.parameters[name] - start[name] for update in (mine, theirs)]
        errors[f"update of {name}"] = relative_error(*moves, largest * LR)
    for name, buffer in theirs.buffers.items():
        errors[name] = relative_error(mine.buffers[name], buffer)
    where = max(errors, key=lambda name: errors[name])
    return errors[where], where


def relative_error(mine: Tensor | None, theirs: Tensor | None, largest: float = 0.0) -> float:
    """‖mine − theirs‖ / ‖theirs‖; no gradient counts as one of zeros.

    A gradient that is nothing but rounding beside the largest one counts as zeros too: that of a
    bias before a batch norm.
    """
    if mine is None and theirs is None:
        return 0.0
    mine = torch.zeros_like(theirs) if mine is None else mine
    theirs = torch.zeros_like(mine) if theirs is None else theirs
    if max(mine.norm().item(), theirs.norm().item()) < 1e-8 * largest:
        return 0.0
    error = (mine - theirs).norm().item()
    return error / max(theirs.norm().item(), 1e-4 * largest, 1e-300) if error else 0.0
