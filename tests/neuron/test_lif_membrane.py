"""A loss on the membrane: `node.v` carries the gradient of its own step, as SpikingJelly's does."""

import copy
import pickle

import pytest
import torch
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate

from sj_ottt import set_rule
from sj_ottt.neuron import OTTTLIFNode


@pytest.mark.parametrize("rule", ["ottt", "sltt", "ndot"])
@pytest.mark.parametrize("function", [surrogate.Sigmoid, surrogate.Erf])
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.5])
@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("trace_dtype", ["float32", "packed"])
def test_a_loss_on_membrane_and_spike(rule, function, v_reset, decay_input, trace_dtype):
    args = (2.0, decay_input, 0.6, v_reset)
    ours = OTTTLIFNode(*args, surrogate_function=function(), trace_dtype=trace_dtype)
    set_rule(ours, rule)
    theirs = sj_neuron.OTTTLIFNode(*args, surrogate_function=function(), detach_reset=True)
    grads = []
    for node in (ours, theirs):
        torch.manual_seed(0)
        x_seq, weights = (
            (3.5 if decay_input else 1.5) * torch.rand(5, 3, 4).double(),
            torch.rand(5, 2, 3, 4).double(),
        )
        of_both, of_v, spikes = [], [], []
        for x, (on_spike, on_v) in zip(x_seq, weights, strict=True):
            x.requires_grad_()
            spike = node(x)[0]
            spikes.append(spike.detach())
            of_v += torch.autograd.grad((on_v * node.v).sum(), x, retain_graph=True)
            loss = (on_spike * spike).sum() + (on_v * node.v.square()).sum()
            of_both += torch.autograd.grad(loss, x)
            if node is theirs:
                node.detach()
        grads.append([*of_both, *of_v])
    assert 0.1 < torch.stack(spikes).mean() < 0.9
    torch.testing.assert_close(*grads)
    assert all(g.abs().max() > 1e-3 for g in grads[0])


def test_the_graph_of_the_membrane_ends_with_the_step_and_is_not_copied():
    node, x = OTTTLIFNode(), torch.rand(2, 3, requires_grad=True)
    node(x)
    assert node.v.requires_grad and node.v.data_ptr() == node._memories["v"].data_ptr()
    for twin in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert not twin.v.requires_grad
        torch.testing.assert_close(twin.v, node.v.detach())
    first = node.v
    node(torch.rand(2, 3))
    assert not node.v.requires_grad and first.requires_grad
    node(x)
    node.v = torch.zeros(2, 3)
    assert not node.v.any()
    node(x)
    node.reset()
    assert node.v == 0.0
