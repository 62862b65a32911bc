"""The table of what users build: each network, and the rules that refuse it."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn

from sj_ottt import layer
from tests.exactness.networks import WRAPPERS, conv, conv_transpose, factor, linear
from tests.exactness.operations import FUNCTIONS, MANY, MAX_POOLS, MODULES, ONE, TWO
from tests.exactness.program import Group, Program, Step, step
from tests.exactness.written import Attention, Tied, UNet

__all__ = ["CASES", "Case"]

TRACED = frozenset(("ottt", "ndot", "ndot code"))
ALL = TRACED | {"sltt", "bptt"}


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
        program: What the network does.
        refused: The rules under which it is refused; under the others it is exact.
        words: What the refusal says, one regular expression.
        make: The network as a user writes it, with `parts` as `networks.Network` has them; None
            builds it from the program.
    """

    program: Program
    refused: frozenset[str] = frozenset()
    words: str = ""
    make: Callable[[], nn.Module] | None = None


CASES: dict[str, Case] = {}


def first(channels: int = 4, form: str = "torch") -> list[Step]:
    """A convolution of the input, and neurons: "s"."""
    return [
        step("synapse", "c", "x", **conv(form, 2, channels)),
        step("neuron", "s", "c", v_threshold=0.9),
    ]


def last(source: str, size: int) -> list[Step]:
    """A layer, neurons and a readout of a signal: "o"."""
    return [
        step("map", "flat", source, op=lambda a: a.flatten(1)),
        step("synapse", "l", "flat", **linear("ours", size, 8)),
        step("neuron", "n", "l", v_threshold=0.9),
        step("synapse", "o", "n", **linear("torch", 8, 3)),
    ]


def size_of(op: Callable[..., Tensor], inputs: int = 1) -> int:
    return op(*[torch.zeros(1, 4, 6, 6, dtype=torch.float64)] * inputs).numel()


def behind(kind: str, op: Callable[..., Any], **options: Any) -> Program:
    """An operation on what neurons hand on, and a layer behind it."""
    middle = step(kind, "m", "s", op=op, **options)
    return Program((*first(), middle, *last("m", size_of(op))), ("o",))


# Linear maps of one signal: functions, methods, modules.
MORE_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "x[0]-free slicing": lambda a: a[:, 1:3, ::2, None].squeeze(3),
    "unbind": lambda a: torch.stack([*a.unbind(1)][::-1], 1),
    "expand": lambda a: a.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3),
    "split sizes": lambda a: torch.cat(torch.split(a, [1, 3], dim=1)[::-1], 1),
    "where": lambda a: torch.where(torch.arange(6) > 2, a, torch.zeros(())),
    "tril": lambda a: a.tril(),
    "sum dims": lambda a: a.sum((2, 3)),
    "Tensor.mean": lambda a: a.mean(3),
    "movedim": lambda a: a.movedim(1, 3),
    "swapaxes": lambda a: a.swapaxes(1, 2),
    "mT": lambda a: a.mT,
    "gather": lambda a: torch.take_along_dim(a, torch.tensor([[[[3, 1, 0]]]]), dim=3),
    "circular pad": lambda a: F.pad(a, (1, 1, 1, 1), mode="circular"),
    "replicate pad": lambda a: F.pad(a, (0, 2, 0, 0), mode="replicate"),
    "channel_shuffle": lambda a: F.channel_shuffle(a, 2) if isinstance(a, Tensor) else a,
    "pixel_unshuffle": lambda a: F.pixel_unshuffle(a, 2),
    "unfold": lambda a: F.unfold(a, 3),
    "einsum": lambda a: torch.einsum("nchw,hk->nckw", a, torch.eye(6).double()),
    "float and back": lambda a: a.double().type_as(torch.zeros((), dtype=torch.float64)),
    "reshape_as": lambda a: a.reshape_as(torch.zeros(a.shape[0], 8, 3, 6)),
    "diff": lambda a: a.diff(dim=3),
    "rsub": lambda a: torch.zeros(4, 6, 6).double() - a,
}
del MORE_ONE["channel_shuffle"]

for name, op in {**ONE, **MORE_ONE}.items():
    CASES[f"map {name}"] = Case(behind("map", op))
for name, (make, op) in MODULES.items():
    CASES[f"map {name}"] = Case(behind("map", op, make=make))
for name, many in MANY.items():
    CASES[f"map {name}"] = Case(behind("map", lambda a, many=many: many(a)[1]))
for name, make in MAX_POOLS.items():
    CASES[f"max pool {name}"] = Case(behind("max_pool", lambda a: F.max_pool2d(a, 2), make=make))
CASES["max pool of one's own"] = Case(behind("max_pool", lambda a: torch.max_pool2d(a, 2)))


def in_place(a: Any, b: Any) -> Any:
    a = a.clone() if isinstance(a, Tensor) else a
    a += b
    return a


# Of two signals: neurons of two branches, and neurons and a current.
for name, op in {**TWO, "a += b": in_place, "operator": operator.add}.items():
    two = [step("synapse", "c2", "s", **conv("ours", 4, 4)), step("neuron", "s2", "c2")]
    join = step("map", "m", ("s2", "s"), op=op)
    CASES[f"two neurons {name}"] = Case(
        Program((*first(), *two, join, *last("m", size_of(op, 2))), ("o",))
    )
    join = step("map", "m", ("s", "c2"), op=op)
    CASES[f"neuron and current {name}"] = Case(
        Program((*first(), two[0], join, *last("m", size_of(op, 2))), ("o",))
    )

# What no trace can follow: exact by the spike alone where the rule needs no trace.
for name, op in {
    **FUNCTIONS,
    "a + 1": lambda a: torch.add(a, 1.0),
    "group_norm": lambda a: F.group_norm(a, 2),
    "clamp": lambda a: torch.clamp(a, -1.0, 2.0),
    "attention": lambda a: a @ a.transpose(2, 3),
    "bilinear factor": lambda a: a * a.mean(1, keepdim=True),
}.items():
    words = r"\(\) was called.*on what a neuron hands on.*: use "
    CASES[f"function {name}"] = Case(behind("function", op), TRACED, words)
CASES["batch norm behind neurons"] = Case(
    behind("norm", lambda a: a, make=lambda: nn.BatchNorm2d(4)),
    TRACED,
    r"batch_norm\(\) was called in BatchNorm2d on what a neuron hands on.*: use ",
)
CASES["PyTorch's dropout behind neurons"] = Case(
    behind("dropout", lambda a: a, make=lambda: nn.Dropout(0.25)),
    TRACED,
    r"one mask for the spikes.*sj_ottt.layer.Dropout",
)

# Dropout that is ours, of what neurons hand on and of currents.
for kind in (layer.Dropout, layer.Dropout2d):
    make_dropout = lambda kind=kind: kind(0.25)  # noqa: E731
    CASES[f"{kind.__name__} behind neurons"] = Case(
        behind("dropout", lambda a: a, make=make_dropout)
    )
CASES["PyTorch's dropout of a current"] = Case(
    Program(
        (
            step("synapse", "c", "x", **conv("torch", 2, 4)),
            step("dropout", "d", "c", make=lambda: nn.Dropout(0.25)),
            step("neuron", "s", "d"),
            *last("s", 144),
        ),
        ("o",),
    )
)

# Synapses in all forms, on neurons and on the input.
for form in ("ours", "torch", "spikingjelly", "functional", "ws"):
    CASES[f"conv {form}"] = Case(
        Program(
            (
                *first(4, form),
                step("synapse", "c2", "s", **conv(form, 4, 4, bias=form != "ours")),
                step("neuron", "s2", "c2"),
                *last("s2", 144),
            ),
            ("o",),
        )
    )
    CASES[f"linear {form}"] = Case(
        Program(
            (
                step("synapse", "a", "x", **linear(form, 10, 8)),
                step("neuron", "s", "a"),
                step("synapse", "b", "s", **linear(form, 8, 8, bias=form != "ours")),
                step("neuron", "s2", "b"),
                step("synapse", "o", "s2", **linear(form, 8, 3)),
            ),
            ("o",),
            shape=(10,),
        )
    )
for name, hyper in {
    "stride": {"stride": 2},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2},
    "same": {"padding": "same", "kernel": 3},
    "no padding": {"padding": 0},
}.items():
    options = conv("torch", 4, 4, **hyper)
    weight = options["make"]().weight.double()
    size = size_of(lambda a, o=options, w=weight: o["op"](a, w))
    for form in ("ours", "torch", "functional"):
        middle = step("synapse", "c2", "s", **conv(form, 4, 4, **hyper))
        program = Program((*first(), middle, step("neuron", "s2", "c2"), *last("s2", size)), ("o",))
        CASES[f"conv {form} {name}"] = Case(program)
for form in ("torch", "spikingjelly", "functional"):
    middle = step("synapse", "c2", "s", **conv_transpose(form, 4, 2))
    CASES[f"transposed conv {form}"] = Case(
        Program((*first(), middle, step("neuron", "s2", "c2"), *last("s2", 288)), ("o",))
    )
for name, op in {
    "torch.mul": torch.mul,
    "a * w": operator.mul,
    "w * a": lambda a, w: w * a,
    "a.mul(w)": lambda a, w: a.mul(w),
}.items():
    middle = step("synapse", "m", "s", **factor((4, 1, 1), op))
    CASES[f"factor {name}"] = Case(
        Program((*first(), middle, step("neuron", "s2", "m"), *last("s2", 144)), ("o",))
    )


def twice(form: str, second: Callable[[Tensor], Tensor], width: int = 4) -> Program:
    """A first layer that sees two images in a step, and a later one that is applied twice."""
    shared = conv(form, 2, width)
    later = conv(form, width, 4)
    return Program(
        (
            step("map", "x2", "x", op=second),
            step("synapse", "c", "x", "shared", **shared),
            step("synapse", "c2", "x2", "shared", **shared),
            step("neuron", "s", "c", v_threshold=0.9),
            step("neuron", "s2", "c2", v_threshold=0.9),
            step("synapse", "d", "s", "later", **later),
            step("synapse", "d2", "s2", "later", **later),
            step("map", "m", ("d", "d2"), op=torch.add),
            step("neuron", "s3", "m", v_threshold=0.9),
            *last("s3", 144),
        ),
        ("o",),
    )


# A layer that is applied twice in a step to different inputs.
for form in ("ours", "torch", "functional", "ws"):
    CASES[f"shared conv {form} mirror"] = Case(twice(form, lambda a: a.flip(-1)))
    CASES[f"shared conv {form} wide"] = Case(twice(form, lambda a: a.roll(2, -1), 64))
    shared = linear(form, 20, 12)
    CASES[f"shared linear {form} stereo"] = Case(
        Program(
            (
                step("map", ("left", "right"), "x", op=lambda a: a.chunk(2, 1)),
                step("synapse", "a", "left", "shared", **shared),
                step("synapse", "b", "right", "shared", **shared),
                step("neuron", "s", "a", v_threshold=0.9),
                step("neuron", "s2", "b", v_threshold=0.9),
                step("map", "m", ("s", "s2"), op=lambda a, b: torch.cat([a, b], 1)),
                step("synapse", "o", "m", **linear(form, 24, 3)),
            ),
            ("o",),
            shape=(40,),
        )
    )

# Neurons of other constants.
for name, given in {
    "hard reset": {"v_reset": 0.0},
    "hard reset to -0.2": {"v_reset": -0.2},
    "decay_input": {"decay_input": True, "v_threshold": 0.4},
    "atan": {"surrogate": "atan"},
    "tau 4": {"tau": 4.0},
}.items():
    middle_steps = [
        step("synapse", "c", "x", **conv("ours", 2, 4)),
        step("neuron", "s", "c", **given),
        step("synapse", "c2", "s", **conv("ours", 4, 4)),
        step("neuron", "s2", "c2", **given),
    ]
    CASES[f"neuron {name}"] = Case(Program((*middle_steps, *last("s2", 144)), ("o",)))

DEEP = (
    *first(),
    step("synapse", "c2", "s", **conv("torch", 4, 4)),
    step("norm", "b2", "c2", make=lambda: nn.BatchNorm2d(4)),
    step("neuron", "s2", "b2"),
    step("map", "p", "s2", op=ONE["avg_pool2d"], make=lambda: nn.AvgPool2d(2)),
    *last("p", 36),
)
"""c s c2 b2 s2 p flat l n o."""
PLAIN = tuple(s for s in DEEP if s.kind != "norm")
PLAIN = tuple(step("neuron", "s2", "c2", v_threshold=0.9) if s.out == "s2" else s for s in PLAIN)
"""c s c2 s2 p flat l n o."""
CASES["batch norm"] = Case(Program(DEEP, ("o",)))
CASES["sj batch norm"] = Case(
    Program(
        tuple(
            step("norm", "b2", "c2", make=lambda: sj_layer.BatchNorm2d(4)) if s.out == "b2" else s
            for s in DEEP
        ),
        ("o",),
    )
)

# Parts in modules of one's own, in chains, computed again, in evaluation, frozen.
for how in ("module", "ottt_sequential", "sequential", "eval"):
    CASES[f"part {how}"] = Case(Program(PLAIN, ("o",), groups=(Group(1, 4, how),)))
for how in ("checkpoint", "checkpoint reentrant"):
    for chain in ((), (Group(2, 5, "sequential"),)):
        CASES[f"part {how}{' of a chain' if chain else ''}"] = Case(
            Program(PLAIN, ("o",), groups=(*chain, Group(2, 5, how))),
            ALL,
            "checkpoint.*: leave the checkpoint out",
        )
CASES["part checkpoint without neurons"] = Case(
    Program(PLAIN, ("o",), groups=(Group(4, 6, "checkpoint"),))
)
for how in ("checkpoint", "checkpoint reentrant"):
    # The layer takes a current: PyTorch's older checkpoint cuts the gradient to what is no tensor.
    standardized = (
        *PLAIN[:1],
        step("synapse", "c1", "c", **conv("ws", 4, 4)),
        step("neuron", "s", "c1", v_threshold=0.9),
        *PLAIN[2:],
    )
    CASES[f"part {how} of a standardized layer"] = Case(
        Program(standardized, ("o",), groups=(Group(1, 1, how),))
    )
CASES["part eval batch norm"] = Case(Program(DEEP, ("o",), groups=(Group(2, 3, "eval"),)))
CASES["part eval with neurons"] = Case(Program(DEEP, ("o",), groups=(Group(2, 5, "eval"),)))
CASES["part frozen"] = Case(
    Program(
        tuple(
            step("synapse", "c2", "s", frozen=True, **conv("ours", 4, 4)) if s.out == "c2" else s
            for s in PLAIN
        ),
        ("o",),
    )
)
CASES["part no_grad first"] = Case(Program(PLAIN, ("o",), groups=(Group(0, 1, "no_grad"),)))
CASES["part no_grad behind neurons"] = Case(
    Program(PLAIN, ("o",), groups=(Group(2, 3, "no_grad"),)),
    ALL - {"bptt"},
    "leave torch.no_grad\\(\\) out",
)
for wrapper in WRAPPERS:
    if wrapper not in ("none", "compiled"):
        CASES[f"wrapper {wrapper}"] = Case(Program(PLAIN, ("o",), wrapper=wrapper))

# Several outputs.
HEADS = (
    *PLAIN,
    step("map", "flat2", "s", op=lambda a: a.flatten(1)),
    step("synapse", "o2", "flat2", **linear("torch", 144, 2)),
)
for structure in ("tuple", "list", "dict"):
    CASES[f"heads {structure}"] = Case(Program(HEADS, ("o", "o2"), structure))
    CASES[f"heads {structure}, one of spikes"] = Case(Program(HEADS, ("o", "s2", "o2"), structure))
CASES["output of spikes"] = Case(Program(PLAIN[:4], ("s2",)))
CASES["output of pooled spikes"] = Case(Program(PLAIN[:5], ("p",)))

# Feedback.
FED = (
    PLAIN[0],
    step("feedback", "fed", "c", source="s2", **conv("ours", 4, 4, bias=False)),
    step("neuron", "s", "fed", v_threshold=0.9),
    *PLAIN[2:],
)
CASES["feedback"] = Case(Program(FED, ("o",)))


CASES["U-Net"] = Case(
    Program(
        (
            step("synapse", "a", "x", "down1", **conv("torch", 2, 4)),
            step("neuron", "first", "a", "spike1", v_threshold=0.9),
            step("map", "p", "first", op=ONE["avg_pool2d"]),
            step("synapse", "b", "p", "down2", **conv("torch", 4, 6)),
            step("neuron", "second", "b", "spike2", v_threshold=0.7),
            step("synapse", "u", "second", "up", **conv_transpose("torch", 6, 4)),
            step("norm", "un", "u", "norm"),
            step("neuron", "third", "un", "spike3", v_threshold=0.8),
            step("map", "j", ("first", "third"), op=lambda a, b: torch.cat([a, b], dim=1)),
            step("synapse", "o", "j", "out", **conv("torch", 8, 1, 1)),
        ),
        ("o",),
    ),
    make=UNet,
)


CASES["tied weights"] = Case(
    Program(
        (
            step("synapse", "a", "x", "encoder", op=F.linear),
            step("neuron", "s", "a", "spike", v_threshold=0.9),
            step("synapse", "o", "s", "encoder", op=lambda a, w: F.linear(a, w.t())),
        ),
        ("o",),
        shape=(10,),
    ),
    make=Tied,
)


CASES["attention"] = Case(
    Program(
        (
            step("synapse", "a", "x", "query", op=F.linear),
            step("synapse", "b", "x", "key", op=F.linear),
            step("neuron", "sq", "a", "q", v_threshold=0.9),
            step("neuron", "sk", "b", "k", v_threshold=0.8),
            step("function", "qk", ("sq", "sk"), op=lambda q, k: q @ k.transpose(1, 2) / 6),
            step("synapse", "o", "qk", "out", op=F.linear),
        ),
        ("o",),
        shape=(6, 6),
    ),
    TRACED,
    r"matmul\(\) was called in Attention on what a neuron hands on.*: use ",
    Attention,
)
