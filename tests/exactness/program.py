"""A small network as data: operations on named signals, in the order in which they run."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Group", "Program", "Step", "step"]


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kind: "synapse", "neuron", "map" (linear, without weights), "max_pool", "function" (anything
            else), "norm" (batch norm), "dropout", "feedback" or "detach".
        out: Name of the signal that comes out, or names where it gives several.
        inputs: Names of the signals that go in; "x" is the network's input.
        module: Name of the module; two steps of one name share it.
        options: What each kind needs; see `reference` and `networks`.
    """

    kind: str
    out: str | tuple[str, ...]
    inputs: tuple[str, ...]
    module: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def outs(self) -> tuple[str, ...]:
        return (self.out,) if isinstance(self.out, str) else self.out


def step(
    kind: str,
    out: str | tuple[str, ...],
    inputs: str | tuple[str, ...],
    module: str | None = None,
    **options: Any,
) -> Step:
    """Write a step in one line; its module is named as its output unless it says otherwise."""
    inputs = (inputs,) if isinstance(inputs, str) else inputs
    name = out if isinstance(out, str) else "_".join(out)
    return Step(kind, out, inputs, module or name, options)


@dataclass(frozen=True)
class Group:
    """Steps first … last run inside one module: a chain, a module of one's own, a checkpoint."""

    first: int
    last: int
    how: str


@dataclass(frozen=True)
class Program:
    """A network.

    Attributes:
        steps: What it does.
        outputs: Signals that it hands out.
        structure: How: "tensor", "tuple", "list" or "dict".
        groups: Inner ones first.
        wrapper: What the network is wrapped in; see `networks.WRAPPERS`.
        shape: [C, H, W] or [C] of one input.
    """

    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    structure: str = "tensor"
    groups: tuple[Group, ...] = ()
    wrapper: str = "none"
    shape: tuple[int, ...] = (2, 6, 6)

    def within(self, how: str) -> set[int]:
        """The numbers of the steps inside groups of a kind."""
        spans = [range(g.first, g.last + 1) for g in self.groups if g.how == how]
        return {number for span in spans for number in span}


def loss(outputs: Any, target: Tensor) -> Tensor:
    """A loss of all outputs, each with another weight; target [N, number of outputs]."""
    values = outputs.values() if isinstance(outputs, dict) else outputs
    values = [outputs] if isinstance(outputs, Tensor) else [*values]
    errors = [((v.flatten(1) - target[:, i : i + 1]) ** 2).mean() for i, v in enumerate(values)]
    return sum((i + 1) * error for i, error in enumerate(errors))  # type: ignore[return-value]
