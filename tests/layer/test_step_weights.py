"""Weights made once per update give the gradients of a plain loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_ottt import layer, learning
from sj_ottt.layer import step_weights, synapse
from sj_ottt.neuron import OTTTLIFNode
from tests.every_layer import network, step_by_step, train
from tests.networks import largest_error, relative_error


@pytest.mark.parametrize("trace_dtype", ["float32", "packed"])
def test_added_up_gradients_are_those_of_a_plain_loop(trace_dtype):
    net = network(trace_dtype)
    assert largest_error(train(net), step_by_step(net)) < 1e-12


def test_standardization_runs_once_per_update(monkeypatch):
    calls = []
    real = synapse.scaled_weight_standardization
    monkeypatch.setattr(
        synapse, "scaled_weight_standardization", lambda *a: calls.append(1) or real(*a)
    )
    train(network(), steps=5)
    assert len(calls) == 3  # three standardized layers
    calls.clear()
    train(network(), steps=5, update="online")
    assert len(calls) == 15
    calls.clear()
    learning.predict(network(), torch.rand(5, 2, 2, 13, 13).double())
    assert len(calls) == 3


@pytest.mark.parametrize("how", ["no_grad", "load_state_dict", "new_parameter", "gain"])
def test_a_weight_changed_between_steps_counts_from_then_on(how):
    """The gradient is that of the plain loop with the same change."""

    def change(net: nn.Module) -> None:
        if how == "no_grad":
            with torch.no_grad():
                net[0].weight.mul_(-1.5)
                net[4].weight.add_(0.1)
        elif how == "load_state_dict":
            net.load_state_dict({k: v * 0.9 for k, v in net.state_dict().items()})
        elif how == "gain":
            with torch.no_grad():
                net[8].gain.mul_(0)
                net[12].gain.mul_(1.3)
        else:
            net[0].weight = nn.Parameter(net[0].weight.detach() * -1.5)

    def run(shared: bool, changing: bool = True) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        net, x_seq = network("packed"), 2 * torch.randn(6, 3, 2, 13, 13).double()
        first = net[0].weight
        with step_weights.online_weights(net) if shared else torch.enable_grad():
            for t, x in enumerate(x_seq):
                if t == 3 and changing:
                    change(net)
                F.cross_entropy(net(x), torch.tensor([0, 1, 3])).backward()
        return {"first": first.grad, **{k: p.grad for k, p in net.named_parameters()}}

    assert largest_error(run(True), run(False)) < 1e-12
    assert relative_error(run(True)["first"], run(True, changing=False)["first"]) > 1e-3


def test_a_frozen_parameter_gets_no_gradient():
    net = network("packed")
    net[0].weight.requires_grad_(False)
    net[4].bias.requires_grad_(False)
    net[14].requires_grad_(False)
    x, target = 2 * torch.randn(3, 2, 13, 13).double(), torch.tensor([0, 1, 3])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    learning.train_step(net, optimizer, x, target, steps=3)
    without = {k for k, p in net.named_parameters() if p.grad is None}
    assert without == {"0.weight", "4.bias", "14.weight", "14.bias"}


def test_a_synapse_in_two_places_gets_the_gradient_of_both():
    torch.manual_seed(0)
    twice = layer.Linear(5, 5)
    chain = layer.OTTTSequential(twice, OTTTLIFNode(), twice, OTTTLIFNode(), layer.Linear(5, 4))
    nn.init.normal_(twice.weight)
    chain.double()
    x_seq, target = 2 * torch.randn(4, 3, 5).double(), torch.tensor([0, 1, 3])
    grads = []
    for shared in (True, False):
        chain.zero_grad()
        with step_weights.online_weights(chain) if shared else torch.enable_grad():
            for x in x_seq:
                F.cross_entropy(chain(x), target).backward()
        learning.reset_state(chain)
        grads.append({k: p.grad.clone() for k, p in chain.named_parameters()})
    assert largest_error(*grads) < 1e-12 and grads[0]["0.weight"].norm() > 0


def test_an_error_in_a_step_leaves_no_step_weight_behind():
    net = network()
    with pytest.raises(RuntimeError):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        x_seq = torch.randn(3, 2, 5, 13, 13).double()  # five channels instead of two
        learning.train_step(net, optimizer, x_seq, torch.tensor([0, 1]))
    assert all(m.step_weight is None for m in net.modules() if isinstance(m, synapse.Synapse))
    assert all(g.norm() > 0 for g in train(net).values())
