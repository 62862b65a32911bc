"""Connections from a layer to an earlier one, one time step late (the paper's section 4.1)."""

from collections.abc import Callable, Iterable
from functools import partial
from types import MethodType
from typing import Any, NoReturn, Self

import torch.nn.functional as F
from spikingjelly.activation_based import base
from spikingjelly.activation_based import neuron as sj_neuron
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sj_ottt._ops.pair import Pair
from sj_ottt._ops.rule import LearningModule
from sj_ottt.errors import InputError

__all__ = ["Feedback"]


class Feedback(base.MemoryModule):
    """A feedback connection: adds W s[t−1] of a later layer to the input current of an earlier one.

    The weight's gradient is the recurrent form of equation (4), ∇_W L[t] = g_u[t] â[t−1]ᵀ with u of
    the neurons that it feeds and â of those that it comes from; no gradient flows back in time
    (under BPTT it does). Feature maps [N, C, H, W] of another size than the target's are resized to
    it, by the nearest pixel. The first step after a reset adds nothing.

        self.feedback = layer.Feedback(layer.Conv2d(512, 64, 3, padding=1, bias=False))
        self.feedback.connect(source=self.layer4, target=self.layer1[1])

    Args:
        synapse: Maps the source's output to the target's input: a layer of `sj_ottt.layer`, or an
            `OTTTSequential` of such.
    """

    last: Tensor | Pair | None
    target_ran: bool

    def __init__(self, synapse: nn.Module):
        super().__init__()
        self.synapse = synapse
        self.register_memory("last", None)
        self.register_memory("target_ran", False)
        self._hooks: list[RemovableHandle] = []

    def forward(self, *args: object) -> NoReturn:
        """Refuse a call: the target calls the feedback by itself.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "a Feedback is called by its target and not by the network: keep it as an attribute of "
            "a module with a forward of its own, outside any chain"
        )

    def connect(self, source: nn.Module, target: nn.Module) -> Self:
        """Lay the connection.

        Args:
            source: Hands on spikes: a neuron, or a module that ends with one.
            target: A neuron (any module that takes a current), which runs before `source` does, or
                is `source` itself. In step mode "m" both belong to one `layer.OTTTSequential`,
                which then runs its time steps one by one.

        Returns:
            This module, which must be a part of the network, for its parameters to be found.

        Raises:
            InputError: At the first step, if `source` runs before `target`, or `target` takes
                spikes; in step mode "m" outside an `OTTTSequential`; and in training, if one of
                them is no part of the network.
        """
        self.disconnect()
        # Bound methods, which a copy of the network binds to its own copy of this module.
        self._hooks = [
            target.register_forward_pre_hook(self._feed),
            source.register_forward_hook(self._remember),
        ]
        return self

    def disconnect(self) -> None:
        """Take the connection away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _feed(self, target: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if multi_step_parts(target):
            raise InputError(
                'a feedback cannot run in step_mode="m", because each step needs the one before: '
                'call the network once per time step in step_mode="s", or put source and target '
                "into one OTTTSequential, which does so in evaluation"
            )
        x, last = args[0], self.last
        if isinstance(x, list):
            if not isinstance(target, sj_neuron.BaseNode):
                raise InputError(
                    f"the target of a Feedback, {type(target).__name__}, takes the spikes of a "
                    "neuron, and a feedback adds to a current: give the neuron behind it as target"
                )
            x = x[0]
        self.target_ran = True
        if last is None:
            return None
        if len(x.shape) == 4 and last.shape[2:] != x.shape[2:]:
            resize = partial(F.interpolate, size=x.shape[2:])
            last = last.through(resize) if isinstance(last, Pair) else resize(last)
        return (x + self.synapse(last), *args[1:])

    def _remember(self, source: nn.Module, args: tuple[Any, ...], out: Tensor | Pair) -> None:
        if not self.target_ran:
            raise InputError(
                "the source of a Feedback runs before its target: that is a connection forward, "
                "which needs no Feedback; give a later layer as source"
            )
        if isinstance(out, Pair):
            self.last = Pair(out.spike.detach(), out.trace, out.spike_suffices)
            return
        through_time = any(
            isinstance(part, LearningModule) and part.rule.through_time for part in source.modules()
        )
        self.last = out if through_time else out.detach()


def multi_step_parts(module: nn.Module) -> list[base.StepModule]:
    """Return the parts of a module, and it itself, that are to run all time steps in one call."""
    steps = (part for part in module.modules() if isinstance(part, base.StepModule))
    return [part for part in steps if part.step_mode == "m"]


def feedbacks_within(module: nn.Module) -> set[Feedback]:
    """Return the feedbacks whose source and target both are parts of a module, or it itself."""
    parts = list(module.modules())
    return _owners(p._forward_hooks for p in parts) & _owners(p._forward_pre_hooks for p in parts)


def _owners(hooks: Iterable[dict[int, Callable[..., Any]]]) -> set[Feedback]:
    methods = (f for each in hooks for f in each.values() if isinstance(f, MethodType))
    return {method.__self__ for method in methods if isinstance(method.__self__, Feedback)}


def check_connected(model: nn.Module) -> None:
    """Refuse a network with a feedback that connects none of its layers.

    Raises:
        InputError: If there is one; it is named.
    """
    own = {name: part for name, part in model.named_modules() if isinstance(part, Feedback)}
    if not own:
        return
    laid = feedbacks_within(model)
    for name, feedback in own.items():
        if feedback not in laid:
            raise InputError(
                f"the feedback {name} connects no two layers of the model: call "
                "connect(source=..., target=...) with layers of it, or take it out"
            )
