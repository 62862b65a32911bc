"""One time step with its state as inputs and outputs, for export."""

import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

from sj_ottt.errors import InputError
from sj_ottt.layer import Feedback
from sj_ottt.learning.state import reset_state, stateful_modules

__all__ = ["OneStep"]


class _Memory(NamedTuple):
    """A tensor that a stateful module keeps: the number of the module, and the memory's name."""

    module: int
    name: str


class OneStep(nn.Module):
    """One time step of a network in evaluation, with the state given and returned.

    A traced or exported graph keeps nothing between two calls, so the state that neurons and
    feedbacks keep goes in and out: (x, *states) → (output, *new states).

        one_step = OneStep(model, example)
        program = torch.export.export(one_step, (example, *one_step.initial_states(example)))

    Args:
        model: Called once per time step; copied, without gradients.
        example: Input of one time step, [N, ...].

    Attributes:
        state_names: Of the states, in their order, such as "layer1.2.v".

    Raises:
        InputError: If the model keeps something between steps that is no tensor, or has a
            `layer.Feedback` with a bias.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in self.model.modules():
            if isinstance(module, Feedback) and any(
                "bias" in n for n, _ in module.named_parameters()
            ):
                raise InputError(
                    "a Feedback adds nothing at the first time step, not even its bias, which one "
                    "graph for all steps cannot tell: build its synapse with bias=False"
                )
        reset_state(self.model)
        before = [dict(m._memories) for m in stateful_modules(self.model)]
        with torch.no_grad():
            self.model(example)
        names = {module: name for name, module in self.model.named_modules()}
        self._kept: list[_Memory] = []
        for i, module in enumerate(stateful_modules(self.model)):
            for name, value in module._memories.items():
                if isinstance(value, Tensor):
                    self._kept.append(_Memory(i, name))
                elif value is not None and not _stands(value, before[i][name]):
                    raise InputError(
                        f"{type(module).__name__} keeps {name}, a {type(value).__name__}, between "
                        "time steps, which no graph can take: leave the module out of the model"
                    )
        modules = stateful_modules(self.model)
        self.eval()
        self.state_names = [f"{names[modules[m.module]]}.{m.name}" for m in self._kept]
        reset_state(self.model)

    def initial_states(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the states before the first time step, for an input shaped like x, [N, ...].

        A neuron that draws its state draws it anew.
        """
        model = copy.deepcopy(self.model)
        modules = stateful_modules(model)
        starts: dict[_Memory, Tensor] = {}

        def note_start(i: int, module: base.MemoryModule, args: tuple[Any, ...]) -> None:
            given = tuple(module._memories.values())
            for name, value in zip(
                module._memories, module.materialize_states(args, given, "s"), strict=True
            ):
                if isinstance(value, Tensor):
                    starts[_Memory(i, name)] = module._memories[name] = value

        for i, module in enumerate(modules):
            module.register_forward_pre_hook(partial(note_start, i))
        with torch.no_grad():
            model(x)
        after = {m: modules[m.module]._memories[m.name] for m in self._kept}
        # What is no neuron's, such as a feedback's last spikes, starts at zero.
        return tuple(starts.get(m, torch.zeros_like(after[m])) for m in self._kept)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Run one time step.

        Args:
            x: Input [N, ...].
            *states: Those of the step before, as `initial_states` orders them.

        Returns:
            The output, and the new states.

        Raises:
            InputError: If the number of states is wrong.
        """
        if len(states) != len(self._kept):
            raise InputError(
                f"{len(states)} states were given, not {len(self._kept)}: start with "
                "initial_states(x), and give what the step before returned"
            )
        modules = stateful_modules(self.model)
        for memory, state in zip(self._kept, states, strict=True):
            modules[memory.module]._memories[memory.name] = state
        output = self.model(x)
        new = [modules[m.module]._memories[m.name] for m in self._kept]
        reset_state(self.model)
        return (output, *new)


def _stands(value: Any, before: Any) -> bool:
    """Whether what a module keeps is a flag, or a number that a step leaves as it is."""
    return isinstance(value, bool) or (isinstance(value, int | float) and value == before)
