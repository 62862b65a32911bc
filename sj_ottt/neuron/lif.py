"""Spiking neurons that carry a presynaptic trace forward in time."""

import torch
from spikingjelly.activation_based import base, surrogate
from spikingjelly.activation_based import neuron as sj_neuron
from torch import Tensor

from sj_ottt._ops import lif_cuda as kernels
from sj_ottt._ops import trace as traces
from sj_ottt._ops.lif import LIF, bptt_lif_step, has_lean_gradient, lean_lif_step, lif_step
from sj_ottt._ops.lif_cuda import fused_lif_step
from sj_ottt._ops.trace import NDOTTrace, Pair, Trace
from sj_ottt.errors import InputError, suggest

__all__ = ["NDOTLIFNode", "OTTTLIFNode", "SLTTLIFNode"]

BACKENDS = ("torch", "cupy", "auto")
RULES = ("ottt", "sltt", "ndot", "bptt")
"""How a node takes part in learning; see `sj_ottt.rules`."""


class OTTTLIFNode(sj_neuron.OTTTLIFNode):
    """Leaky integrate-and-fire neuron for online training through time (OTTT).

    In training, one call is one time step: it takes the input current [N, ...] and hands on the
    list [spike, trace], both shaped like the input, with â[t] = λ â[t−1] + s[t] and
    λ = 1 − 1/tau (equation (4)). In evaluation it gives the spikes alone and keeps no trace.

    It is a subclass of SpikingJelly's node (and so of its `LIFNode`), because SpikingJelly's own
    `layer.OTTTSequential` recognises a trace-carrying neuron by that class. It differs from it
    where users were caught: state follows a changed batch size, the state never holds a graph,
    step mode "m" evaluates, and two nodes never share one surrogate module.

    Args:
        tau: Membrane time constant in time steps, above 1.
        decay_input: Whether the input is divided by tau as well.
        v_threshold: Firing threshold.
        v_reset: Membrane after a spike; None (soft reset) subtracts the threshold.
        surrogate_function: SpikingJelly surrogate; None makes a new `surrogate.Sigmoid()`
            (α = 4), the paper's choice.
        detach_reset: Kept for SpikingJelly's signature. In OTTT the reset never carries a
            gradient.
        step_mode: "s" (one step a call) trains and evaluates; "m" ([T, N, ...] in one call)
            evaluates only.
        store_v_seq: Keep every membrane in `v_seq` until the next reset; for debugging.
        backend: "torch", plain PyTorch operations on any device; "cupy", fused CUDA kernels (needs
            CuPy, a GPU, and one of SpikingJelly's surrogates Sigmoid, ATan, PiecewiseQuadratic and
            Rect); "auto", the kernels wherever they can run and PyTorch's operations elsewhere.
        trace_dtype: How the trace is stored between steps: "float32" (a node's own default; for
            any tau), "packed" (the spikes of the last eight steps as one byte; tau=2 only),
            "float16" or "bfloat16"; `sj_ottt.trace` states the error of each. Other than
            "float32", the second item handed on is a `trace.Trace`, which this package's layers
            take and whose `decode(dtype)` gives the values.

    Raises:
        InputError: If `tau` is not above 1, `backend` is unknown or cannot run here, or
            `trace_dtype` is unknown or does not fit `tau`; in the forward pass, if step mode "m"
            meets training mode or the backend does not fit the input.
    """

    rule: str = "ottt"
    """Which learning rule the node serves; `rules.set_rule` changes it for a whole model."""
    variant: str = "paper"
    """Of `trace.NDOT_VARIANTS`, for rule "ndot"."""

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = False,
        v_threshold: float = 1.0,
        v_reset: float | None = None,
        surrogate_function: surrogate.SurrogateFunctionBase | None = None,
        detach_reset: bool = True,
        step_mode: str = "s",
        store_v_seq: bool = False,
        backend: str = "torch",
        trace_dtype: str = "float32",
    ):
        if not tau > 1.0:
            raise InputError(f"tau={tau}: the membrane time constant must be above 1 time step")
        if backend not in BACKENDS:
            raise InputError(
                f'backend="{backend}" is unknown: use one of {", ".join(BACKENDS)}'
                f"{suggest(backend, BACKENDS)}"
            )
        if backend == "cupy":
            kernels.check_available()
        super().__init__(
            float(tau),
            decay_input,
            float(v_threshold),
            None if v_reset is None else float(v_reset),
            # SpikingJelly's default is one module that all nodes of the process share.
            surrogate.Sigmoid() if surrogate_function is None else surrogate_function,
            detach_reset,
            "s",  # its assertion would refuse "m", which is sound in evaluation
            store_v_seq,
        )
        self.step_mode = step_mode
        self.backend = backend
        self.trace_dtype = trace_dtype
        self.check_rule(self.rule)

    def check_rule(self, rule: str) -> None:
        """Refuse a rule that the node cannot take part in.

        Raises:
            InputError: If its trace cannot be stored as `trace_dtype` says.
        """
        # NDOT and BPTT store no such trace, and SLTT's does not decay into the next step.
        traces.check(self.trace_dtype, 1.0 - 1.0 / self.tau if rule == "ottt" else 0.0)

    def extra_repr(self) -> str:
        """Describe the node in `print(model)`."""
        return (
            f"{super().extra_repr()}, rule={self.rule}, backend={self.backend}, "
            f"trace_dtype={self.trace_dtype}"
        )

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[Tensor, Tensor | NDOTTrace | None]:
        """Fit membrane and trace to the input's shape, device and dtype; drop an unused trace."""
        if self.training and step_mode == "m" and self.rule != "bptt":
            raise InputError(
                'step_mode="m" cannot train online, because it sees all time steps at once: call '
                'the network once per time step with step_mode="s", or model.eval() to evaluate'
            )
        v, trace = super().materialize_states(inputs, states, step_mode)
        if not self.training or self.rule == "bptt":
            return v, None
        if self.rule == "ndot":
            if not isinstance(trace, NDOTTrace) or trace.values.shape != v.shape:
                trace = NDOTTrace(torch.zeros_like(v), torch.zeros_like(v))
            return v, NDOTTrace(*(part.to(v) for part in trace))
        empty = traces.zeros(self.trace_dtype, v)
        if not isinstance(trace, Tensor) or trace.shape != v.shape:
            trace = empty
        return v, trace.to(empty)

    def single_step_forward(self, x: Tensor | Pair) -> Tensor | Pair:
        """Run one time step: in training x → [spike, trace], in evaluation x → spike."""
        x = x[0] if isinstance(x, list) else x  # spikes straight from another neuron
        state = self._memories
        fresh = self.materialize_states((x,), (state["v"], state["trace"]), "s")
        state["v"], state["trace"] = fresh
        del fresh  # or it would keep what the step is about to replace
        outputs = self._step(x, state)
        if self.store_v_seq:
            self._append_v_seq(self.v)
        return outputs[0] if len(outputs) == 1 else Pair(outputs)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...], **kwargs: object
    ) -> tuple[tuple[Tensor | Trace, ...], tuple[Tensor, Tensor | NDOTTrace | None]]:
        """Run one time step on explicit states: ((x,), (v, trace)) → (outputs, (v, trace))."""
        state = dict(zip(("v", "trace"), states, strict=True))
        return self._step(inputs[0], state), tuple(state.values())

    def _step(
        self, x: Tensor, state: dict[str, Tensor | NDOTTrace | None]
    ) -> tuple[Tensor | Trace, ...]:
        """Advance a state by one time step; its entries are replaced."""
        lif = LIF(
            self.tau,
            self.decay_input,
            self.v_threshold,
            self.v_reset,
            self.surrogate_function,
            0.0 if self.rule == "sltt" else None,
            self.variant if self.rule == "ndot" else None,
        )
        if not self.training:
            with torch.no_grad():
                return (self._spike(x, state, lif),)
        if self.rule == "bptt":
            spike, state["v"] = bptt_lif_step(x, state["v"], lif)
            return (spike,)
        spike = self._spike(x, state, lif)
        stored = state["trace"].values if self.rule == "ndot" else state["trace"]
        # In full precision the trace goes out as the tensor that SpikingJelly's layers expect.
        return spike, stored if self.trace_dtype == "float32" else Trace(stored)

    def _spike(self, x: Tensor, state: dict[str, Tensor | NDOTTrace | None], lif: LIF) -> Tensor:
        """Charge, fire, reset and, where there is one, trace."""
        if self._fuses(x):
            return fused_lif_step(x, state, lif)
        if isinstance(state["trace"], NDOTTrace):
            parts = {"v": state["v"], "trace": None}
            spike = self._spike(x, parts, lif)
            v_before, state["v"] = state["v"], parts["v"]
            traces.advance_ndot(
                state,
                spike.detach(),
                v_before,
                lam=lif.lam,
                v_threshold=lif.v_threshold,
                variant=lif.ndot,
            )
            return spike
        if not self.training or has_lean_gradient(self.surrogate_function):
            return lean_lif_step(x, state, lif)
        spike, state["v"] = lif_step(x, state["v"], lif)
        if state["trace"] is not None:
            state["trace"] = traces.advance(state["trace"], spike.detach(), lif.decay)
        return spike

    def _fuses(self, x: Tensor) -> bool:
        """Whether the backend takes the fused kernels for an input."""
        if self.backend == "cupy":
            kernels.check_usable(x, self.surrogate_function)
            return True
        return self.backend == "auto" and kernels.usable(x, self.surrogate_function)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...], **kwargs: object
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, None]]:
        """Run [T, N, ...] step by step; evaluation only."""
        # LIFNode's own version returns the membrane alone and would lose the trace's slot.
        return base.MemoryModule.multi_step_functional_forward(self, inputs, states, **kwargs)


class SLTTLIFNode(OTTTLIFNode):
    """Leaky integrate-and-fire neuron for spatial learning through time (SLTT).

    The weight gradient of a step takes the presynaptic spike itself, no trace: ∇W = g_u[t] s[t]ᵀ.
    As SpikingJelly's node of this name it hands on the spike alone, so that any PyTorch layer may
    follow. Within a model of this package, `rules.set_rule(model, "sltt")` does the same and keeps
    one byte per neuron for the next layer's gradient instead of the spike as a number.

    Args:
        tau: Membrane time constant in time steps, above 1.
        decay_input: Whether the input is divided by tau as well.
        v_threshold: Firing threshold.
        v_reset: Membrane after a spike; None (soft reset) subtracts the threshold.
        surrogate_function: SpikingJelly surrogate; None makes a new `surrogate.Sigmoid()`.
        detach_reset: Kept for SpikingJelly's signature.
        step_mode: "s" trains and evaluates; "m" evaluates only.
        store_v_seq: Keep every membrane in `v_seq` until the next reset; for debugging.
        backend: As in `OTTTLIFNode`.
        trace_dtype: As in `OTTTLIFNode`. "packed" fits SLTT at any tau; a node that is to be
            switched to OTTT needs tau=2 for it.

    Raises:
        InputError: As `OTTTLIFNode`.
    """

    rule = "sltt"

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: surrogate.SurrogateFunctionBase | None = None,
        detach_reset: bool = True,
        step_mode: str = "s",
        store_v_seq: bool = False,
        backend: str = "torch",
        trace_dtype: str = "packed",
    ):
        super().__init__(
            tau,
            decay_input,
            v_threshold,
            v_reset,
            surrogate_function,
            detach_reset,
            step_mode,
            store_v_seq,
            backend,
            trace_dtype,
        )

    def _step(self, x: Tensor, state: dict[str, Tensor | None]) -> tuple[Tensor | Trace, ...]:
        outputs = super()._step(x, state)
        return outputs[:1] if self.rule == "sltt" else outputs


class NDOTLIFNode(OTTTLIFNode):
    """Leaky integrate-and-fire neuron for neuronal dynamics-based online training (NDOT).

    Its trace decays by the ratio of the neuron's own membranes instead of by λ; see
    `trace.advance_ndot`, where both variants are written out. It keeps two numbers per neuron
    beside the membrane.

    Args:
        *args: As `OTTTLIFNode`; the trace is always stored in full precision.
        variant: "paper", or "code" for what the authors' program computes.
        **kwargs: As `OTTTLIFNode`.

    Raises:
        InputError: If the variant is unknown, or as `OTTTLIFNode`.
    """

    rule = "ndot"

    def __init__(self, *args: object, variant: str = "paper", **kwargs: object):
        check_variant(variant)
        super().__init__(*args, **kwargs)
        self.variant = variant


def check_variant(variant: str) -> None:
    """Refuse an unknown variant of NDOT.

    Raises:
        InputError: If it is not one of `trace.NDOT_VARIANTS`.
    """
    if variant not in traces.NDOT_VARIANTS:
        raise InputError(f'variant="{variant}" is unknown: use "paper" or "code"')
