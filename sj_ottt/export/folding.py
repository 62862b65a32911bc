"""Constant factors and batch norms folded into weights and thresholds, so that neither is left."""

from collections.abc import Iterable, Iterator

import torch

from sj_ottt.errors import InputError
from sj_ottt.export.tracing import Op

__all__ = ["fold"]

_SYNAPSES = ("conv", "linear")
_LINEAR = ("pool", "flatten", "sum")
"""Operations that hand a factor on, from what they take to what they give."""


def fold(ops: list[Op], output: Op) -> list[Op]:
    """Return operations that compute the same, in which only neurons have a factor on their input.

    A factor goes back into the weights of the synapse that it stands behind, or forward through
    pools and sums into the weights there; a batch norm goes into the synapse before it. What is
    left becomes a synapse of its own, with a diagonal weight. Sums are gone: an operation takes the
    sum of its inputs. The input of a neuron has one factor, positive and the same for all that it
    adds up, which the neuron's constants can take.

    Args:
        ops: As `trace_operations` returns them; they are changed.
        output: The one whose result is the network's.

    Returns:
        The operations in their order; the last one is of the kind "output".

    Raises:
        InputError: If the network hands on its input.
    """
    if output.kind == "input":
        raise InputError("the network hands on its input: give one with layers")
    ops = [*_needed(ops, output), Op("output", "output", {output: 1.0}, output.shape)]
    ops = _without_channels(ops)
    _push_back(ops)
    _pull_forward(ops)
    _push_back(ops)
    folded: list[Op] = []
    for op in ops:
        folded += [*_settled(op), op]
    return [new for op in folded if op.kind != "sum" for new in (*_told_apart(op), op)]


def _needed(ops: list[Op], output: Op) -> list[Op]:
    """Return the operations that the output is made of."""
    needed = {output}
    for op in reversed(ops):
        if op in needed:
            needed |= op.inputs.keys()
    return [op for op in ops if op in needed]


def _users(ops: Iterable[Op], op: Op) -> list[Op]:
    return [user for user in ops if op in user.inputs]


def _without_channels(ops: list[Op]) -> list[Op]:
    """Fold each batch norm into the synapse before it, where nothing else takes its result.

    Another one becomes a synapse of its own.
    """
    gone = set()
    for op in ops:
        if op.kind != "channels":
            continue
        before, factor = next(iter(op.inputs.items()))
        alone = len(op.inputs) == 1 and len(_users(ops, before)) == 1
        if not alone or before.kind not in _SYNAPSES:
            _make_diagonal(op)
            continue
        scale, shift = op.weight * factor, op.bias
        op.weight = before.weight * scale.view(-1, *[1] * (before.weight.dim() - 1))
        op.bias = shift if before.bias is None or shift is None else before.bias * scale + shift
        op.kind, op.options, op.inputs = before.kind, before.options, before.inputs
        gone.add(before)
    return [op for op in ops if op not in gone]


def _make_diagonal(op: Op) -> None:
    """Turn a factor and a shift of each channel into a synapse with a diagonal weight."""
    op.kind, op.weight = "linear", torch.diag(op.weight)
    if len(op.shape) == 3:
        op.kind, op.weight = "conv", op.weight[:, :, None, None]
        op.options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}


def _scaled(name: str, source: Op, factor: float) -> Op:
    """Return a synapse that multiplies a result by a factor."""
    op = Op(name, "channels", {source: 1.0}, source.shape, torch.full(source.shape[:1], factor))
    _make_diagonal(op)
    return op


def _common(op: Op) -> float | None:
    """Return the factor of all that an operation takes; None where they differ."""
    factors = set(op.inputs.values())
    return factors.pop() if len(factors) == 1 else None


def _pull_forward(ops: list[Op]) -> None:
    """Take factors through what hands them on, towards the weights behind it."""
    for op in ops:
        factor = _common(op)
        if op.kind in _LINEAR and factor is not None:
            op.inputs = dict.fromkeys(op.inputs, 1.0)
            for user in _users(ops, op):
                user.inputs[op] *= factor


def _push_back(ops: list[Op]) -> None:
    """Take a factor that all users of a result put on it into what makes the result."""
    for op in reversed(ops):
        users = _users(ops, op)
        factors = {user.inputs[op] for user in users}
        if len(factors) != 1 or op.kind not in (*_SYNAPSES, *_LINEAR):
            continue
        factor = factors.pop()
        # Without need, pools take none: before them there may be neurons, which take none.
        needed = any(user.kind == "output" or _common(user) is None for user in users)
        if op.kind in _LINEAR and not needed:
            continue
        for user in users:
            user.inputs[op] = 1.0
        if op.kind in _SYNAPSES:
            op.weight = op.weight * factor
            op.bias = None if op.bias is None else op.bias * factor
        else:
            op.inputs = {source: c * factor for source, c in op.inputs.items()}


def _settled(op: Op) -> list[Op]:
    """Take the factors that an operation's inputs have into it; return synapses for the others."""
    factor = _common(op)
    if op.kind in _SYNAPSES and factor is not None:
        op.weight, op.inputs = op.weight * factor, dict.fromkeys(op.inputs, 1.0)
    if op.kind in ("lif", "li") and factor is not None and factor > 0:
        return []
    scaled = {
        source: _scaled(f"{op.name}.scale_{i}", source, factor)
        for i, (source, factor) in enumerate(op.inputs.items())
        if factor != 1.0
    }
    op.inputs = {scaled.get(source, source): 1.0 for source in op.inputs}
    return list(scaled.values())


def _told_apart(op: Op) -> list[Op]:
    """Put what sums add up in the place of the sums; return synapses for what enters twice."""
    inputs: dict[Op, float] = {}
    again: list[Op] = []
    for source, factor in _sources(op):
        if source in inputs:
            source = _scaled(f"{op.name}.again_{len(again)}", source, 1.0)
            again.append(source)
        inputs[source] = factor
    op.inputs = inputs
    return again


def _sources(op: Op) -> Iterator[tuple[Op, float]]:
    for source, factor in op.inputs.items():
        if source.kind == "sum":
            yield from ((inner, factor) for inner, _ in _sources(source))
        else:
            yield source, factor
