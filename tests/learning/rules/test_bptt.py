"""BPTT: exact, but for the reset, and the only rule that keeps time."""

from functools import partial

import pytest
import timm
import torch
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from torch import nn

from sj_ottt import learning
from sj_ottt.layer import synapse
from sj_ottt.learning.rules import rule_of
from sj_ottt.neuron import OTTTLIFNode
from tests.learning.rules.networks import STEPS, alive, chain, gradients, sequence
from tests.networks import largest_error, relative_error


@pytest.mark.parametrize("v_reset", [None, 0.0])
def test_bptt_is_autograd_through_time(v_reset):
    """Against SpikingJelly's LIF node in step mode "m", the reset detached, in float64."""
    node = partial(OTTTLIFNode, v_reset=v_reset)
    reference = chain(
        lambda: sj_neuron.LIFNode(2.0, False, 1.0, v_reset, surrogate.Sigmoid(), True),
        nn.Sequential,
    )
    sj_functional.set_step_mode(reference, "m")
    x_seq, target = sequence()
    loss = learning.CrossEntropyMSE()
    sum(loss(y, target) / STEPS for y in reference(x_seq)).backward()
    theirs = alive(reference)
    net = chain(node)
    assert largest_error(gradients(net, rule="bptt"), theirs) < 1e-12
    assert rule_of(net).name == "bptt"
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    total, logits = learning.train_step(net, optimizer, x_seq, target)
    sj_functional.reset_net(reference)
    outputs = reference(x_seq)
    assert relative_error(logits, outputs.sum(0)) < 1e-12
    assert relative_error(total, sum(loss(y, target) / STEPS for y in outputs)) < 1e-12
    assert not logits.requires_grad and not total.requires_grad
    net.zero_grad()
    sj_functional.set_step_mode(net, "m")
    sum(loss(y, target) / STEPS for y in net(x_seq)).backward()
    assert largest_error(alive(net), theirs) < 1e-12


def test_bptt_of_standardized_weights_makes_them_once(monkeypatch):
    calls = []
    real = synapse.scaled_weight_standardization
    monkeypatch.setattr(
        synapse, "scaled_weight_standardization", lambda *a: calls.append(1) or real(*a)
    )
    model = timm.create_model("test_ottt_vgg", rule="bptt").double()
    x, target = 3 * torch.randn(2, 3, 16, 16).double(), torch.tensor([0, 1])
    learning.train_step(model, torch.optim.SGD(model.parameters(), 0.0), x, target, steps=4)
    assert len(calls) == 3
    grads = alive(model)
    model.zero_grad()
    sum(learning.CrossEntropyMSE()(model(x), target) / 4 for _ in range(4)).backward()
    assert largest_error(alive(model), grads) < 1e-12
