"""What reaches each synapse of a network in training, step by step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sj_ottt._ops.lif import LIF
from sj_ottt._ops.pair import Pair
from sj_ottt._ops.synapse import Product, traced_product
from sj_ottt._ops.trace import Trace
from sj_ottt.analysis._common import Loss, copy_for_rule
from sj_ottt.analysis.activity import refuse_silence, synaptic_operations
from sj_ottt.errors import InputError
from sj_ottt.layer.step_weights import step_weights
from sj_ottt.layer.synapse import Synapse
from sj_ottt.learning import CrossEntropyMSE
from sj_ottt.neuron import OTTTLIFNode

__all__ = ["SynapseRecord", "record_synapses"]


class SynapseRecord:
    """A step weight that writes down what reaches a synapse, step by step.

    Args:
        synapse: The synapse.

    Attributes:
        steps: (â[t], ĝ[t]) of each step: the trace, shaped like the synapse's input, and the
            gradient of the step's loss for its output.
        derivatives: Of each step, the surrogate derivative at u[t] of the neurons that the synapse
            feeds, [N, ...]; empty where it feeds none directly.
        errors: Of each step, the gradient that reaches their spikes, [N, ...].
        out: The output of the last step, [N, ...].
    """

    def __init__(self, synapse: Synapse):
        self._synapse = synapse
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.derivatives: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.out: Tensor | None = None

    def __call__(
        self, product: Product, x: Tensor, trace: Trace | None, factor: float = 1.0
    ) -> Tensor:
        """Apply the synapse to one time step."""
        if factor != 1 and trace is not None:
            x, trace = factor * x, trace.scaled(factor)
        self._product, self._weight = product, self._synapse.make_fast_weight()
        out = traced_product(product, x, trace, self._weight, self._synapse.bias)
        if trace is not None:
            values = trace.decode(x.dtype)
            out.register_hook(lambda grad: self.steps.append((values, grad)))
        self.out = out
        return out

    def finish(self) -> None:
        """Do nothing: autograd reaches the parameters by itself."""

    def gradient(self, inputs: Sequence[Tensor], grads: Sequence[Tensor] | None = None) -> Tensor:
        """Return Σ_t ĝ[t] input[t]ᵀ in the weight's shape."""
        grads = [grad for _, grad in self.steps] if grads is None else grads
        weight = self._weight.detach()
        total = torch.zeros_like(weight)
        for grad, x in zip(grads, inputs, strict=True):
            _, of_step, _ = self._product.gradients(grad, x, weight, False, True, False)
            assert of_step is not None
            total += of_step
        return total


def record_synapses(
    model: nn.Module, x_seq: Tensor, target: Tensor, loss_fn: Loss | None
) -> dict[str, SynapseRecord]:
    """Run OTTT on a copy of a model and return what reaches each layer that sees spikes.

    Args:
        model: Holds neurons of `sj_ottt.neuron`.
        x_seq: [T, N, ...].
        target: Class indices [N].
        loss_fn: Loss of one step; None takes `CrossEntropyMSE()`.

    Returns:
        Name of each layer whose gradient takes a trace → its record.

    Raises:
        InputError: If a layer of neurons is silent, a layer that sees spikes is not of
            `sj_ottt.layer`, or no gradient takes a trace.
    """
    refuse_silence(model, x_seq)
    modules = dict(model.named_modules())
    # A feedback takes part in the second step.
    fed = [name for name in synaptic_operations(model, x_seq[:2]) if name != "total"]
    foreign = [name for name in fed if not isinstance(modules.get(name), Synapse)]
    if foreign:
        raise InputError(
            f"{', '.join(foreign)}: sees spikes, but only layers of sj_ottt.layer write down what "
            "reaches them: use those, or sj_ottt.convert(model)"
        )
    model, loss_fn = copy_for_rule(model, "ottt"), CrossEntropyMSE() if loss_fn is None else loss_fn

    def note(node: OTTTLIFNode, args: tuple[Any, ...], out: Pair) -> None:
        """Write down u's derivative and the spike's gradient for the layer that feeds a node."""
        record = next((r for r in records.values() if r.out is args[0]), None)
        if record is not None:
            record.derivatives.append(pending.pop(node))
            out.spike.register_hook(record.errors.append)

    def before(node: OTTTLIFNode, args: tuple[Any, ...]) -> None:
        v = node.v if isinstance(node.v, Tensor) else torch.full_like(args[0], node.v)
        surrogate = node.surrogate_function
        lif = LIF(node.tau, node.decay_input, node.v_threshold, node.v_reset, surrogate)
        z = (lif.charge(args[0].detach(), v) - lif.v_threshold).requires_grad_()
        with torch.enable_grad():
            slope = torch.autograd.grad(surrogate(z).sum(), z)[0]
        pending[node] = slope / node.tau if node.decay_input else slope

    pending: dict[nn.Module, Tensor] = {}
    nodes = [m for m in model.modules() if isinstance(m, OTTTLIFNode)]
    hooks = [node.register_forward_pre_hook(before) for node in nodes]
    hooks += [node.register_forward_hook(note) for node in nodes]
    names = {module: name for name, module in model.named_modules()}
    try:
        with step_weights(model, SynapseRecord) as found:
            records = {names[synapse]: record for synapse, record in found.items()}
            for x in x_seq:
                y = model(x)
                loss_fn(y.spike if isinstance(y, Pair) else y, target).backward()
    finally:
        for hook in hooks:
            hook.remove()
    # A readout with a membrane keeps a trace of what is no spikes, too.
    traced = {name: record for name, record in records.items() if record.steps and name in fed}
    if not traced:
        raise InputError(
            f"{type(model).__name__} has no layer whose gradient takes the trace of a neuron"
        )
    return traced
