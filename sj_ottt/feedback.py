"""Connections from a layer to an earlier one, one time step late (section 4.1)."""

from typing import Self

import torch.nn.functional as F
from spikingjelly.activation_based import base
from torch import Tensor, nn

from sj_ottt.errors import InputError
from sj_ottt.trace import Pair

__all__ = ["Feedback"]


class Feedback(base.MemoryModule):
    """A feedback connection: adds W s[t−1] of a later layer to the input current of an earlier one.

    The weight's gradient is the recurrent form of equation (4), ∇_W L[t] = g_u[t] â[t−1]ᵀ with u of
    the neurons that it feeds and â of those that it comes from; no gradient flows back in time
    (under BPTT it does). Feature maps of another size are resized to the target's, to the nearest
    pixel. The first step after a reset adds nothing.

        self.feedback = layer.Feedback(layer.Conv2d(512, 64, 3, padding=1, bias=False))
        self.feedback.connect(source=self.layer4, target=self.layer1[1])

    Args:
        synapse: Maps the source's output to the target's input: a layer of `sj_ottt.layer`, or an
            `OTTTSequential` of such.
    """

    def __init__(self, synapse: nn.Module):
        super().__init__()
        self.synapse = synapse
        self.register_memory("last", None)
        self.register_memory("target_ran", False)
        self._hooks: list = []

    def connect(self, source: nn.Module, target: nn.Module) -> Self:
        """Lay the connection.

        Args:
            source: Hands on spikes: a neuron, or a module that ends with one.
            target: A neuron (any module that takes a current), which runs before `source` does, or
                is `source` itself.

        Returns:
            This module, which must be a part of the network, for its parameters to be found.

        Raises:
            InputError: At the first step, if `source` runs before `target`; and in step mode "m"
                (in training, the neurons refuse it).
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

    def _feed(self, target: nn.Module, args: tuple) -> tuple | None:
        self.target_ran = True
        at_once = getattr(target, "step_mode", "s") == "m"
        if at_once and not target.training:
            raise InputError(
                'a network with feedback cannot run in step_mode="m", because each step needs the '
                'one before: call it once per time step in step_mode="s"'
            )
        if at_once or self.last is None:  # in training, the neuron itself refuses
            return None
        x, last = args[0], self.last
        if len(x.shape) == 4 and last.shape[2:] != x.shape[2:]:
            last = F.interpolate(last, size=x.shape[2:])
        return (x + self.synapse(last), *args[1:])

    def _remember(self, source: nn.Module, args: tuple, out: Tensor | Pair) -> None:
        if not self.target_ran:
            raise InputError(
                "the source of a Feedback runs before its target: that is a connection forward, "
                "which needs no Feedback; give a later layer as source"
            )
        if isinstance(out, Pair):
            self.last = Pair([out[0].detach(), out[1]])
        else:
            through_time = any(getattr(m, "rule", None) == "bptt" for m in source.modules())
            self.last = out if through_time else out.detach()
