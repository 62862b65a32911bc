"""What a learning rule is. The rules themselves are in `sj_ottt.learning.rules`, a module each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor

from sj_ottt._ops import trace
from sj_ottt._ops.calls import in_checkpoint, modules_being_called
from sj_ottt._ops.hooks import PairHooks
from sj_ottt._ops.lif import LIF, LIFState
from sj_ottt._ops.trace import Trace
from sj_ottt.errors import InputError

__all__ = ["LearningModule", "Rule", "Scan", "is_traced"]


Scan = Callable[[Tensor, LIFState, LIF, bool], tuple[Tensor, Tensor | None]]
"""Takes neurons through several time steps; see `Rule.scan`."""


def _check_any_form(trace_dtype: str, lam: float) -> None:
    """Refuse an unknown form; all of them fit a trace that leaves nothing for the next step."""
    trace.check(trace_dtype, 0.0)


@dataclass(frozen=True)
class Rule:
    """How neurons take part in learning: what they keep between steps, and the trace they hand on.

    Its functions are functions of a module, and no lambdas, so that a model can be pickled.

    Attributes:
        name: What users call it.
        start: (membrane [N, ...], name of a trace's form) → what is kept beside the membrane
            before the first step: a tensor or a named tuple of tensors, all shaped like the
            membrane, or None.
        step: (current I[t], state, constants, whether to take a fused kernel) → spike s[t]; the
            state becomes that of t.
        trace: (what is kept after a step) → the trace that the next synapse's weight gradient
            takes; None where the spike is handed on alone, for ordinary autograd.
        check_trace_dtype: (name of a trace's form, λ) raises `InputError` where the rule cannot
            keep its trace in that form; by default, it can in any.
        variant: Which of the rule's variants this is; None for a rule without variants.
        through_time: Whether the gradient goes back through time, so that one backward pass follows
            the last step, and all steps are kept until then.
        spike_suffices: Whether the spike alone is enough for the next synapse's gradient, so that
            a neuron may leave the trace out.
        has_fused_step: Whether `step` knows a fused kernel.
        scan: (currents I[t], [K, N, ...], state, constants, whether to take a fused kernel) →
            spikes s[t] and the trace of each step, both [K, N, ...], the trace None where the
            spikes are handed on alone; the state becomes that of the last step. None does `step` K
            times.
    """

    name: str
    start: Callable[[Tensor, str], Any]
    step: Callable[[Tensor, LIFState, LIF, bool], Tensor]
    trace: Callable[[Any], Trace | None]
    check_trace_dtype: Callable[[str, float], None] = _check_any_form
    variant: str | None = None
    through_time: bool = False
    spike_suffices: bool = False
    has_fused_step: bool = False
    scan: Scan | None = None

    def __str__(self) -> str:
        return self.name if self.variant is None else f"{self.name} ({self.variant})"

    def fit(self, kept: Any, v: Tensor, trace_dtype: str) -> Any:
        """Return what a neuron keeps beside its membrane, fitted to the membrane.

        Args:
            kept: What the step before has left; None before the first step.
            v: The membrane [N, ...]. Where its shape has changed, the rule starts anew; where its
                device or dtype has, what is kept follows.
            trace_dtype: Name of a trace's form.

        Returns:
            What `start` returns, or `kept`, moved.
        """
        parts = (kept,) if isinstance(kept, Tensor) else kept
        if parts is None or any(part.shape != v.shape for part in parts):
            return self.start(v, trace_dtype)
        like = self.start(v.new_empty(0), trace_dtype)  # empty: only its devices and dtypes count
        if isinstance(kept, Tensor):
            return kept.to(like)
        return type(kept)(*(part.to(other) for part, other in zip(kept, like, strict=True)))


def is_traced() -> bool:
    """Whether the call is recorded by torch.jit.trace, torch.export or torch.onnx.export."""
    # Not is_exporting(), which up to PyTorch 2.11 is true for all that torch.compile sees.
    return bool(torch.jit.is_tracing() or torch.compiler._is_exporting_flag)


class LearningModule(PairHooks, base.MemoryModule):
    """A stateful module that takes part in learning, and so holds a rule.

    Attributes:
        rule: The rule; `sj_ottt.set_rule` changes it for a whole model.
        variant: The variant that the module takes of a rule that has several; None for the rule's
            own choice.
        in_chunk: Whether the network that the module belongs to takes several time steps in one
            batch (`train_step`'s `chunk`).
    """

    rule: Rule
    variant: str | None = None
    in_chunk: bool = False

    def learns(self) -> bool:
        """Whether a call of the module takes part in training.

        It does in training mode. In evaluation mode it does where gradients are kept and a module
        around it trains, as where a part of a network has frozen statistics.

        Raises:
            InputError: In evaluation mode, if gradients are kept in a compiled network, which
                cannot be asked what is around it.
        """
        if self.training or not torch.is_grad_enabled() or is_traced():
            return bool(self.training)
        if torch.compiler.is_dynamo_compiling():
            raise InputError(
                f"{type(self).__name__} is in evaluation mode in a compiled network that keeps "
                "gradients: evaluate within torch.no_grad(), as sj_ottt.predict does, or call "
                "train() on all of the network"
            )
        return any(module.training for module in modules_being_called())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one time step, or all of them in step mode "m".

        Raises:
            InputError: If the call would lose a gradient, advance the state twice, or write it into
                a traced or exported graph for good.
        """
        if is_traced():
            self._check_explicit_state()
        elif not torch.compiler.is_compiling():
            self._check_call(args[0])
        return super().forward(*args, **kwargs)

    def _check_call(self, x: Any) -> None:
        """Refuse a call that a gradient does not survive."""
        repeated = torch._C._current_graph_task_id() != -1  # within a backward pass
        cut = not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        trains = self.training
        if (repeated and trains) or ((repeated or (cut and trains)) and in_checkpoint()):
            raise InputError(
                f"{self._where()} was run by torch.utils.checkpoint, or again in a backward pass, "
                "and would advance its state twice: leave the checkpoint out; online training "
                "keeps one time step only"
            )
        x = x[0] if isinstance(x, list | tuple) else x
        if not (cut and isinstance(x, Tensor) and x.requires_grad):
            return
        if trains or any(module.training for module in modules_being_called()):
            raise InputError(
                f"{self._where()} runs without gradients, so that what comes before it would not "
                "learn: take torch.no_grad() away, or give it a detach()ed input"
            )

    def _check_explicit_state(self) -> None:
        """Refuse to be traced where the state is no input and output of what is traced."""
        dynamo = torch.compiler.is_dynamo_compiling()  # cannot see who calls
        if dynamo or not any(hasattr(m, "initial_states") for m in modules_being_called()):
            raise InputError(
                f"{type(self).__name__} keeps a state, which tracing and export would freeze into "
                "the graph: export sj_ottt.inference.OneStep(model, example), which takes and "
                "returns it, with strict=False"
            )

    def _where(self) -> str:
        """Name the module and those that call it, for errors."""
        names = [type(module).__name__ for module in modules_being_called() if module is not self]
        return f"{type(self).__name__}{' in ' if names else ''}{' in '.join(names)}"

    def drop_graph(self) -> None:
        """Let go of a graph of the last step that is held beside the state; by default, none is."""

    def check_rule(self, rule: Rule) -> None:
        """Refuse a rule that the module cannot take part in.

        Raises:
            InputError: If it cannot.
        """
        raise NotImplementedError
