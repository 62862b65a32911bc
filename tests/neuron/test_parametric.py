"""The neuron that learns its time constant: against SpikingJelly's PLIF and its BPTT."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from torch import nn

from sj_ottt import InputError, layer, learning, set_rule
from sj_ottt.neuron import OTTTParametricLIFNode
from tests.networks import relative_error

STEPS = 6
CASES = list(itertools.product([False, True], [None, 0.0, -0.3]))


def sequence(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    x_seq = 2 * torch.randn(STEPS, 3, 5, dtype=torch.float64) + 0.5
    return x_seq, torch.randn(STEPS, 3, 5, dtype=torch.float64)


def theirs(decay_input: bool, v_reset: float | None) -> nn.Module:
    node = sj_neuron.ParametricLIFNode(1.7, decay_input, 1.0, v_reset, surrogate.Sigmoid(), True)
    return node.double()


def ours(decay_input: bool, v_reset: float | None, rule: str) -> OTTTParametricLIFNode:
    node = OTTTParametricLIFNode(1.7, decay_input, 1.0, v_reset).double()
    node.load_state_dict(theirs(decay_input, v_reset).state_dict())
    return set_rule(node, rule)


def through_time(node: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return their spikes and the gradient of w by BPTT with a detached reset."""
    x_seq, weights = sequence()
    spikes = torch.stack([node(x) for x in x_seq])
    (spikes * weights).sum().backward()
    return spikes.detach(), node.w.grad


def online(node: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return our spikes and the gradient of w by one backward pass a step."""
    spikes = []
    for x, weights in zip(*sequence(), strict=True):
        spikes.append(node(x)[0])
        (spikes[-1] * weights).sum().backward()
    return torch.stack(spikes).detach(), node.w.grad


@pytest.mark.parametrize(("decay_input", "v_reset"), CASES)
@pytest.mark.parametrize("rule", ["ottt", "ndot"])
def test_w_learns_as_by_bptt(decay_input, v_reset, rule):
    spikes, exact = through_time(theirs(decay_input, v_reset))
    found_spikes, found = online(ours(decay_input, v_reset, rule))
    assert 0.05 < spikes.mean() < 0.95 and exact.abs() > 0.1
    assert torch.equal(found_spikes, spikes)
    assert relative_error(found, exact) < 1e-12


@pytest.mark.parametrize(("decay_input", "v_reset"), CASES)
def test_bptt_and_sltt(decay_input, v_reset):
    """BPTT is SpikingJelly's; SLTT takes what a step's own leak contributes, and no more."""
    node = ours(decay_input, v_reset, "bptt")
    x_seq, weights = sequence()
    (torch.stack([node(x) for x in x_seq]) * weights).sum().backward()
    _, exact = through_time(theirs(decay_input, v_reset))
    assert relative_error(node.w.grad, exact) < 1e-12
    _, found = online(ours(decay_input, v_reset, "sltt"))
    assert relative_error(found, exact) > 0.05
    node, expected = theirs(decay_input, v_reset), 0.0
    for x, weight in zip(x_seq, weights, strict=True):
        (grad,) = torch.autograd.grad((node(x) * weight).sum(), node.w)
        expected = expected + grad
        node.detach()
    assert relative_error(found, expected) < 1e-12


def test_the_trace_decays_by_the_current_time_constant():
    """One layer before the loss: its weights' gradient is BPTT's, too."""
    torch.manual_seed(1)
    first, node = layer.Linear(5, 5).double(), ours(False, 0.0, "ottt")
    last = layer.Linear(5, 4).double()
    net = layer.OTTTSequential(first, node, last)
    x_seq, _ = sequence()
    trace, fired = torch.zeros(3, 5, dtype=torch.float64), 0.0
    for x in x_seq:
        spike, found = node(3 * first(x))
        trace = (1 - node.w.detach().sigmoid()) * trace + spike.detach()
        fired += spike.sum().item()
        assert torch.allclose(found, trace, rtol=1e-12, atol=0)
        with torch.no_grad():
            node.w += 0.2
    assert fired > 10
    net.zero_grad()
    learning.train_step(net, torch.optim.SGD(net.parameters(), 0.1), x_seq, torch.tensor([0, 1, 2]))
    assert all(p.grad.norm() > 0 for p in net.parameters())


def test_evaluation_mode_and_changed_shapes():
    reference, node = theirs(True, 0.0).eval(), ours(True, 0.0, "ottt").eval()
    x_seq, _ = sequence()
    with torch.no_grad():
        spikes = torch.stack([reference(x) for x in x_seq])
    assert torch.equal(torch.stack([node(x) for x in x_seq]), spikes)
    node.reset()
    node.step_mode = "m"
    assert torch.equal(node(x_seq), spikes)
    node.train().reset()
    together = node(x_seq)
    node.reset()
    node.step_mode = "s"
    for x, (spike, trace) in zip(x_seq, zip(*together, strict=True), strict=True):
        out = node(x)
        assert torch.equal(out[0], spike) and torch.equal(out[1], trace)
    assert node(x_seq[0][:2])[1].shape == (2, 5)
    assert node.float()(x_seq[0].float())[0].dtype == torch.float32


def test_evaluation_within_a_network_that_trains():
    """The neuron learns as in training; alone it passes the gradient of the step."""
    _, exact = through_time(theirs(True, 0.0))
    node = ours(True, 0.0, "ottt").eval()
    net = nn.Sequential(node)
    for x, weights in zip(*sequence(), strict=True):
        (net(x)[0] * weights).sum().backward()
    found = node.w.grad
    assert relative_error(found, exact) < 1e-12
    node.reset()
    x = sequence()[0][0].requires_grad_()
    node(x).sum().backward()
    assert x.grad.abs().min() > 0


def test_a_time_constant_may_reach_one():
    node = OTTTParametricLIFNode()
    with torch.no_grad():
        node.w.fill_(30.0)
    spike, trace = node(torch.randn(3, 4) + 1)
    node(torch.randn(3, 4) + 1)[0].sum().backward()
    assert torch.equal(spike, trace) and node.w.grad.isfinite()


def test_copies_and_pickles():
    node = ours(False, None, "ottt")
    for x in sequence()[0]:
        node(x)[0].sum().backward()
    nodes = [node, copy.deepcopy(node), pickle.loads(pickle.dumps(node))]
    for each in nodes:
        each.zero_grad()
        each(sequence(1)[0][0])[0].sum().backward()
        assert torch.equal(each.w.grad, node.w.grad) and each.w.grad != 0
        assert each is node or each.w is not node.w


def test_tau_and_refusals():
    node = OTTTParametricLIFNode(3.0)
    assert node.tau == pytest.approx(3.0) and "tau=3.0" in repr(node)
    w = node.w
    node.tau = 5.0
    assert node.w is w and w.item() == pytest.approx(-math.log(4))
    for init_tau, words in ((1.0, "must be above 1"), (float("inf"), "finite one")):
        with pytest.raises(InputError, match=words):
            OTTTParametricLIFNode(init_tau)
    node.trace_dtype = "packed"
    with pytest.raises(InputError, match='use trace_dtype="float32"'):
        set_rule(node, "ottt")


@pytest.mark.slow
def test_compiled():
    node = ours(True, 0.0, "ottt")
    compiled = torch.compile(copy.deepcopy(node), backend="aot_eager")
    found, expected = online(compiled), online(node)
    assert torch.equal(found[0], expected[0]) and relative_error(found[1], expected[1]) < 1e-12


def test_bptt_learns_a_time_constant_of_exactly_two():
    """At tau = 2 the membrane is halved in a way of its own."""
    node = OTTTParametricLIFNode(2.0)
    set_rule(node, "bptt")
    x_seq, _ = sequence()
    torch.stack([node(x) for x in x_seq]).sum().backward()
    assert node.w.grad.abs() > 1e-3
