"""Instruments for gradients: what those of a learning rule are worth.

Plain functions that return tables (lists of rows). They work on a copy of the model. Batches are
sequences [T, N, ...].
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sj_ottt.analysis._common import Loss, copy_for_rule, integrators_of, neurons_of
from sj_ottt.analysis.activity import refuse_silence
from sj_ottt.analysis.synapse_records import record_synapses
from sj_ottt.errors import InputError, suggest
from sj_ottt.learning import CrossEntropyMSE, predict, train_step
from sj_ottt.learning.rules import RULES, find_rule
from sj_ottt.learning.spikes import watching
from sj_ottt.neuron import OTTTLIFNode

__all__ = ["gradient_alignment", "theorem1", "three_factor"]

ONLINE_RULES = tuple(name for name, rule in RULES.items() if not rule.through_time)


def gradient_alignment(
    model: nn.Module,
    x_seq: Tensor,
    target: Tensor,
    rules: Sequence[str] = ONLINE_RULES,
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
        rules: Names of rules to compare.
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
        find_rule(rule)
    refuse_silence(model, x_seq)
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
                    _vector(g for k, g in {**zero, **part}.items() if name in (k, "all"))
                    for part in (grads, reference)
                )
                row: dict[str, object] = {"rule": rule, "against": against, "parameter": name}
                row |= dict.fromkeys(("cosine", "sign_agreement", "relative_error"))
                if ours.any() and theirs.any():
                    norm = np.linalg.norm(theirs)
                    row["cosine"] = float(ours @ theirs / (np.linalg.norm(ours) * norm))
                    row["sign_agreement"] = float((np.sign(ours) == np.sign(theirs)).mean())
                    if against == "bptt":
                        row["relative_error"] = float(np.linalg.norm(ours - theirs) / norm)
                rows.append(row)
    return rows


def _vector(gradients: Iterable[Tensor]) -> NDArray[np.float64]:
    """Return gradients as one vector in float64, which not every device has."""
    whole = (g.float() if g.dtype.itemsize == 2 else g for g in gradients)  # NumPy has no bfloat16
    parts = [g.detach().cpu().numpy().ravel() for g in whole]
    return np.concatenate(parts).astype(np.float64)


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
    nodes = neurons_of(model, OTTTLIFNode).values()
    if {node.v_threshold for node in nodes} != {1.0} or {n.v_reset for n in nodes} != {None}:
        raise InputError("Theorem 1 is about neurons with v_threshold=1 and a soft reset")
    if len({node.tau for node in (*nodes, *integrators_of(model))}) > 1:
        raise InputError("Theorem 1 is about neurons of one tau, and these have several")
    lam, steps = 1 - 1 / next(iter(nodes)).tau, len(x_seq)
    if steps < 2:
        raise InputError("x_seq has 1 time step; Theorem 1 compares at least 2")
    rows = []
    for name, record in record_synapses(model, x_seq, target, loss_fn).items():
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
    """Take a layer's update apart into three factors, by equation (7) of the OTTT paper.

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
    records = record_synapses(model, x_seq, target, loss_fn)
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


def _gradients(
    model: nn.Module, x_seq: Tensor, target: Tensor, rule: str, loss_fn: Loss
) -> dict[str, Tensor]:
    model = copy_for_rule(model, rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, optimizer, x_seq, target, loss_fn=loss_fn)
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def _representation_gradients(
    model: nn.Module, x_seq: Tensor, target: Tensor, loss_fn: Loss
) -> dict[str, Tensor]:
    """Gradients through the mapping between weighted firing rates."""
    if any(node.v_reset is not None for node in neurons_of(model, OTTTLIFNode).values()):
        raise InputError("the spike representation is about neurons with a soft reset")
    model = copy_for_rule(model, "ottt").eval()
    nodes = neurons_of(model, OTTTLIFNode)
    rates: dict[str, Tensor] = {}
    norm = dict.fromkeys(nodes, 0.0)

    def average(name: str, args: tuple[Any, ...], out: Tensor) -> None:
        lam = 1 - 1 / nodes[name].tau
        rates[name] = rates[name] * lam + out if name in rates else out
        norm[name] = norm[name] * lam + 1

    with watching(nodes, average):
        predict(model, x_seq)

    def representation(name: str) -> Callable[[Tensor], Tensor]:
        node, rate = nodes[name], (rates[name] / norm[name]).clone()
        scale = node.v_threshold * (node.tau if node.decay_input else 1.0)

        def forward(x: Tensor) -> Tensor:
            mapped = (x / scale).clamp(0, 1)
            shown: Tensor = mapped + (rate - mapped).detach()
            return shown

        return forward

    for name, node in nodes.items():
        node.forward = representation(name)  # type: ignore[method-assign]
    lam = 1 - 1 / next(iter(nodes.values())).tau
    weights = torch.tensor([lam ** (len(x_seq) - 1 - t) for t in range(len(x_seq))]).to(x_seq)
    mean = torch.tensordot(weights / weights.sum(), x_seq, 1)
    with torch.no_grad():
        model(mean)  # shows the rates to the feedback, if there is one
    for readout in integrators_of(model):
        readout.reset()  # the mean of the sequence is one step of it
    loss_fn(model(mean), target).backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
