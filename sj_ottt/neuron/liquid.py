"""Liquid time-constant spiking neurons (LTC-SN), their baseline and their readout.

How fast such a neuron follows its input, and how fast its threshold adapts, are computed at every
step from the input and the state. They carry no presynaptic trace: they learn by FPTT
(`learning.FPTT`) or by BPTT, and keep their graph until their state is detached.
"""

from typing import Any

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

from sj_ottt._ops.liquid import Gates, leaky_step, ltc_step
from sj_ottt._ops.rule import LearningModule, Rule
from sj_ottt.errors import InputError
from sj_ottt.learning.rules import RULES
from sj_ottt.surrogate import MultiGaussian

__all__ = [
    "ASRNode",
    "ASRRecurrent",
    "LTCConvNode",
    "LTCNode",
    "LTCRecurrent",
    "LeakyReadout",
    "LiquidNode",
]


class _ThroughTime(LearningModule):
    """Learns through time: the gradient goes through the state of all steps until it is detached.

    The states follow the input's device and dtype, and start anew where its shape has changed.
    """

    rule = RULES["bptt"]

    def check_rule(self, rule: Rule) -> None:
        """Refuse a rule that the module cannot take part in.

        Raises:
            InputError: If it does not work through time.
        """
        if not rule.through_time:
            raise InputError(
                f'rule="{rule.name}": {type(self).__name__} carries no presynaptic trace; train it '
                'with FPTT (`sj-ottt train --rule fptt`) or rule="bptt"'
            )

    def state_like(self, x: Tensor) -> Tensor:
        """Return a tensor shaped like a state, for one time step's input."""
        return x

    def new_states(self, like: Tensor) -> tuple[Tensor, ...]:
        """Return the states before the first time step, shaped like a tensor."""
        raise NotImplementedError

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Tensor | None, ...], step_mode: str
    ) -> tuple[Tensor, ...]:
        """Return the states, new at the first time step and where their shape has changed."""
        like = self.state_like(inputs[0][0] if step_mode == "m" else inputs[0])
        if any(state is None or state.shape != like.shape for state in states):
            return self.new_states(like)
        return tuple(state.to(like) for state in states if state is not None)


class LiquidNode(_ThroughTime):
    """What liquid time-constant neurons share: state, threshold and step. A subclass gives `gates`.

    The state is `v`, the membrane after the reset, `b`, the adaptation, and `spike`, all shaped
    like the input current.

    Args:
        b0: Lowest threshold; 0.1, or 0.5 in the authors' convolutional network for DVS.
        adaptive: Whether the threshold adapts; otherwise it is b0.
        start: "random" draws v[0] ~ U(0, 1) from torch's global generator and starts with b = b0;
            "zero" starts with v = b = 0 (the add task). There is no spike before the first step.
        surrogate_function: SpikingJelly surrogate; None makes a new `surrogate.MultiGaussian()`.
        step_mode: "s", one time step [N, ...] a call, or "m", all of them [T, N, ...].

    Raises:
        InputError: If `start` is unknown.
    """

    def __init__(
        self,
        b0: float = 0.1,
        adaptive: bool = True,
        start: str = "random",
        surrogate_function: surrogate.SurrogateFunctionBase | None = None,
        step_mode: str = "s",
    ):
        super().__init__()
        if start not in ("random", "zero"):
            raise InputError(f'start="{start}" is unknown: use "random" or "zero"')
        self.b0, self.adaptive, self.start = float(b0), adaptive, start
        self.surrogate_function = surrogate_function or MultiGaussian()
        self.step_mode = step_mode
        for name in ("v", "b", "spike"):
            self.register_memory(name, None)

    def extra_repr(self) -> str:
        """Describe the node in `print(model)`."""
        return f"{super().extra_repr()}, b0={self.b0}, adaptive={self.adaptive}, start={self.start}"

    def gates(self, current: Tensor, v: Tensor, b: Tensor) -> Gates:
        """Return the logits of α and ρ from I[t], v[t−1] and b[t−1]."""
        raise NotImplementedError

    def new_states(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return v, b and spike before the first time step."""
        zero = torch.zeros_like(like, requires_grad=False)
        if self.start == "zero":
            return zero, zero.clone(), zero.clone()
        return torch.rand_like(zero), torch.full_like(zero, self.b0), zero

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Tensor, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Run one time step on explicit states: ((I,), (v, b, spike)) → ((spike,), states)."""
        (current,) = inputs
        v, b, spike = (state.to(current) for state in states)
        spike, v, b = ltc_step(
            current,
            self.gates(current, v, b),
            v,
            b,
            spike,
            b0=self.b0,
            surrogate_function=self.surrogate_function,
        )
        return (spike,), (v, b, spike)


class LTCNode(LiquidNode):
    """Dense liquid time-constant neuron, current [N, features] → spikes [N, features].

    α = σ(W_m [I; v] + c_m), ρ = σ(W_a [I; b] + c_a).

    Args:
        features: Number of neurons.
        **kwargs: As `LiquidNode`.

    Raises:
        InputError: As `LiquidNode`.
    """

    def __init__(self, features: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.update = nn.Linear(2 * features, features)
        self.retain = nn.Linear(2 * features, features) if self.adaptive else None

    def gates(self, current: Tensor, v: Tensor, b: Tensor) -> Gates:
        """Return the logits of α and ρ from I[t], v[t−1] and b[t−1]."""
        update = self.update(torch.cat((current, v), -1))
        if self.retain is None:
            return update, None
        return update, self.retain(torch.cat((current, b), -1))


class LTCConvNode(LiquidNode):
    """Convolutional liquid time-constant neuron, current [N, C, H, W] → spikes [N, C, H, W].

    α = σ(BN(W_m ∗ (I + v))), ρ = σ(BN(W_a ∗ (I + b))).

    Args:
        channels: C.
        kernel_size: Of both convolutions, odd; the authors take that of the convolution before.
        **kwargs: As `LiquidNode`.

    Raises:
        InputError: If `kernel_size` is even, or as `LiquidNode`.
    """

    def __init__(self, channels: int, kernel_size: int = 3, **kwargs: Any):
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise InputError(f"kernel_size={kernel_size}: give an odd number, so that shapes stay")

        def gate() -> nn.Module:
            pad = kernel_size // 2
            conv = nn.Conv2d(channels, channels, kernel_size, padding=pad, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels))

        self.update = gate()
        self.retain = gate() if self.adaptive else None

    def gates(self, current: Tensor, v: Tensor, b: Tensor) -> Gates:
        """Return the logits of α and ρ from I[t], v[t−1] and b[t−1]."""
        if self.retain is None:
            return self.update(current + v), None
        return self.update(current + v), self.retain(current + b)


class ASRNode(LiquidNode):
    """Adaptive spiking neuron with fixed time constants: α and ρ are learnt, one per neuron.

    The baseline of the LTC neuron: the same step, but its gates see neither input nor state.

    Args:
        features: Number of neurons, or of channels of an input [N, C, H, W].
        **kwargs: As `LiquidNode`.

    Raises:
        InputError: As `LiquidNode`.
    """

    def __init__(self, features: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.update = nn.Parameter(torch.zeros(features))
        self.retain = nn.Parameter(torch.zeros(features)) if self.adaptive else None

    def gates(self, current: Tensor, v: Tensor, b: Tensor) -> Gates:
        """Return the logits of α and ρ, the same at every step."""
        shape = (-1,) + (1,) * (current.dim() - 2)
        return self.update.view(shape), None if self.retain is None else self.retain.view(shape)


class _Recurrent(LiquidNode):
    """Base of recurrent layers: I[t] = W [x[t]; s[t−1]] + c goes before the step."""

    def __init__(self, in_features: int, features: int, **kwargs: Any):
        super().__init__(features, **kwargs)  # of the neuron that is the other base
        self.synapse = nn.Linear(in_features + features, features)

    def state_like(self, x: Tensor) -> Tensor:
        """Return a tensor shaped like a state, for one time step's input."""
        return x.new_empty(()).expand(*x.shape[:-1], self.synapse.out_features)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Tensor, ...], **kwargs: object
    ) -> tuple[tuple[Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Run one time step on explicit states: ((x,), (v, b, spike)) → ((spike,), states)."""
        current = self.synapse(torch.cat((inputs[0], states[2]), -1))
        return super().single_step_functional_forward((current,), states, **kwargs)


class LTCRecurrent(_Recurrent, LTCNode):
    """Recurrent layer of liquid time-constant neurons, [N, in_features] → spikes [N, features].

    I[t] = W [x[t]; s[t−1]] + c, then the step of `LTCNode`.

    Args:
        in_features: Size of the input.
        features: Number of neurons.
        **kwargs: As `LiquidNode`.

    Raises:
        InputError: As `LiquidNode`.
    """


class ASRRecurrent(_Recurrent, ASRNode):
    """Recurrent layer of `ASRNode`, the baseline of `LTCRecurrent`: [N, in_features] → spikes.

    Args:
        in_features: Size of the input.
        features: Number of neurons.
        **kwargs: As `LiquidNode`.

    Raises:
        InputError: As `LiquidNode`.
    """


class LeakyReadout(_ThroughTime):
    """Leaky integrator of a readout's logits, [N, classes] → [N, classes]; it does not spike.

    o[t] = o[t−1] + α (x − o[t−1]) with x = W_o s[t] and o[0] = 0. The prediction is o at the last
    step. Its state is `o`.

    Args:
        classes: Size of the output.
        gated: Whether α = σ(W [x; o[t−1]] + c); otherwise it is σ of one parameter per class.
        step_mode: "s" or "m".
    """

    def __init__(self, classes: int, gated: bool = False, step_mode: str = "s"):
        super().__init__()
        self.step_mode = step_mode
        self.gate = nn.Linear(2 * classes, classes) if gated else nn.Parameter(torch.zeros(classes))
        self.register_memory("o", None)

    def new_states(self, like: Tensor) -> tuple[Tensor]:
        """Return o before the first time step."""
        return (torch.zeros_like(like, requires_grad=False),)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Tensor, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor], tuple[Tensor]]:
        """Run one time step on explicit states: ((x,), (o,)) → ((o,), (o,))."""
        (x,), (o,) = inputs, states
        gate = self.gate
        if isinstance(gate, nn.Linear):
            gate = gate(torch.cat((x, o), -1))
        o = leaky_step(x, o, gate)
        return (o,), (o,)
