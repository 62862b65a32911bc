"""Instruments: what a network does, and what its gradients are worth.

Plain functions that return numbers or tables (lists of rows). A model is left as it was: they work
on a copy, or put back what they touch. Batches are sequences [T, N, ...].
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_ottt._ops.lif import LIF, Product, traced_product
from sj_ottt._ops.trace import Trace
from sj_ottt.errors import InputError, suggest
from sj_ottt.layer.step_weights import in_synapses, made_weight
from sj_ottt.learning import CrossEntropyMSE, predict, reset_state, train_step
from sj_ottt.learning.rules.switch import check_rule, set_rule
from sj_ottt.learning.train_step import predicts_last
from sj_ottt.neuron import OTTTLIFNode
from sj_ottt.neuron.liquid import LiquidNode

__all__ = [
    "firing_rates",
    "gradient_alignment",
    "latency_curve",
    "synaptic_operations",
    "theorem1",
    "three_factor",
]

Loss = Callable[[Tensor, Tensor], Tensor]


# Activity


def firing_rates(model: nn.Module, x_seq: Tensor) -> dict[str, float]:
    """Measure spikes per neuron and time step, in evaluation.

    Args:
        model: Holds neurons of `sj_ottt.neuron`.
        x_seq: [T, N, ...].

    Returns:
        Name of each neuron layer → its rate; "mean" → the rate of all neurons together.

    Raises:
        InputError: If the model has no such neuron.
    """
    nodes = _nodes(model, (OTTTLIFNode, LiquidNode))
    spikes, places = dict.fromkeys(nodes, 0.0), dict.fromkeys(nodes, 0)

    def count(name: str, args: tuple, out: Tensor) -> None:
        spikes[name] += out.sum().item()
        places[name] += out.numel()

    with _watching(nodes, count):
        predict(model, x_seq)
    rates = {name: spikes[name] / places[name] for name in nodes}
    return {**rates, "mean": sum(spikes.values()) / sum(places.values())}


def synaptic_operations(model: nn.Module, x_seq: Tensor) -> dict[str, float]:
    """Count the additions that spikes cause, per sample over all time steps, in evaluation.

    One number that is not zero at the input of a synapse is one addition for every weight that it
    meets. Layers with a real-valued input (the first convolution) multiply instead and are left
    out; constant factors on the spikes fold into the weights.

    Args:
        model: Holds neurons of `sj_ottt.neuron`.
        x_seq: [T, N, ...].

    Returns:
        Name of each layer that sees spikes → its additions; "total" → their sum.

    Raises:
        InputError: If the model has no such neuron, or no layer behind one.
    """
    layers = _fed_by_spikes(model, x_seq)
    found = dict.fromkeys(layers, 0.0)

    def count(name: str, args: tuple, out: Tensor) -> None:
        active = (args[0] != 0).to(out.dtype)
        module = layers[name]
        if isinstance(module, nn.Linear):
            found[name] += active.sum().item() * module.out_features
        else:
            ones = torch.ones_like(module.weight)
            found[name] += module._conv_forward(active, ones, None).sum(dtype=torch.double).item()

    with _watching(layers, count):
        predict(model, x_seq)
    per_sample = {name: total / x_seq.shape[1] for name, total in found.items()}
    return {**per_sample, "total": sum(per_sample.values())}


def latency_curve(model: nn.Module, x_seq: Tensor, target: Tensor) -> list[float]:
    """Measure the accuracy against the number of inference steps.

    Args:
        model: Maps [N, ...] to logits [N, classes].
        x_seq: [T, N, ...].
        target: Class indices [N].

    Returns:
        For t = 1 … T, the share of right answers by the sum of the first t outputs or, of a model
        whose `prediction` is "last", by output t.
    """
    outputs: list[Tensor] = []
    hook = model.register_forward_hook(lambda module, args, out: outputs.append(out))
    try:
        predict(model, x_seq)
    finally:
        hook.remove()
    logits = torch.stack(outputs)
    logits = logits if predicts_last(model) else logits.cumsum(0)
    return (logits.argmax(2) == target).double().mean(1).tolist()


# Gradients


def gradient_alignment(
    model: nn.Module,
    x_seq: Tensor,
    target: Tensor,
    rules: Sequence[str] = ("ottt", "sltt", "ndot"),
    loss_fn: Loss | None = None,
) -> list[dict[str, object]]:
    """Compare the gradients of learning rules with BPTT's and with the spike representation's.

    The spike representation's gradient (section 4.1 of the OTTT paper) goes through
    a[T] ≈ min(max(0, I / V_th), 1), the mapping between weighted firing rates, evaluated at the
    rates that the network really has. Its length has another unit, so only its direction counts. A
    feedback counts in it as if it were not a step late.

    Args:
        model: Holds neurons of `sj_ottt.neuron`, with a soft reset.
        x_seq: [T, N, ...].
        target: Class indices [N].
        rules: Rules to compare.
        loss_fn: Loss of one step; None takes `CrossEntropyMSE()`.

    Returns:
        A row for each rule, reference ("bptt", "spike representation") and parameter, and for
        "all" parameters as one vector: "cosine", "sign_agreement" (share of entries of the same
        sign) and "relative_error" (None against the spike representation). All are None where
        one of the two gradients is zero, as behind a readout that starts at zero.

    Raises:
        InputError: If a layer of neurons is silent, a rule is unknown, or the model has no neuron.
    """
    for rule in rules:
        check_rule(rule)
    _refuse_silence(model, x_seq)
    loss_fn = CrossEntropyMSE() if loss_fn is None else loss_fn
    references = {
        "bptt": _gradients(model, x_seq, target, "bptt", loss_fn),
        "spike representation": _representation_gradients(model, x_seq, target, loss_fn),
    }
    rows = []
    for rule in rules:
        grads = _gradients(model, x_seq, target, rule, loss_fn)
        for against, reference in references.items():
            # A feedback has no gradient in its first step, where others have theirs.
            zero = {k: torch.zeros_like(g) for k, g in {**grads, **reference}.items()}
            for name in (*zero, "all"):
                ours, theirs = (
                    torch.cat(
                        [g.flatten() for k, g in {**zero, **part}.items() if name in (k, "all")]
                    ).double()
                    for part in (grads, reference)
                )
                row = {"rule": rule, "against": against, "parameter": name}
                row |= dict.fromkeys(("cosine", "sign_agreement", "relative_error"))
                if ours.any() and theirs.any():
                    row["cosine"] = F.cosine_similarity(ours, theirs, 0).item()
                    same = ours.sign() == theirs.sign()
                    row["sign_agreement"] = same.double().mean().item()
                    if against == "bptt":
                        row["relative_error"] = ((ours - theirs).norm() / theirs.norm()).item()
                rows.append(row)
    return rows


def theorem1(
    model: nn.Module, x_seq: Tensor, target: Tensor, loss_fn: Loss | None = None
) -> list[dict[str, object]]:
    """Look at both sides of Theorem 1's condition, and at what it promises, layer by layer.

    With ĝ[t] the gradient of step t's loss for the layer's output, a[t] the weighted firing rate
    of its input, ε[t] = a[t] − a[T] and norms of whole matrices, the condition is

        ‖Σ ĝ[t] ε[t]ᵀ‖ < ‖Σ ĝ[t] a[T]ᵀ‖ − ‖Σ λᵗ (1 − λᵀ⁻ᵗ) / (1 − λᵀ) ĝ[t] a[t]ᵀ‖

    and the promise ⟨∇_W L, (∇_W L_sr)_sr⟩ > 0, where ∇_W L = Σ ĝ[t] â[t]ᵀ / T is OTTT's gradient
    and (∇_W L_sr)_sr = Σ ĝ[t] â[T]ᵀ / (T Σ λᵗ). W is the weight that the layer multiplies with
    (standardized, where it is).

    Args:
        model: Holds neurons of `sj_ottt.neuron`, all with one tau, V_th = 1 and a soft reset.
        x_seq: [T, N, ...], T ≥ 2.
        target: Class indices [N].
        loss_fn: Loss of one step; None takes `CrossEntropyMSE()`.

    Returns:
        A row for each layer that sees spikes: "layer", "left", "right", "holds" (left < right),
        "inner_product" and "cosine". The synapse of a feedback, which the theorem does not know,
        has none.

    Raises:
        InputError: If the theorem does not speak of such neurons, or no layer sees spikes.
    """
    nodes = _nodes(model).values()
    if {node.v_threshold for node in nodes} != {1.0} or {n.v_reset for n in nodes} != {None}:
        raise InputError("Theorem 1 is about neurons with v_threshold=1 and a soft reset")
    if len({node.tau for node in nodes}) > 1:
        raise InputError("Theorem 1 is about neurons of one tau, and these have several")
    lam, steps = 1 - 1 / next(iter(nodes)).tau, len(x_seq)
    if steps < 2:
        raise InputError("x_seq has 1 time step; Theorem 1 compares at least 2")
    rows = []
    for name, record in _record(model, x_seq, target, loss_fn).items():
        traces = [trace for trace, _ in record.steps]
        if len(traces) < steps:  # of a feedback, which is silent in the first step
            continue
        norm = [(1 - lam ** (t + 1)) / (1 - lam) for t in range(steps)]
        rates = [a / n for a, n in zip(traces, norm, strict=True)]
        late = [
            lam ** (t + 1) * (1 - lam ** (steps - t - 1)) / (1 - lam**steps) for t in range(steps)
        ]
        left = record.gradient([a - rates[-1] for a in rates])
        right = record.gradient([rates[-1]] * steps)
        rest = record.gradient([c * a for c, a in zip(late, rates, strict=True)])
        ours = record.gradient(traces) / steps
        theirs = record.gradient([traces[-1]] * steps) / (steps * norm[-1])
        bound = (right.norm() - rest.norm()).item()
        rows.append(
            {
                "layer": name,
                "left": left.norm().item(),
                "right": bound,
                "holds": left.norm().item() < bound,
                "inner_product": (ours * theirs).sum().item(),
                "cosine": F.cosine_similarity(ours.flatten(), theirs.flatten(), 0).item(),
            }
        )
    return rows


def three_factor(
    model: nn.Module,
    layer: str,
    x_seq: Tensor,
    target: Tensor,
    delay: int = 0,
    loss_fn: Loss | None = None,
) -> dict[str, Tensor]:
    """Take a layer's update apart into the three factors of equation (7).

    The update of the synapse from i to j is Σ_t â_i[t + Δ] f(u_j[t + Δ]) δ_j[t]: presynaptic
    trace, postsynaptic surrogate derivative, and error signal, the gradient that reaches j's
    spike. Without a delay it is OTTT's gradient of the weight that the layer multiplies with.

    Args:
        model: Holds neurons of `sj_ottt.neuron`.
        layer: Name of a linear or convolutional layer between two layers of neurons.
        x_seq: [T, N, ...].
        target: Class indices [N].
        delay: Δ in time steps, by which the error signal is late; 0 … T − 1.
        loss_fn: Loss of one step before the division by T; None takes `CrossEntropyMSE()`.

    Returns:
        "presynaptic" [T, N, inputs...], "postsynaptic" and "error" [T, N, outputs...], and
        "update", shaped like the weight.

    Raises:
        InputError: If there is no such layer, or it does not stand between neurons.
    """
    records = _record(model, x_seq, target, loss_fn)
    if layer not in records:
        raise InputError(
            f'layer="{layer}" sees no spikes: use one of {", ".join(records)}'
            f"{suggest(layer, records)}"
        )
    record, steps = records[layer], len(x_seq)
    if len(record.errors) < steps:
        raise InputError(
            f'layer="{layer}" does not feed a neuron directly at every step (a feedback may be '
            "added to its output), so it has no error signal"
        )
    if not 0 <= delay < steps:
        raise InputError(f"delay={delay}: x_seq has {steps} time steps; give 0 to {steps - 1}")
    presynaptic = torch.stack([trace for trace, _ in record.steps])
    postsynaptic = torch.stack(record.derivatives)
    error = torch.stack(record.errors) / steps
    factors = postsynaptic[delay:] * error[: steps - delay]
    update = record.gradient(list(presynaptic[delay:]), list(factors))
    return {
        "presynaptic": presynaptic,
        "postsynaptic": postsynaptic,
        "error": error,
        "update": update,
    }


class _Record:
    """Stands in a synapse's `gather` and writes down what reaches it, step by step.

    Attributes:
        steps: (â[t], ĝ[t]) of each step.
        derivatives: Surrogate derivative of the neurons it feeds, where it feeds some directly.
        errors: Gradient that reaches their spikes.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.derivatives: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.out: Tensor | None = None

    def __call__(self, product: Product, spike: Tensor, trace: Tensor | Trace) -> Tensor:
        self._product, self._weight = product, made_weight(self._module)
        out = traced_product(product, spike, trace, self._weight, self._module.bias)
        if spike is not trace:  # real-valued input carries no trace
            values = trace.decode(spike.dtype) if isinstance(trace, Trace) else trace
            out.register_hook(lambda grad: self.steps.append((values, grad)))
        self.out = out
        return out

    def gradient(self, inputs: list[Tensor], grads: list[Tensor] | None = None) -> Tensor:
        """Return Σ_t ĝ[t] input[t]ᵀ in the weight's shape."""
        grads = [grad for _, grad in self.steps] if grads is None else grads
        weight = self._weight.detach()
        return sum(
            self._product.gradients(grad, x, weight, False, True, False)[1]
            for grad, x in zip(grads, inputs, strict=True)
        )


def _record(
    model: nn.Module, x_seq: Tensor, target: Tensor, loss_fn: Loss | None
) -> dict[str, _Record]:
    """Run OTTT on a copy and return a record for each layer that sees spikes."""
    _refuse_silence(model, x_seq)
    fed = _fed_by_spikes(model, x_seq)
    foreign = [name for name, module in fed.items() if not hasattr(module, "gather")]
    if foreign:
        raise InputError(
            f"{', '.join(foreign)}: sees spikes, but only layers of sj_ottt.layer write down what "
            "reaches them: use those, or sj_ottt.convert(model)"
        )
    model, loss_fn = _copy(model, "ottt"), CrossEntropyMSE() if loss_fn is None else loss_fn

    def note(node: OTTTLIFNode, args: tuple, out: list) -> None:
        """Write down u's derivative and the spike's gradient for the layer that feeds a node."""
        record = next((r for r in records.values() if r.out is args[0]), None)
        if record is not None:
            record.derivatives.append(pending.pop(node))
            out[0].register_hook(record.errors.append)

    def before(node: OTTTLIFNode, args: tuple) -> None:
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
        with in_synapses(model, _Record) as synapses:
            records = {names[module]: module.gather for module in synapses}
            for x in x_seq:
                y = model(x)
                loss_fn(y[0] if isinstance(y, list) else y, target).backward()
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: record for name, record in records.items() if record.steps}
    if not found:
        raise InputError(
            f"{type(model).__name__} has no layer whose gradient takes the trace of a neuron"
        )
    return found


def _gradients(
    model: nn.Module, x_seq: Tensor, target: Tensor, rule: str, loss_fn: Loss
) -> dict[str, Tensor]:
    model = _copy(model, rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, optimizer, x_seq, target, loss_fn=loss_fn)
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def _representation_gradients(
    model: nn.Module, x_seq: Tensor, target: Tensor, loss_fn: Loss
) -> dict[str, Tensor]:
    """Gradients through the mapping between weighted firing rates."""
    if any(node.v_reset is not None for node in _nodes(model).values()):
        raise InputError("the spike representation is about neurons with a soft reset")
    model = _copy(model, "ottt").eval()
    nodes = _nodes(model)
    rates = dict.fromkeys(nodes, 0.0)
    norm = dict.fromkeys(nodes, 0.0)

    def average(name: str, args: tuple, out: Tensor) -> None:
        lam = 1 - 1 / nodes[name].tau
        rates[name], norm[name] = rates[name] * lam + out, norm[name] * lam + 1

    with _watching(nodes, average):
        predict(model, x_seq)

    def representation(name: str) -> Callable[[Tensor], Tensor]:
        node, rate = nodes[name], (rates[name] / norm[name]).clone()
        scale = node.v_threshold * (node.tau if node.decay_input else 1.0)

        def forward(x: Tensor) -> Tensor:
            mapped = (x / scale).clamp(0, 1)
            return mapped + (rate - mapped).detach()

        return forward

    for name, node in nodes.items():
        node.forward = representation(name)
    lam = 1 - 1 / next(iter(nodes.values())).tau
    weights = torch.tensor([lam ** (len(x_seq) - 1 - t) for t in range(len(x_seq))]).to(x_seq)
    mean = torch.tensordot(weights / weights.sum(), x_seq, 1)
    with torch.no_grad():
        model(mean)  # shows the rates to the feedback, if there is one
    loss_fn(model(mean), target).backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


# What the instruments share


def _nodes(
    model: nn.Module, kinds: tuple[type, ...] = (OTTTLIFNode,)
) -> dict[str, OTTTLIFNode | LiquidNode]:
    nodes = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if not nodes:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(
            f"{type(model).__name__} has no neuron to look at, which is {names} (of LTC networks "
            "rates and latency can be measured)"
        )
    return nodes


def _copy(model: nn.Module, rule: str) -> nn.Module:
    """A copy in training mode that follows a rule, with clean gradients and an exact trace."""
    reset_state(model)
    clone = copy.deepcopy(model).train()
    for node in _nodes(clone).values():
        node.trace_dtype = "float32"
    for module in clone.modules():
        if hasattr(module, "p") and "Dropout" in type(module).__name__:
            module.p = 0.0
    clone.zero_grad()
    return set_rule(clone, rule)


def _refuse_silence(model: nn.Module, x_seq: Tensor) -> None:
    """Every gradient of a network that does not fire agrees with every other."""
    silent = [name for name, rate in firing_rates(model, x_seq).items() if rate == 0]
    if silent:
        raise InputError(
            f"the neurons {', '.join(silent)} never fire on this batch, so its gradients say "
            "nothing: give a stronger input, more time steps or a trained model"
        )


def _fed_by_spikes(model: nn.Module, x_seq: Tensor) -> dict[str, nn.Module]:
    """The synapses whose input is spikes, at most pooled, scaled or summed.

    Found in a copy where the outputs of neurons ask for a gradient, and those of synapses do not.
    """
    clone = _copy(model, "bptt").eval().requires_grad_(False)  # bptt: nothing else is detached
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    synapses = {module: name for name, module in clone.named_modules() if isinstance(module, kinds)}
    found = set()

    def synapse(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        if args[0].requires_grad:
            found.add(synapses[module])
        return out.detach()

    def neuron(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        return out.detach().requires_grad_().clone()  # no leaf: it may be added to in place

    for module in synapses:
        module.register_forward_hook(synapse)
    for node in _nodes(clone).values():
        node.register_forward_hook(neuron, prepend=True)  # before a feedback takes its output
    with torch.enable_grad():
        for x in x_seq[:2]:  # a feedback takes part in the second step
            clone(x)
    if not found:
        raise InputError(f"{type(model).__name__} has no layer that sees spikes of a neuron")
    return {name: module for name, module in model.named_modules() if name in found}


@contextmanager
def _watching(
    modules: dict[str, nn.Module], look: Callable[[str, tuple, object], None]
) -> Iterator[None]:
    """Call look(name, arguments, output) whenever one of the modules runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple, object], None]:
        return lambda module, args, out: look(name, args, out)

    hooks = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
