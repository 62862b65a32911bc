"""Random small networks: skips, branches, shared layers, heads, pools, norms, frozen parts, ..."""

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as sj_layer
from torch import nn

from sj_ottt import layer
from tests.exactness.comparison import RULES, Outcome, compare, ways_of
from tests.exactness.networks import conv, conv_transpose, factor, linear
from tests.exactness.operations import FUNCTIONS, MANY, MAX_POOLS, MODULES, ONE, TWO
from tests.exactness.program import Group, Program, Step, step

__all__ = ["Drawn", "draw", "outcome_of"]

NORMS = {"nn": nn.BatchNorm2d, "sj": sj_layer.BatchNorm2d}
FORMS = ("ours", "torch", "spikingjelly", "functional", "ws")


@dataclass(frozen=True)
class Known:
    """What the generator knows of a signal.

    Attributes:
        shape: Without the batch.
        traced: Whether a neuron handed it on, maybe through linear maps.
        tied: Whether equal values may round differently, so that a maximum has no one place.
    """

    shape: tuple[int, ...]
    traced: bool = False
    tied: bool = False


class _Generator:
    """Draws one network."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.steps: list[Step] = []
        self.known = {"x": Known((2, 6, 6))}
        self.count = 0
        self.shared: list[tuple[str, tuple[int, ...], Step, tuple[int, ...]]] = []

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def add(self, new: Step, shape: tuple[int, ...], traced: bool, tied: bool) -> str:
        self.steps.append(new)
        for out in new.outs:
            self.known[out] = Known(shape, traced, tied)
        return new.outs[0]

    def synapse(self, source: str) -> str:
        rng, shape = self.rng, self.known[source].shape
        fitting = [s for s in self.shared if s[1] == shape and s[0] != source]
        if fitting and rng.random() < 0.4:  # a layer that is applied twice
            _, _, old, out = rng.choice(fitting)
            name = self.name("again")
            new = step("synapse", name, source, old.module, **old.options)
            return self.add(new, out, False, source != "x")
        name, form = self.name("syn"), rng.choice(FORMS)
        form = "torch" if form == "ws" and shape[0] < 4 else form  # no variance of one weight
        bias = rng.random() < 0.7
        if len(shape) == 1:
            n_out = rng.choice([4, 6, 8])
            options, out = linear(form, shape[0], n_out, bias), (n_out,)
        elif form != "ws" and rng.random() < 0.15 and max(shape[1:]) <= 3:
            c_out = rng.choice([2, 4])
            options = conv_transpose("torch" if form == "ours" else form, shape[0], c_out)
            out = (c_out, 2 * shape[1], 2 * shape[2])
        else:
            c_out, kernel = rng.choice([2, 3, 4]), rng.choice([1, 3])
            options = conv(form, shape[0], c_out, kernel, bias)
            out = (c_out, *shape[1:])
        if rng.random() < 0.1:
            options["frozen"] = True
        new = step("synapse", name, source, **options)
        self.shared.append((source, shape, new, out))
        return self.add(new, out, False, source != "x")

    def neuron(self, source: str) -> str:
        rng = self.rng
        options = {
            "tau": rng.choice([1.5, 2.0, 2.0, 3.0]),
            "v_threshold": rng.uniform(0.6, 1.1),  # no sum of spikes meets it exactly
            "v_reset": rng.choice([None, None, 0.0, -0.1]),
            "decay_input": rng.random() < 0.2,
            "surrogate": rng.choice(["sigmoid", "sigmoid", "atan"]),
        }
        new = step("neuron", self.name("neuron"), source, **options)
        return self.add(new, self.known[source].shape, True, False)

    def map(self, source: str) -> str | None:
        rng, before = self.rng, self.known[source]
        make: dict[str, Any] = {}
        if rng.random() < 0.3:
            module, op = rng.choice([*MODULES.values()])
            make = {"make": module}
        else:
            op = rng.choice([*ONE.values()])
        shape = _shape_of(op, before.shape)
        if shape is None or not _fits(shape):
            return None
        new = step("map", self.name("map"), source, op=op, **make)
        return self.add(new, shape, before.traced, before.tied)

    def split(self, source: str) -> str | None:
        before = self.known[source]
        if before.shape[0] % 2:
            return None
        outs = (self.name("part"), self.name("part"))
        new = step("map", outs, source, op=self.rng.choice([*MANY.values()]))
        return self.add(new, (before.shape[0] // 2, *before.shape[1:]), before.traced, before.tied)

    def join(self, source: str) -> str | None:
        """A skip or a branch: another signal of the same shape."""
        before = self.known[source]
        others = [n for n, k in self.known.items() if k.shape == before.shape and n != source]
        if not others:
            return None
        other = self.rng.choice(others)
        op = self.rng.choice([*TWO.values()])
        shape = _shape_of(lambda a: op(a, a), before.shape)
        if shape is None or not _fits(shape):
            return None
        known = before, self.known[other]
        new = step("map", self.name("join"), (source, other), op=op)
        return self.add(new, shape, any(k.traced for k in known), any(k.tied for k in known))

    def max_pool(self, source: str) -> str | None:
        before = self.known[source]
        if before.tied or len(before.shape) < 3 or min(before.shape[1:]) < 2:
            return None
        make = self.rng.choice([*MAX_POOLS.values()])
        op = partial(F.max_pool2d, kernel_size=2)
        shape = _shape_of(op, before.shape)
        assert shape is not None
        new = step("max_pool", self.name("max"), source, op=op, make=make)
        return self.add(new, shape, before.traced, before.tied)

    def norm(self, source: str) -> str | None:
        before = self.known[source]
        if len(before.shape) < 3 or before.shape[1] * before.shape[2] < 2:
            return None
        if source.startswith("norm"):  # twice in a row, the rounding of one grows with the other
            return None
        make = partial(self.rng.choice([*NORMS.values()]), before.shape[0])
        new = step("norm", self.name("norm"), source, make=make, eval=self.rng.random() < 0.2)
        return self.add(new, before.shape, False, True)

    def dropout(self, source: str) -> str:
        before, p = self.known[source], self.rng.choice([0.25, 0.5])
        kinds = [layer.Dropout, layer.Dropout]
        kinds += [layer.Dropout2d] if len(before.shape) == 3 else []
        kinds += [] if before.traced and self.rng.random() < 0.9 else [nn.Dropout]
        make = partial(self.rng.choice(kinds), p)
        new = step("dropout", self.name("drop"), source, make=make)
        return self.add(new, before.shape, before.traced, before.tied)

    def function(self, source: str) -> str:
        before = self.known[source]
        op = self.rng.choice([*FUNCTIONS.values()])
        new = step("function", self.name("function"), source, op=op)
        return self.add(new, before.shape, False, True)

    def factor(self, source: str) -> str:
        before = self.known[source]
        shape = (before.shape[0], *[1] * (len(before.shape) - 1))
        multiply = self.rng.choice([torch.mul, operator.mul, lambda a, w: w * a])
        new = step("synapse", self.name("factor"), source, **factor(shape, multiply))
        return self.add(new, before.shape, False, True)

    def grow(self, source: str) -> str | None:
        """Put one more operation on a signal."""
        kinds = [self.map, self.map, self.join, self.split, self.max_pool, self.dropout]
        if self.known[source].traced:
            kinds += [self.synapse] * 8 + [self.factor, self.map, self.join, self.neuron]
            if self.rng.random() < 0.04:  # no trace can follow these
                kinds = [self.norm, self.function]
        elif source == "x":
            kinds = [self.synapse] * 5 + [self.map, self.neuron]
        else:
            kinds += [self.neuron] * 8 + [self.norm] * 3 + [self.function, self.synapse]
        return self.rng.choice(kinds)(source)

    def program(self) -> Program:
        rng, current = self.rng, "x"
        for _ in range(rng.randint(4, 11)):
            if rng.random() < 0.2:  # a branch from further back
                current = rng.choice([*self.known])
            current = self.grow(current) or current
        heads = [current, *rng.sample([*self.known], min(len(self.known), rng.choice([0, 0, 1])))]
        outputs = [self.head(h) for h in dict.fromkeys(h for h in heads if h != "x")]
        self.feedback()
        steps = _needed(self.steps, outputs)
        structure = rng.choice(["tuple", "list", "dict"])
        structure = "tensor" if len(outputs) == 1 and rng.random() < 0.9 else structure
        wrappers = ["own", "data_parallel", "ddp", "ema", "hook", "sequential", "ottt_sequential"]
        wrapper = rng.choice(wrappers) if rng.random() < 0.4 else "none"
        program = Program(tuple(steps), tuple(outputs), structure, (), wrapper)
        return replace(program, groups=self.groups(program))

    def head(self, source: str) -> str:
        """An output of the network: a readout, or seldom the signal itself."""
        if self.rng.random() < 0.1:
            return source
        if len(self.known[source].shape) > 1:
            before = self.known[source]
            new = step("map", self.name("flat"), source, op=ONE["flatten"])
            source = self.add(new, (_size(before.shape),), before.traced, before.tied)
        form = self.rng.choice(FORMS)
        new = step(
            "synapse", self.name("out"), source, **linear(form, *self.known[source].shape, 3)
        )
        return self.add(new, (3,), False, True)

    def feedback(self) -> None:
        """Connect a late neuron to the current of an early one of the same size."""
        neurons = [i for i, s in enumerate(self.steps) if s.kind == "neuron"]
        if len(neurons) < 2 or self.rng.random() > 0.2:
            return
        first, *_, last = neurons
        target, source = self.steps[first], self.steps[last]
        shapes = [self.known[s.outs[0]].shape for s in (source, target)]
        if self.known[target.inputs[0]].traced or len({len(s) for s in shapes}) > 1:
            return
        if len(shapes[0]) == 1:
            options = linear("ours", shapes[0][0], shapes[1][0], bias=False)
        elif shapes[0][1:] == shapes[1][1:]:
            options = conv("ours", shapes[0][0], shapes[1][0], bias=False)
        else:
            return
        fed = self.name("fed")
        new = step("feedback", fed, target.inputs[0], source=source.outs[0], **options)
        self.steps[first : first + 1] = [new, replace(target, inputs=(fed,))]

    def groups(self, program: Program) -> tuple[Group, ...]:
        """Put some consecutive steps into modules of their own."""
        rng, steps = self.rng, program.steps
        if not steps or rng.random() < 0.4 or any(s.kind == "feedback" for s in steps):
            return ()
        first = rng.randrange(len(steps))
        last = min(len(steps) - 1, first + rng.randint(1, 6))
        how = rng.choice(["module", "module", "eval", "checkpoint", "checkpoint reentrant"])
        if rng.random() < 0.08:
            how = "no_grad"
        inside = steps[first : last + 1]
        if how.startswith("checkpoint") and _not_for_checkpoint(inside):
            how = "module"
        shared = {s.module for s in steps if s not in inside} & {s.module for s in inside}
        if how == "eval" and shared:
            how = "module"
        found = [Group(first, last, how)]
        chain = _chain_within(program, first, last)
        if chain and rng.random() < 0.7:
            found.insert(0, Group(*chain, rng.choice(["ottt_sequential", "sequential"])))
        return tuple(found)


def _not_for_checkpoint(inside: tuple[Step, ...]) -> bool:
    """PyTorch itself moves running statistics twice there, and draws a mask again."""
    return any(s.kind in ("norm", "dropout") for s in inside)


def _chain_within(program: Program, first: int, last: int) -> tuple[int, int] | None:
    """The longest chain from the first step: each takes the one before alone, and nobody else."""
    steps, end = program.steps, first
    if len(steps[first].inputs) > 1:
        return None
    while end < last:
        out = steps[end].out
        takers = [i for i, s in enumerate(steps) if out in s.inputs]
        if out in program.outputs or takers != [end + 1] or steps[end + 1].inputs != (out,):
            break
        end += 1
    return (first, end) if end > first and isinstance(steps[end].out, str) else None


def _needed(steps: list[Step], outputs: list[str]) -> list[Step]:
    """The steps that the outputs depend on."""
    wanted, found = set(outputs), []
    for s in reversed(steps):
        if wanted & set(s.outs):
            wanted |= set(s.inputs)
            found.append(s)
    sources = {s.options["source"] for s in found if s.kind == "feedback"}
    if sources - wanted:
        return _needed(steps, [*outputs, *sources])
    return found[::-1]


def _shape_of(op: Callable[..., Any], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that a map gives, or None where it does not fit."""
    try:
        found = op(torch.zeros(2, *shape, dtype=torch.float64))
    except (RuntimeError, IndexError, ValueError, NotImplementedError, AssertionError):
        return None
    return tuple(found.shape[1:]) if found.shape[0] == 2 else None


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _fits(shape: tuple[int, ...]) -> bool:
    """Whether a signal is small enough and of a shape that layers take."""
    return len(shape) in (1, 3) and 0 < _size(shape) <= 300


def _learns(program: Program) -> bool:
    """Whether there are neurons, and parameters that learn."""
    kinds = {s.kind for s in program.steps if not s.options.get("frozen")}
    return {"neuron", "synapse"} <= kinds


@dataclass(frozen=True)
class Drawn:
    """A network and how it is trained."""

    program: Program
    rule: str
    way: str
    seed: int
    steps: int
    batch: int


def draw(seed: int) -> Drawn:
    """The network of a seed."""
    rng = random.Random(seed)
    program = _Generator(rng).program()
    while not _learns(program):
        program = _Generator(rng).program()
    rule = rng.choice([*RULES, "ottt"])
    way = rng.choice(ways_of(rule))
    return Drawn(program, rule, way, seed, rng.randint(2, 6), rng.randint(1, 4))


def outcome_of(seed: int) -> tuple[Drawn, Outcome]:
    """Draw until the network is not silent, and compare."""
    for attempt in range(50):
        drawn = draw(1000 * seed + attempt)
        found = compare(
            drawn.program,
            drawn.rule,
            drawn.way,
            seed=drawn.seed,
            steps=drawn.steps,
            batch=drawn.batch,
        )
        if found.kind != "silent":
            break
    return drawn, found
