"""A leaky integrate-and-fire neuron that learns its membrane time constant online."""

import math
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

from sj_ottt._ops.lif import LIF, LIFState, lif_step
from sj_ottt._ops.lif_backends import BACKENDS
from sj_ottt._ops.pair import Pair
from sj_ottt._ops.parametric import ParametricLIF, advance_eligibility, with_eligibility
from sj_ottt._ops.rule import Rule
from sj_ottt.errors import InputError
from sj_ottt.neuron.lif import OTTTLIFNode

__all__ = ["OTTTParametricLIFNode"]


class OTTTParametricLIFNode(OTTTLIFNode):
    """`OTTTLIFNode` whose time constant is learnt, 1/tau = sigmoid(w), as in SpikingJelly's PLIF.

    The trace decays by the current λ = 1 − sigmoid(w). The one parameter `w` learns online too: the
    neuron carries forward how its own membrane depends on `w`, beside its trace,

        e[t] = ∂u[t]/∂w = λ r[t−1] e[t−1] + sigmoid'(w) ∂u[t]/∂(1/tau)
        ∇_w L[t] = Σ g_u[t] e[t]

    with u the membrane before the reset and r what a reset leaves of it: 1, and 0 behind a spike
    under a hard reset. For one layer, this is the gradient of BPTT with a detached reset. Through
    earlier layers the gradient goes in space only, as in OTTT for the weights. Under SLTT only the
    second term counts; under BPTT autograd follows everything.

    Args:
        init_tau: Initial time constant in time steps, above 1 and finite.
        decay_input: Whether the input is divided by tau as well.
        v_threshold: Firing threshold.
        v_reset: Membrane after a spike; None (soft reset) subtracts the threshold.
        surrogate_function: SpikingJelly surrogate; None makes a new `surrogate.Sigmoid()`.
        detach_reset: Kept for SpikingJelly's signature. The reset never carries a gradient.
        step_mode: As in `OTTTLIFNode`.
        store_v_seq: Keep every membrane in `v_seq` until the next reset; for debugging.

    Raises:
        InputError: If `init_tau` is not above 1 or not finite, or as `OTTTLIFNode`.
    """

    w: nn.Parameter

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = False,
        v_threshold: float = 1.0,
        v_reset: float | None = None,
        surrogate_function: surrogate.SurrogateFunctionBase | None = None,
        detach_reset: bool = True,
        step_mode: str = "s",
        store_v_seq: bool = False,
    ):
        if not math.isfinite(init_tau):
            raise InputError(
                f"init_tau={init_tau}: a time constant that is learnt must start from a finite "
                "one; OTTTLIFNode(tau=inf) integrates without a leak"
            )
        super().__init__(
            init_tau,
            decay_input,
            v_threshold,
            v_reset,
            surrogate_function,
            detach_reset,
            step_mode,
            store_v_seq,
        )

    @property
    def tau(self) -> float:
        """The current time constant in time steps, 1 / sigmoid(w); setting it sets `w`."""
        return 1.0 / float(self.w.detach().double().sigmoid())

    @tau.setter
    def tau(self, value: float) -> None:
        w = torch.tensor(-math.log(value - 1.0))
        if "w" in self._parameters:
            with torch.no_grad():
                self.w.copy_(w)
        else:
            self.w = nn.Parameter(w)

    def check_rule(self, rule: Rule) -> None:
        """Refuse what does not fit a time constant that changes.

        Raises:
            InputError: If a trace is to be stored in another form than "float32", or `backend` is
                one with kernels.
        """
        if self.trace_dtype != "float32":
            raise InputError(
                f'trace_dtype="{self.trace_dtype}" does not fit {type(self).__name__}, whose trace '
                'decays by a factor that is learnt: use trace_dtype="float32"'
            )
        if self.backend in BACKENDS:
            raise InputError(
                f'backend="{self.backend}" has no kernel for {type(self).__name__}, whose time '
                'constant is learnt: use backend="torch"'
            )

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Tensor, Any]:
        """Fit membrane, trace and eligibility to the input; drop what is not used."""
        v, kept = states
        trace, e = (None, None) if kept is None else kept
        v, trace = super().materialize_states(inputs, (v, trace), step_mode)
        if trace is None:  # it does not learn, or learns through time
            return v, None
        fitting = torch.zeros_like(v) if e is None or e.shape != v.shape else e.to(v)
        return v, _Kept(trace, fitting)

    def _step(self, x: Tensor, state: LIFState) -> Tensor | Pair:
        """Advance a state by one time step."""
        rule, kept = self.rule, state["trace"]
        learns = self.training or torch.is_grad_enabled()
        if rule.through_time and learns:
            return rule.step(x, state, self._lif(self.w), False)
        if kept is None or not learns:
            state["trace"] = None
            return lif_step(x, state, self._lif(self.w.detach()))
        lif, v_before = self._lif(self.w.detach()), state["v"]
        plain = LIFState(v=v_before, trace=kept.trace)
        with torch.no_grad():
            before = torch.zeros_like(kept.e) if rule.spike_suffices else kept.e
            e = advance_eligibility(before, x, v_before, self.w, lif)
        spike = rule.step(with_eligibility(x, e, self.w, lif), plain, lif, False)
        state["v"], trace = plain["v"], rule.trace(plain["trace"])
        if self.v_reset is not None:
            e = e * (1.0 - spike.detach())
        state["trace"] = _Kept(plain["trace"], e)
        return spike if trace is None else Pair(spike, trace, rule.spike_suffices)

    def _lif(self, w: Tensor) -> LIF:
        """Return the neuron's constants, tau as a tensor that may carry a gradient."""
        tau: Any = 1.0 / w.sigmoid()
        rest = (self.v_threshold, self.v_reset, self.surrogate_function)
        return ParametricLIF(tau, self.decay_input, *rest)


class _Kept(NamedTuple):
    """What the neuron keeps beside its membrane.

    Attributes:
        trace: What its rule keeps.
        e: What the reset has left of the eligibility ∂u/∂w, [N, ...].
    """

    trace: Any
    e: Tensor
