"""Neurons that are not ours: exact, or refused by name."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from torch import nn

from sj_ottt import InputError, convert, layer, learning, set_rule
from sj_ottt.neuron import OTTTLIFNode
from tests.networks import largest_error


class OwnNeuron(nn.Module):
    def __init__(self):
        super().__init__()
        self.surrogate = surrogate.Sigmoid()

    def forward(self, x):
        return self.surrogate(x - 1.0)


FOREIGN = [
    sj_neuron.LIFNode,
    sj_neuron.ParametricLIFNode,
    sj_neuron.IFNode,
    OwnNeuron,
    partial(sj_neuron.LIFNode, detach_reset=True, v_reset=None),
]


def network(node, ours=True) -> nn.Sequential:
    torch.manual_seed(0)
    first = [OTTTLIFNode()] if ours else [nn.Identity()]
    net = layer.OTTTSequential(
        layer.Linear(6, 8), *first, layer.Linear(8, 8), node(), layer.Linear(8, 3)
    ).double()
    for module in net:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    return net


def batch():
    torch.manual_seed(1)
    return 2 * torch.rand(5, 4, 6).double(), torch.tensor([0, 1, 2, 0])


def trained(net):
    x_seq, target = batch()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    learning.train_step(net, optimizer, x_seq, target, loss_fn=F.cross_entropy)
    grads = {name: p.grad.clone() for name, p in net.named_parameters()}
    assert all(g.norm() > 0 for g in grads.values())
    return grads


def by_autograd(net, through_time):
    """Plain autograd in a loop of its own."""
    x_seq, target = batch()
    net.zero_grad()
    learning.reset_state(net)
    losses = []
    for x in x_seq:
        losses.append(F.cross_entropy(net(x), target) / len(x_seq))
        if not through_time:
            losses[-1].backward()
            for module in net.modules():
                if hasattr(module, "v") and isinstance(module.v, torch.Tensor):
                    module.v = module.v.detach()
    if through_time:
        sum(losses).backward()
    learning.reset_state(net)
    return {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("node", FOREIGN)
@pytest.mark.parametrize("rule", ["bptt", "sltt"])
def test_foreign_neurons_are_exact_where_the_spike_suffices(node, rule):
    net = set_rule(network(node), rule)
    grads = trained(net)
    assert largest_error(grads, by_autograd(net, rule == "bptt")) < 1e-12
    if node is sj_neuron.LIFNode:
        assert largest_error(grads, by_autograd(net, rule != "bptt")) > 1e-3


@pytest.mark.parametrize("node", FOREIGN)
@pytest.mark.parametrize("rule", ["ottt", "ndot", None])
def test_foreign_neurons_are_refused_where_they_lack_a_trace(node, rule):
    net = network(node, ours=rule is not None)
    if rule:
        set_rule(net, rule)
    words = rf"3 \({type(net[3]).__name__}\) hands on no trace.*sj_ottt.convert\(model\)"
    with pytest.raises(InputError, match=words):
        trained(net)
    x_seq, target = batch()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(InputError, match=words):
        learning.ottt_online_training(
            net, optimizer, x_seq.transpose(0, 1), target[:, None], F.cross_entropy, False
        )
    with pytest.raises(InputError, match=words):
        learning.train_step(net, learning.FPTT(optimizer, alpha=0.5), x_seq, target)


def test_the_remedy_helps():
    net = network(sj_neuron.LIFNode, ours=False)
    trained(convert(net))


@pytest.mark.parametrize("rule", ["ottt", "sltt", "bptt"])
@pytest.mark.parametrize(
    "node",
    [
        sj_neuron.NonSpikingLIFNode,
        partial(sj_neuron.LIFNode, step_mode="m"),
        partial(OTTTLIFNode, step_mode="m"),
        partial(sj_layer.MultiStepContainer, nn.Identity()),
    ],
)
def test_the_batch_is_no_time(node, rule):
    with pytest.raises(InputError, match=r"3 .* would take the batch for time"):
        trained(set_rule(network(node), rule))
    with pytest.raises(InputError, match=r"3 .* would take the batch for time"):
        learning.predict(network(node), batch()[0])


@pytest.mark.parametrize("rule", ["ottt", "sltt"])
def test_recurrent_containers_are_refused(rule):
    for node in (
        lambda: sj_layer.LinearRecurrentContainer(nn.Identity(), 8, 8),
        lambda: sj_layer.ElementWiseRecurrentContainer(nn.Identity(), torch.add),
    ):
        with pytest.raises(InputError, match=r"RecurrentContainer\) .*sj_ottt.layer.Feedback"):
            trained(set_rule(network(node), rule))


@pytest.mark.parametrize("rule", ["ottt", "sltt"])
def test_layers_that_remember_their_input_are_refused(rule):
    for node in (sj_layer.SynapseFilter, partial(sj_layer.Delay, 1)):
        with pytest.raises(InputError, match=r"3 \((SynapseFilter|Delay)\) remembers its input"):
            trained(set_rule(network(node), rule))


@pytest.mark.parametrize("node", [sj_layer.SynapseFilter, partial(sj_layer.Delay, 1)])
def test_layers_that_remember_their_input_are_exact_through_time(node):
    net = set_rule(network(node), "bptt")
    assert largest_error(trained(net), by_autograd(net, True)) < 1e-12


def test_a_recurrent_container_is_exact_through_time():
    def node():
        inner = sj_neuron.LIFNode(v_reset=None)
        return sj_layer.LinearRecurrentContainer(inner, 8, 8)

    net = set_rule(network(node), "bptt")
    assert largest_error(trained(net), by_autograd(net, True)) < 1e-12


def test_their_online_nodes_do_not_learn_through_time():
    net = set_rule(network(sj_neuron.SLTTLIFNode), "bptt")
    with pytest.raises(InputError, match=r"3 \(SLTTLIFNode\) learns step by step"):
        trained(net)


def test_a_foreign_neuron_at_the_end_of_a_chain_is_exact():
    """Nothing behind it asks for a trace."""
    grads = []
    for last in (partial(OTTTLIFNode, v_reset=0.0, decay_input=True), sj_neuron.LIFNode):
        net = network(last)[:4]
        if last is sj_neuron.LIFNode:
            net[3].surrogate_function = surrogate.Sigmoid()
        grads.append(trained(net))
    assert largest_error(grads[1], grads[0]) < 1e-12


def test_neurons_in_evaluation_are_refused_where_steps_have_no_backward_pass():
    net = layer.OTTTSequential(layer.Linear(4, 8), OTTTLIFNode(), layer.Linear(8, 3))
    net[1].eval()
    optimizer, x_seq = torch.optim.SGD(net.parameters(), 0.1), torch.rand(4, 2, 4)
    target = torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"backward_steps: 1 \(OTTTLIFNode\) is in evaluation"):
        learning.train_step(net, optimizer, x_seq, target, backward_steps=2)
    learning.train_step(net, optimizer, x_seq, target)
