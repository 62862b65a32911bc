"""Spiking neurons that carry a presynaptic trace forward in time."""

import torch
from spikingjelly.activation_based import base, surrogate
from spikingjelly.activation_based import neuron as sj_neuron
from torch import Tensor

from sj_ottt import kernels
from sj_ottt import trace as traces
from sj_ottt.errors import InputError, suggest
from sj_ottt.functional import LIF, has_lean_gradient, lean_lif_step, lif_step
from sj_ottt.kernels import fused_lif_step
from sj_ottt.trace import Trace

__all__ = ["OTTTLIFNode"]

BACKENDS = ("torch", "cupy", "auto")


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
        traces.check(trace_dtype, tau)
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

    def extra_repr(self) -> str:
        """Describe the node in `print(model)`."""
        return f"{super().extra_repr()}, backend={self.backend}, trace_dtype={self.trace_dtype}"

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[Tensor, Tensor | None]:
        """Fit membrane and trace to the input's shape, device and dtype; drop an unused trace."""
        if self.training and step_mode == "m":
            raise InputError(
                'step_mode="m" cannot train online, because it sees all time steps at once: call '
                'the network once per time step with step_mode="s", or model.eval() to evaluate'
            )
        v, trace = super().materialize_states(inputs, states, step_mode)
        if not self.training:
            return v, None
        empty = traces.zeros(self.trace_dtype, v)
        if trace is None or trace.shape != v.shape:
            trace = empty
        return v, trace.to(empty)

    def single_step_forward(self, x: Tensor) -> Tensor | list[Tensor | Trace]:
        """Run one time step: in training x → [spike, trace], in evaluation x → spike."""
        state = self._memories
        fresh = self.materialize_states((x,), (state["v"], state["trace"]), "s")
        state["v"], state["trace"] = fresh
        del fresh  # or it would keep what the step is about to replace
        outputs = self._step(x, state)
        if self.store_v_seq:
            self._append_v_seq(self.v)
        return list(outputs) if self.training else outputs[0]

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...], **kwargs: object
    ) -> tuple[tuple[Tensor | Trace, ...], tuple[Tensor, Tensor | None]]:
        """Run one time step on explicit states: ((x,), (v, trace)) → (outputs, (v, trace))."""
        state = dict(zip(("v", "trace"), states, strict=True))
        return self._step(inputs[0], state), tuple(state.values())

    def _step(self, x: Tensor, state: dict[str, Tensor | None]) -> tuple[Tensor | Trace, ...]:
        """Advance a state by one time step; its entries are replaced."""
        lif = LIF(
            self.tau, self.decay_input, self.v_threshold, self.v_reset, self.surrogate_function
        )
        step = fused_lif_step if self._fuses(x) else lean_lif_step
        if not self.training:
            with torch.no_grad():
                return (step(x, state, lif),)
        if step is fused_lif_step or has_lean_gradient(self.surrogate_function):
            spike = step(x, state, lif)
        else:
            spike, state["v"] = lif_step(x, state["v"], lif)
            state["trace"] = traces.advance(state["trace"], spike.detach(), lif.lam)
        # In full precision the trace goes out as the tensor that SpikingJelly's layers expect.
        stored = state["trace"]
        return spike, stored if self.trace_dtype == "float32" else Trace(stored)

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


def __getattr__(name: str) -> object:
    """Give SpikingJelly's neurons for every other public name: switching one import is enough."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(sj_neuron, name)
