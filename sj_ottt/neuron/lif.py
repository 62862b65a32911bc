"""Leaky integrate-and-fire neurons that carry a presynaptic trace forward in time.

SpikingJelly has a module of this name, whose public names come through.
"""

from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from spikingjelly.activation_based import base, surrogate
from spikingjelly.activation_based import neuron as sj_neuron
from torch import Tensor, nn

from sj_ottt._ops import lif_backends, lif_fused
from sj_ottt._ops.calls import modules_being_called
from sj_ottt._ops.lif import LIF, LIFState, lif_step
from sj_ottt._ops.pair import Pair
from sj_ottt._ops.rule import LearningModule, Rule, Scan, is_traced
from sj_ottt._ops.scan import lif_scan, own
from sj_ottt._ops.trace import Trace
from sj_ottt._passthrough import pass_through, public_names
from sj_ottt.errors import InputError, suggest
from sj_ottt.learning.passes.neurons import check_neurons
from sj_ottt.learning.rules import RULES, find_rule

__all__ = ["NDOTLIFNode", "OTTTLIFNode", "SLTTLIFNode", "set_backend"]

__getattr__, __dir__ = pass_through(__name__, "spikingjelly.activation_based.neuron.lif")
__all__ += public_names("spikingjelly.activation_based.neuron.lif")


class _HandedOut:
    """The membrane of the last step with its graph, for whoever reads `v` before the next one.

    A copy holds none.
    """

    stored: Tensor | None = None
    with_graph: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _HandedOut, ()


_CHECKED: WeakKeyDictionary[nn.Module, set[Rule]] = WeakKeyDictionary()
"""Networks that trained in a loop of one's own, and the rules they were found fit for."""

BACKENDS = ("torch", "cuda", "cupy", "cpp", "auto")


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise InputError(
            f'backend="{backend}" is unknown: use one of {", ".join(BACKENDS)}'
            f"{suggest(backend, BACKENDS)}"
        )
    lif_backends.check_available(backend)


class OTTTLIFNode(LearningModule, sj_neuron.OTTTLIFNode):
    """Leaky integrate-and-fire neuron for online training through time (OTTT).

    In training, one call is one time step: it takes the input current [N, ...] and hands on the
    list [spike, trace] (`layer.Pair`), both shaped like the input, with â[t] = λ â[t−1] + s[t] and
    λ = 1 − 1/tau (equation (4)). In evaluation it gives the spikes alone and keeps no trace; the
    gradient of the step passes through them where gradients are kept. Called by a module that
    trains, it takes part as in training, whatever its own mode.

    It is a subclass of SpikingJelly's node (and so of its `LIFNode`), because SpikingJelly's own
    `layer.OTTTSequential` recognises a trace-carrying neuron by that class. Unlike SpikingJelly's,
    its state follows a changed batch size and never holds a graph, step mode "m" trains too, and
    two nodes never share one surrogate module.

    Args:
        tau: Membrane time constant in time steps, above 1.
        decay_input: Whether the input is divided by tau as well.
        v_threshold: Firing threshold.
        v_reset: Membrane after a spike; None (soft reset) subtracts the threshold.
        surrogate_function: SpikingJelly surrogate; None makes a new `surrogate.Sigmoid()`
            (α = 4), the paper's choice.
        detach_reset: Kept for SpikingJelly's signature. In OTTT the reset never carries a
            gradient.
        step_mode: "s" is one step [N, ...] a call; "m" is all steps [T, N, ...] in one call, each
            with the gradient that it has in "s".
        store_v_seq: Keep every membrane in `v_seq` until the next reset; for debugging.
        backend: "torch", plain PyTorch operations on any device; "cuda", fused kernels on a GPU
            (for SpikingJelly's surrogates Sigmoid, ATan, PiecewiseQuadratic and Rect); "cupy",
            the same, by CuPy alone; "cpp", the same kernels on a CPU (needs Linux and a
            C++ compiler); "auto", the kernels wherever they can run and PyTorch's operations
            elsewhere, also where the kernels do not compile, which a warning says once.
        trace_dtype: How the trace is stored between steps: "float32" (a node's own default; for
            any tau), "packed" (the spikes of the last eight steps as one byte; tau=2 only),
            "float16" or "bfloat16"; `sj_ottt._ops.trace` states the error of each.

    Raises:
        InputError: If `tau` is not above 1, `v_threshold` or `v_reset` is not finite, `backend` is
            unknown or cannot run here, or `trace_dtype` is unknown or does not fit `tau`; in the
            forward pass, if the backend does not fit the input, or as `LearningModule.forward`.
    """

    rule = RULES["ottt"]

    spike_alone = False
    """Whether spikes are handed on without their trace where the rule needs none, so that any layer
    may follow (`Rule.spike_suffices`)."""

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
        backend: str = "auto",
        trace_dtype: str = "float32",
    ):
        _check_backend(backend)
        # SpikingJelly's default is one module that all nodes of the process share.
        function = surrogate.Sigmoid() if surrogate_function is None else surrogate_function
        v_reset = None if v_reset is None else float(v_reset)
        lif = LIF(float(tau), decay_input, float(v_threshold), v_reset, function)
        super().__init__(
            lif.tau,
            decay_input,
            lif.v_threshold,
            v_reset,
            function,
            detach_reset,
            "s",  # its assertion would refuse "m", which is sound in evaluation
            store_v_seq,
        )
        self._handed_out = _HandedOut()
        self.step_mode = step_mode
        self.backend = backend
        self.trace_dtype = trace_dtype
        self.check_rule(self.rule)

    def _check_call(self, x: Any) -> None:
        super()._check_call(x)
        first_step = not isinstance(self._memories["v"], Tensor)
        if self.training and first_step and not self.rule.through_time:
            *_, network = modules_being_called()
            checked = _CHECKED.setdefault(network, set())
            if self.rule not in checked:
                check_neurons(network, self.rule, one_step=self.step_mode == "s")
                checked.add(self.rule)

    def check_rule(self, rule: Rule) -> None:
        """Refuse a rule that the node cannot take part in.

        Raises:
            InputError: If its trace cannot be stored as `trace_dtype` says.
        """
        rule.check_trace_dtype(self.trace_dtype, 1.0 - 1.0 / self.tau)

    @property
    def v(self) -> Any:
        """The membrane after the last step, [N, ...], which carries that step's own gradient.

        What the next step starts from, a copy of the node and its state carry none.

        Raises:
            InputError: While several time steps run in one batch.
        """
        if "v" not in self._memories:
            raise AttributeError("v")  # while it is being registered
        if self.in_chunk:
            raise InputError(
                f"v of {type(self).__name__} was asked for while several time steps run together, "
                "of which only the last membrane is kept: leave chunk out"
            )
        return self._membrane()

    def _membrane(self) -> Any:
        v, last = self._memories["v"], self._handed_out
        return last.with_graph if v is last.stored and last.with_graph is not None else v

    def detach(self) -> None:
        """Cut the state, and `v`, from the graph of the last step."""
        super().detach()
        self.drop_graph()

    def reset(self) -> None:
        """Put the state back to that before the first step."""
        super().reset()
        self.drop_graph()

    def drop_graph(self) -> None:
        """Let go of the graph that `v` carries."""
        self._handed_out = _HandedOut()

    def extra_repr(self) -> str:
        """Describe the node in `print(model)`."""
        return (
            f"{super().extra_repr()}, rule={self.rule}, backend={self.backend}, "
            f"trace_dtype={self.trace_dtype}"
        )

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[Tensor, Any]:
        """Fit membrane and trace to the input's shape, device and dtype; drop an unused trace."""
        v, kept = sj_neuron.LIFNode.materialize_states(self, inputs, states, step_mode)
        return v, self.rule.fit(kept, v, self.trace_dtype) if self.learns() else None

    def single_step_forward(self, x: Tensor | Pair) -> Tensor | Pair:
        """Run one time step: x → [spike, trace] where it learns, x → spike in evaluation."""
        x = x[0] if isinstance(x, list) else x  # spikes straight from another neuron
        out = self._step(x, self._start(x, "s"))
        self._finish()
        if self.store_v_seq:
            self._append_v_seq(self._membrane())
        return out

    def multi_step_forward(self, x_seq: Tensor | Pair) -> Tensor | Pair:
        """Run all time steps of [T, N, ...]; each has its own gradient, but under BPTT."""
        x_seq = x_seq[0] if isinstance(x_seq, list) else x_seq
        rule, scan = self.rule, self._scan()
        if scan is None:
            return _joined([self.single_step_forward(x) for x in x_seq])
        state = self._start(x_seq, "m")
        spike, trace = scan(x_seq, state, self._constants(), self._fuses(x_seq))
        if self.in_chunk:  # nobody sees `v`, and the backward pass is where the state is copied
            state["v"] = state["v"].detach()
        else:
            own(state)
            self._finish()
        if trace is None or (self.spike_alone and rule.spike_suffices):
            return spike
        return Pair(spike, Trace(trace), rule.spike_suffices)

    def _scan(self) -> Scan | None:
        """Return what takes all time steps at once; None where they go one by one."""
        own = (OTTTLIFNode._step, OTTTLIFNode.single_step_forward)
        if self.store_v_seq or (type(self)._step, type(self).single_step_forward) != own:
            return None
        if self.training or (torch.is_grad_enabled() and self.learns()):
            return self.rule.scan
        return None if self.rule.through_time and torch.is_grad_enabled() else _scan_alone

    def _start(self, x: Tensor, step_mode: str) -> LIFState:
        """Return the state for one or more time steps.

        It is the node's own memories, so that what a step replaces is free at once. (Not through
        typing.cast: torch.compile would then write to a copy.)
        """
        state: LIFState = self._memories
        state["v"], state["trace"] = self.materialize_states(
            (x,), (state["v"], state["trace"]), step_mode
        )
        last = self._handed_out
        last.stored = last.with_graph = None  # or the old membrane would live beside the new one
        return state

    def _finish(self) -> None:
        """Keep the membrane for the next step without its graph, and hand it out with it."""
        state, last = self._memories, self._handed_out
        if not self.rule.through_time:
            last.stored, last.with_graph = state["v"].detach(), state["v"]
            state["v"] = last.stored

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: object
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """Run one time step on explicit states: ((x,), (v, trace)) → (outputs, (v, trace))."""
        state = LIFState(v=states[0], trace=states[1])
        out = self._step(inputs[0], state)
        outputs = tuple(out) if isinstance(out, Pair) else (out,)
        v = state["v"] if self.rule.through_time else state["v"].detach()
        return outputs, (v, state["trace"])

    def _step(self, x: Tensor, state: LIFState) -> Tensor | Pair:
        """Advance a state by one time step."""
        lif = self._constants()
        rule, grad = self.rule, torch.is_grad_enabled()
        # Where it does not learn, nothing is kept (`materialize_states`). BPTT keeps nothing ever.
        if not self.training and (state["trace"] is None or not grad):
            if rule.through_time and grad:
                return rule.step(x, state, lif, False)
            state["trace"] = None
            step = lif_fused.fused_lif_step if self._fuses(x) else lif_step
            return step(x, state, lif)
        spike = rule.step(x, state, lif, rule.has_fused_step and self._fuses(x))
        trace = rule.trace(state["trace"])
        if trace is None or (self.spike_alone and rule.spike_suffices):
            return spike
        return Pair(spike, trace, rule.spike_suffices)

    def _constants(self) -> LIF:
        """Return the neuron's constants."""
        v_reset, function = self.v_reset, self.surrogate_function
        return LIF(self.tau, self.decay_input, self.v_threshold, v_reset, function)

    def _fuses(self, x: Tensor) -> bool:
        """Whether the backend takes the fused kernels for an input."""
        if is_traced():
            return False  # what is exported runs without this package
        if self.backend == "auto":
            return lif_backends.usable(x, self.surrogate_function, self.trace_dtype)
        if self.backend != "torch":
            lif_backends.check_usable(x, self.surrogate_function, self.backend)
        return self.backend != "torch"

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: object
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """Run [T, N, ...] step by step; in training, under a rule that works through time only."""
        # LIFNode's own version returns the membrane alone and would lose the trace's slot.
        outputs: tuple[Tensor, ...]
        outputs, states = base.MemoryModule.multi_step_functional_forward(
            self, inputs, states, **kwargs
        )
        return outputs, states


def _scan_alone(
    x_seq: Tensor, state: LIFState, lif: LIF, fused: bool
) -> tuple[Tensor, Tensor | None]:
    """Take neurons that do not learn through several steps."""
    state["trace"] = None
    return (lif_fused.fused_lif_scan if fused else lif_scan)(x_seq, state, lif)


def _joined(outputs: list[Tensor | Pair]) -> Tensor | Pair:
    """Return the outputs of several steps as one, along a new first dimension."""
    first = outputs[0]
    if not isinstance(first, Pair):
        return torch.stack(cast(list[Tensor], outputs))
    pairs = cast(list[Pair], outputs)
    traces = [pair.trace for pair in pairs]
    plain = not any(trace.maps for trace in traces)
    stored = [t.stored if plain else t.decode(first.dtype) for t in traces]
    spikes = torch.stack([pair.spike for pair in pairs])
    return Pair(spikes, Trace(torch.stack(stored)), first.spike_suffices)


class SLTTLIFNode(OTTTLIFNode, sj_neuron.SLTTLIFNode):
    """Leaky integrate-and-fire neuron for spatial learning through time (SLTT).

    The weight gradient of a step takes the presynaptic spike itself, no trace: ∇W = g_u[t] s[t]ᵀ.
    As SpikingJelly's node of this name it hands on the spike alone, so that any PyTorch layer may
    follow. Within a model of this package, `sj_ottt.set_rule(model, "sltt")` does the same, and
    the next layer's gradient takes the spikes from one byte per neuron instead of one number.

    Args:
        tau: Membrane time constant in time steps, above 1.
        decay_input: Whether the input is divided by tau as well.
        v_threshold: Firing threshold.
        v_reset: Membrane after a spike; None (soft reset) subtracts the threshold.
        surrogate_function: SpikingJelly surrogate; None makes a new `surrogate.Sigmoid()`.
        detach_reset: Kept for SpikingJelly's signature.
        step_mode: As in `OTTTLIFNode`.
        store_v_seq: Keep every membrane in `v_seq` until the next reset; for debugging.
        backend: As in `OTTTLIFNode`.
        trace_dtype: As in `OTTTLIFNode`. "packed" fits SLTT at any tau; a node that is to be
            switched to OTTT needs tau=2 for it.

    Raises:
        InputError: As `OTTTLIFNode`.
    """

    rule = RULES["sltt"]
    spike_alone = True

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
        backend: str = "auto",
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


class NDOTLIFNode(OTTTLIFNode):
    """Leaky integrate-and-fire neuron for neuronal dynamics-based online training (NDOT).

    Its trace decays by the ratio of the neuron's own membranes instead of by λ:
    â[t] = e[t−1] â[t−1] + s[t] with e[t] = v[t] / v[t−1], limited to [−λ, λ];
    `sj_ottt._ops.ndot.advance_ndot` has both variants in full. It keeps two numbers per neuron
    beside the membrane.

    Args:
        *args: As `OTTTLIFNode`; the trace is always stored in full precision.
        variant: "paper", or "code" for what the authors' program computes.
        **kwargs: As `OTTTLIFNode`.

    Raises:
        InputError: If the variant is unknown, or as `OTTTLIFNode`.
    """

    rule = RULES["ndot"]

    def __init__(self, *args: Any, variant: str = "paper", **kwargs: Any):
        rule = find_rule("ndot", variant)
        super().__init__(*args, **kwargs)
        self.rule, self.variant = rule, variant


def set_backend(model: nn.Module, backend: str) -> nn.Module:
    """Switch the neurons of a model to a backend, in place.

    Args:
        model: Holds neurons of this package; others have no choice and stay as they are.
        backend: As in `OTTTLIFNode`.

    Returns:
        The model.

    Raises:
        InputError: If the backend is unknown or cannot run here, or it has kernels and the model no
            neuron for them, or one without; nothing is changed then.
    """
    _check_backend(backend)
    nodes = [module for module in model.modules() if isinstance(module, OTTTLIFNode)]
    if backend in lif_backends.BACKENDS and not nodes:
        raise InputError(
            f'backend="{backend}": {type(model).__name__} has no neuron with a kernel: use '
            'backend="torch", or neurons of sj_ottt.neuron such as OTTTLIFNode'
        )
    before = [node.backend for node in nodes]
    try:
        for node in nodes:
            node.backend = backend
            node.check_rule(node.rule)
    except InputError:
        for node, old in zip(nodes, before, strict=True):
            node.backend = old
        raise
    return model
