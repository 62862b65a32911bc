"""Neurons in evaluation, behind no_grad, and under checkpoints: exact, or refused by name."""

import warnings

import pytest
import torch
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from torch import nn
from torch.utils.checkpoint import checkpoint

from sj_ottt import InputError, layer, set_rule
from sj_ottt.learning import predict, train_step
from sj_ottt.neuron import LTCNode, OTTTLIFNode


@pytest.mark.parametrize("function", [surrogate.Sigmoid, surrogate.Erf])
@pytest.mark.parametrize(("v_reset", "decay_input"), [(None, False), (0.0, True)])
def test_evaluation_passes_the_gradient_of_the_step(function, v_reset, decay_input):
    torch.manual_seed(0)
    args = (2.0, decay_input, 0.6, v_reset)
    ours = OTTTLIFNode(*args, surrogate_function=function()).eval()
    # SpikingJelly's own passes no gradient in evaluation.
    theirs = sj_neuron.OTTTLIFNode(*args, surrogate_function=function())
    weight = torch.rand(5, 3, 4).double()
    grads = []
    for node in (ours, theirs):
        torch.manual_seed(1)
        x_seq = torch.rand(5, 3, 4).double().requires_grad_()
        spikes = [node(x) for x in x_seq]
        assert all(isinstance(s, list) == node.training for s in spikes)
        out = torch.stack([s[0] if node.training else s for s in spikes])
        assert 0.1 < out.mean() < 0.9
        (out * weight).sum().backward()
        grads.append(x_seq.grad)
    torch.testing.assert_close(*grads)
    assert grads[0].abs().min() > 0


def test_evaluation_under_bptt_passes_the_gradient_through_time():
    torch.manual_seed(0)
    node = OTTTLIFNode(v_threshold=0.5).double()
    set_rule(node, "bptt")
    x_seq = torch.rand(4, 3, 2).double().requires_grad_()
    grads = []
    for mode in (True, False):
        node.train(mode).reset()
        grads += torch.autograd.grad(torch.stack([node(x) for x in x_seq]).sum(), x_seq)
    torch.testing.assert_close(*grads)
    assert grads[0][0].abs().min() > 0
    node.reset()
    with torch.no_grad():
        assert not node(x_seq[0].detach()).requires_grad and not node.v.requires_grad


class Net(nn.Module):
    """Two blocks and a head; `wrap` calls the second block."""

    def __init__(self, wrap=None):
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), OTTTLIFNode(v_threshold=0.3))
        self.two = nn.Sequential(nn.Linear(6, 6), OTTTLIFNode(v_threshold=0.2))
        self.head = nn.Linear(6, 3)
        self.wrap = wrap or (lambda block, x: block(x))
        self.double()

    def forward(self, x):
        return self.head(self.wrap(self.two, self.one(x)))


def gradients(net, rule, loop):
    """The gradient of four steps, by train_step or by a loop written by hand."""
    set_rule(net, rule)
    torch.manual_seed(1)
    x_seq, target = 2 * torch.rand(4, 5, 4).double(), torch.tensor([0, 1, 2, 0, 1])
    loss_fn = nn.functional.cross_entropy
    if loop:
        losses = []
        for x in x_seq:
            losses.append(loss_fn(net(x), target) / 4)
            if rule != "bptt":
                losses[-1].backward()
        if rule == "bptt":
            sum(losses).backward()
    else:
        optimizer = torch.optim.SGD(net.parameters(), 0.0)
        train_step(net, optimizer, x_seq, target, loss_fn=loss_fn)
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize("rule", ["ottt", "ndot", "sltt", "bptt"])
@pytest.mark.parametrize("loop", [True, False])
def test_a_part_in_evaluation_takes_part_as_in_training(rule, loop):
    """The reference freezes the statistics alone, so that all neurons are in training."""
    reference, net = Net(), Net()
    reference.one[1].eval()
    net.one.eval()
    expected = gradients(reference, rule, loop)
    found = gradients(net, rule, loop)
    torch.testing.assert_close(found, expected)
    assert all(g.abs().max() > 1e-4 for g in (found[0], found[2], found[4]))


def test_a_network_in_evaluation_hands_on_plain_spikes_and_keeps_no_trace():
    net = Net().eval()
    x = torch.rand(2, 4).double().requires_grad_()
    assert isinstance(net.one(x), torch.Tensor)
    net(x).sum().backward()
    assert x.grad.abs().max() > 0 and net.one[2].trace is None


@pytest.mark.parametrize("part", ["train", "eval"])
@pytest.mark.parametrize("rule", ["ottt", "bptt"])
def test_a_neuron_behind_no_grad_is_refused_where_what_comes_before_learns(part, rule):
    def cut(block, x):
        with torch.no_grad():
            return block[1](x[0] if isinstance(x, list) else x)

    net = Net(cut)
    set_rule(net, rule)
    net.two.train(part == "train")
    x = torch.rand(2, 4).double()
    with pytest.raises(InputError, match=r"OTTTLIFNode in Net runs without .*no_grad.*detach"):
        net(x)
    with torch.no_grad():
        net(x)
    net.wrap = lambda block, x: cut(block, x[0].detach())
    net.one(x)
    net(x)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("rule", ["ottt", "sltt", "bptt"])
@pytest.mark.parametrize("part", ["train", "eval"])
def test_checkpoints_round_neurons_are_refused(use_reentrant, rule, part):
    def wrap(block, x):
        return checkpoint(block, x if use_reentrant else x[0], use_reentrant=use_reentrant)

    net = Net(wrap)
    set_rule(net, rule)
    net.two.train(part == "train")
    with (
        warnings.catch_warnings(action="ignore"),  # of PyTorch, for an input without gradient
        pytest.raises(InputError, match=r"checkpoint|without gradients"),
    ):
        net(torch.rand(2, 4).double()).sum().backward()


@pytest.mark.parametrize("node", [OTTTLIFNode(), LTCNode(4)])
def test_a_checkpoint_round_the_first_block_is_refused(node):
    block = nn.Sequential(nn.Linear(4, 4), node)
    with (
        pytest.raises(InputError, match="in Sequential was run by torch"),
        pytest.warns(UserWarning, match="None of the inputs"),
    ):
        checkpoint(block, torch.rand(2, 4), use_reentrant=True)
    with pytest.raises(InputError, match="leave the checkpoint out"):
        out = checkpoint(block, torch.rand(2, 4), use_reentrant=False)
        (out if isinstance(out, torch.Tensor) else out[0]).sum().backward()


def test_an_evaluation_within_a_backward_pass_is_allowed():
    net, other, seen = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), OTTTLIFNode()).eval(), []
    y = net(torch.rand(2, 3))
    y.register_hook(lambda g: seen.append(other(g.detach())))
    y.sum().backward()
    assert seen[0].shape == (2, 3)


def test_predict_takes_an_input_that_requires_a_gradient():
    net = layer.OTTTSequential(nn.Linear(4, 4), OTTTLIFNode(), nn.Linear(4, 2))
    assert predict(net, torch.rand(2, 4, requires_grad=True), steps=3).shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("v_threshold", float("inf"), "v_threshold=inf.*MembraneReadout"),
        ("v_threshold", float("nan"), "v_threshold=nan"),
        ("v_reset", float("nan"), "v_reset=nan"),
        ("tau", 0.5, "tau=0.5"),
        ("tau", float("nan"), "tau=nan"),
    ],
)
def test_constants_that_make_no_neuron_are_refused_whenever_they_are_set(name, value, words):
    with pytest.raises(InputError, match=words):
        OTTTLIFNode(**{name: value})
    node = OTTTLIFNode()
    setattr(node, name, value)
    for mode in (True, False):
        with pytest.raises(InputError, match=words):
            node.train(mode)(torch.rand(2, 3))
