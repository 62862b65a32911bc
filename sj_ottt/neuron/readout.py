"""A readout with a membrane and without spikes, for regression, segmentation and classification."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sj_ottt._ops import trace as traces
from sj_ottt._ops.pair import Pair
from sj_ottt._ops.rule import LearningModule, Rule
from sj_ottt._ops.trace import Trace
from sj_ottt.errors import InputError
from sj_ottt.layer.synapse import merge_steps
from sj_ottt.learning.rules import RULES

__all__ = ["LeakyIntegrator", "MembraneReadout"]

Synapse = Callable[[Any], Tensor]


class LeakyIntegrator(LearningModule):
    """Integrates the current of a synapse that is given in each call; see `MembraneReadout`.

    `SpikingClassifier` has one, so that its classifier keeps its place and its parameters' names.
    The state is `o`, the output of the last step, and in training under a traced rule `trace` â
    and `constant` c.

    Args:
        tau: Time constant in time steps, above 1.
        step_mode: "s", one time step a call, or "m", all of them.

    Raises:
        InputError: If `tau` is not above 1.
    """

    rule = RULES["ottt"]

    def __init__(self, tau: float = 2.0, step_mode: str = "s"):
        super().__init__()
        if not tau > 1.0:
            raise InputError(f"tau={tau}: the readout's time constant must be above 1 time step")
        self.tau = float(tau)
        self.step_mode = step_mode
        self.register_memory("o", None)
        self.register_memory("trace", None)
        self.register_memory("constant", 0.0)

    def check_rule(self, rule: Rule) -> None:
        """Accept every rule: a trace of its own fits all of them."""

    def extra_repr(self) -> str:
        """Describe the readout in `print(model)`."""
        return f"{super().extra_repr()}, tau={self.tau}, rule={self.rule}"

    def forward(self, x: Tensor | Pair, synapse: Synapse) -> Tensor:
        """Map the input of one time step [N, ...], or of all steps in mode "m", to o."""
        out: Tensor = super().forward(x, synapse)
        return out

    def materialize_states(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Tensor | None, Tensor | None, float]:
        """Fit the trace to the input; without one, or with another shape, it starts anew."""
        o, trace, constant = states
        if not self.learns() or self.rule.spike_suffices:
            return o, None, 0.0
        x = _spike(inputs[0])
        x = x[0] if step_mode == "m" else x
        if trace is None or trace.shape != x.shape:
            return o, traces.zeros(x.detach(), "float32"), 0.0
        return o, trace.to(traces.zeros(x.new_empty(0), "float32")), constant

    def single_step_functional_forward(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], **kwargs: object
    ) -> tuple[tuple[Tensor], tuple[Tensor, Tensor | None, float]]:
        """Run one time step on explicit states: ((x, synapse), (o, â, c)) → ((o,), (o, â, c))."""
        x, synapse = _spike(inputs[0]), inputs[1]
        o, trace, constant = states
        if trace is None:
            current = synapse(x)
        else:
            current, trace, constant = self._traced(x, synapse, trace, constant)
        o = self._integrate(o, current)
        return (o,), (self._keep(o), trace, constant)

    # torch.compile would make c a variable of its graph, which the product cannot take.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _traced(
        self, x: Tensor, synapse: Synapse, trace: Tensor, constant: float
    ) -> tuple[Tensor, Tensor, float]:
        """Return the current W x + b, whose gradients take â and c, and â and c themselves."""
        lam = 1.0 - 1.0 / self.tau
        trace, constant = traces.advance(trace, x.detach(), lam), lam * constant + 1.0
        return synapse(Pair(x, Trace(trace, constant=constant))), trace, constant

    def multi_step_functional_forward(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], **kwargs: object
    ) -> tuple[tuple[Tensor], tuple[Tensor, Tensor | None, float]]:
        """Run [T, N, ...]: the synapse at once where it has no trace, and the rest step by step."""
        x_seq, synapse = _spike(inputs[0]), inputs[1]
        o, trace, constant = states
        outputs = []
        for current in x_seq if trace is not None else _all_steps(synapse, x_seq):
            if trace is not None:  # whose bias has another constant at every step
                one_step = partial(_one_step, synapse)
                current, trace, constant = self._traced(current, one_step, trace, constant)
            outputs.append(self._integrate(o, current))
            o = self._keep(outputs[-1])
        assert o is not None
        return (torch.stack(outputs),), (o, trace, constant)

    def _integrate(self, o: Tensor | None, current: Tensor) -> Tensor:
        """Return o[t] = λ o[t−1] + I[t]; o starts anew where its shape has changed."""
        if o is None or o.shape != current.shape:
            return current
        return (1.0 - 1.0 / self.tau) * o.to(current) + current

    def _keep(self, o: Tensor) -> Tensor:
        """Return o for the next step, with its graph under BPTT only."""
        return o if self.rule.through_time else o.detach()


class MembraneReadout(LeakyIntegrator):
    """A leaky integrator that does not spike: o[t] = λ o[t−1] + W s[t] + b, λ = 1 − 1/tau.

    o[0] = 0. For a network whose output is a number, a map or logits, at every step or at the last
    one. In online training (OTTT, NDOT) the gradient of its own parameters is exact, whichever
    outputs o[t] the loss takes: with g_o[t] = ∂L[t]/∂o[t],

        ∇_W L[t] = g_o[t] â[t]ᵀ        â[t] = λ â[t−1] + s[t]
        ∇_b L[t] = c[t] g_o[t]         c[t] = λ c[t−1] + 1

    It keeps the trace of its input itself, so that its `tau` is its own, and the input may be the
    spikes of any neuron or real-valued. What comes before gets the gradient through space, Wᵀ g_o.
    Under SLTT the weights take the spike (â = s, c = 1), and under BPTT the gradient goes back
    through o. A model that predicts from the last step says so by an attribute
    ``prediction = "last"``.

    Args:
        synapse: A linear layer or a convolution, transposed or not, of `sj_ottt.layer` or PyTorch.
        tau: Time constant in time steps, above 1; infinity sums up all steps.
        step_mode: "s", [N, ...] → [N, ...], or "m", [T, N, ...] → [T, N, ...].

    Raises:
        InputError: If `synapse` is no such layer or `tau` is not above 1.
    """

    def __init__(self, synapse: nn.Module, tau: float = 2.0, step_mode: str = "s"):
        super().__init__(tau, step_mode)
        if not isinstance(synapse, nn.Linear | _ConvNd):
            raise InputError(
                f"synapse={type(synapse).__name__}: a MembraneReadout takes one linear layer or "
                "convolution; put what comes before it in front of the readout"
            )
        self.synapse = synapse

    def forward(self, x: Tensor | Pair) -> Tensor:  # type: ignore[override]
        """Map the input of one time step [N, ...], or of all steps in mode "m", to o."""
        return super().forward(x, self.synapse)


def _all_steps(synapse: Synapse, x_seq: Tensor) -> Tensor:
    """Send [T, N, ...] through a synapse of either step mode."""
    if getattr(synapse, "step_mode", "s") == "m":
        return synapse(x_seq)
    return torch.unflatten(synapse(merge_steps(x_seq)), 0, x_seq.shape[:2])


def _one_step(synapse: Synapse, x: Pair) -> Tensor:
    """Send one step [N, ...] through a synapse of either step mode."""
    if getattr(synapse, "step_mode", "s") == "m":
        return synapse(x.through(partial(torch.unsqueeze, dim=0)))[0]
    return synapse(x)


def _spike(x: Any) -> Tensor:
    """Return the spike of a pair or of SpikingJelly's [spike, trace], and a tensor as it is."""
    spike: Tensor = x[0] if isinstance(x, list | tuple) else x
    return spike
