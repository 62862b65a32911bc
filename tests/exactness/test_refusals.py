"""What cannot be right is refused in one line that names the module or function, and a remedy."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import nn

from sj_ottt import InputError, neuron
from sj_ottt.learning import train_step


class Own(nn.Module):
    """A network whose author does something to what the neurons hand on."""

    def __init__(self, function: Callable, node: nn.Module | None = None):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.node = node or neuron.OTTTLIFNode(v_threshold=0.5)
        self.norm, self.drop = nn.LayerNorm(6), nn.Dropout(0.5)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self, self.node(self.first(x))))


def added(model, s):
    out = torch.zeros(2, 6)
    out.add_(s)
    return out


def changed(model, s):
    s[0] = 0
    return s


def without_gradient(model, s):
    with torch.no_grad():
        return s * 2


def chain(node):
    return nn.Sequential(nn.Linear(6, 6), node, nn.Linear(6, 3))


def recurrent(kind, *args):
    return chain(kind(neuron.OTTTLIFNode(), *args))


SPIKE_ALONE = "use a layer of sj_ottt.layer, or take x[0], the spike alone"
FUNCTIONS = {
    "layer norm": (lambda m, s: m.norm(s), "layer_norm() was called in LayerNorm", SPIKE_ALONE),
    "dropout": (
        lambda m, s: m.drop(s),
        "dropout() was called in Dropout",
        "use sj_ottt.layer.Dropout",
    ),
    "sigmoid": (lambda m, s: torch.sigmoid(s), "sigmoid() was called in Own", SPIKE_ALONE),
    "attention": (
        lambda m, s: F.scaled_dot_product_attention(s, s, s),
        "scaled_dot_product_attention() was called in Own",
        SPIKE_ALONE,
    ),
    "whole numbers": (lambda m, s: s.long(), "long() was called in Own", SPIKE_ALONE),
    "numpy": (lambda m, s: s.numpy(), "numpy() was called in Own", SPIKE_ALONE),
    "add a number": (lambda m, s: s + 1, "1 cannot be added in Own", SPIKE_ALONE),
    "add in place": (added, "add_() was called in Own", "use add and its result"),
    "no_grad": (without_gradient, "mul() was called in Own", "leave torch.no_grad() out"),
    "item": (changed, "__setitem__ of lists", "take x[0], the spike"),
    "compare": (lambda m, s: s > 0, "__gt__ of lists", "take x[0], the spike"),
    "slice": (lambda m, s: s[0:2], "x[a:b] of what a neuron hands on", "write x[a:b, ...]"),
    "graph": (lambda m, s: s.grad_fn, "has no grad_fn", SPIKE_ALONE),
}
MODELS = {
    "LIFNode": (
        lambda: Own(lambda m, s: s, sj_neuron.LIFNode()),
        "node (LIFNode) hands on no trace",
        "call sj_ottt.convert(model)",
    ),
    "ParametricLIFNode": (
        lambda: Own(lambda m, s: s, sj_neuron.ParametricLIFNode()),
        "node (ParametricLIFNode) hands on no trace",
        "call sj_ottt.convert(model)",
    ),
    "NonSpikingLIFNode": (
        lambda: Own(lambda m, s: s, sj_neuron.NonSpikingLIFNode()),
        "node (NonSpikingLIFNode) would take the batch for time",
        "use modules that run one step",
    ),
    "infinite threshold": (
        lambda: Own(lambda m, s: s, neuron.OTTTLIFNode(v_threshold=float("inf"))),
        "v_threshold=inf",
        "use sj_ottt.neuron.MembraneReadout",
    ),
    "step mode m": (
        lambda: Own(lambda m, s: s, neuron.OTTTLIFNode(step_mode="m")),
        "node (OTTTLIFNode) would take the batch for time",
        "functional.set_step_mode(model, 's')",
    ),
    "recurrent container": (
        lambda: recurrent(sj_layer.ElementWiseRecurrentContainer, torch.add),
        "1 (ElementWiseRecurrentContainer) feeds its output back",
        "use sj_ottt.layer.Feedback",
    ),
    "linear recurrent container": (
        lambda: recurrent(sj_layer.LinearRecurrentContainer, 6, 6),
        "1 (LinearRecurrentContainer) feeds its output back",
        "use sj_ottt.layer.Feedback",
    ),
    "GRU": (
        lambda: nn.Sequential(nn.Linear(6, 6), neuron.OTTTLIFNode(), nn.GRUCell(6, 3)),
        "gru_cell() was called in GRUCell",
        SPIKE_ALONE,
    ),
}
ALL = {
    **{k: (lambda f=f: Own(f), *words) for k, (f, *words) in FUNCTIONS.items()},
    **MODELS,
}


@pytest.mark.parametrize("name", ALL)
def test_refused_by_name_with_a_remedy(name):
    make, what, remedy = ALL[name]
    before = after = None
    with pytest.raises(InputError) as refusal:
        model = make()
        before = [p.detach().clone() for p in model.parameters()]
        after = [*model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        train_step(model, optimizer, torch.rand(3, 2, 6), torch.tensor([0, 1]))
    words = str(refusal.value)
    assert "\n" not in words
    assert re.search(f"{re.escape(what)}.*: .*{re.escape(remedy)}", words), words
    if before is not None:  # nothing was learned
        assert all(map(torch.equal, before, after))
