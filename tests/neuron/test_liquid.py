"""LTC neurons: values by hand, the gradient of their equations, shapes, start, and step modes."""

import math
import pickle

import pytest
import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based import functional as sj_functional
from torch import nn
from torch.nn import functional as F

from sj_ottt import InputError, analysis, learning, neuron, set_rule
from sj_ottt.learning.rules import rule_of
from sj_ottt.neuron import ASRNode, ASRRecurrent, LeakyReadout, LTCConvNode, LTCNode, LTCRecurrent

NODES = {
    "dense": lambda **kw: (LTCNode(5, **kw), (5,)),
    "recurrent": lambda **kw: (LTCRecurrent(3, 5, **kw), (3,)),
    "conv": lambda **kw: (LTCConvNode(2, **kw), (2, 4, 5)),
    "asr": lambda **kw: (ASRNode(5, **kw), (5,)),
    "asr on maps": lambda **kw: (ASRNode(2, **kw), (2, 4, 5)),
    "asr recurrent": lambda **kw: (ASRRecurrent(3, 5, **kw), (3,)),
}


def build(name, **kwargs):
    """A node in float64 whose neurons fire, and its input [T, N, ...]."""
    torch.manual_seed(0)
    node, shape = NODES[name](**kwargs)
    for p in node.parameters():
        nn.init.normal_(p, std=0.7)
    return node.double(), 2 * torch.randn(6, 4, *shape).double()


# By hand: all gates at 1/2, one neuron, I = 1, 0.3, 2.5, 0.2.
#   b:  0     0.5    0.25   0.625         (b + s) / 2 of the step before
#   θ:  0.1   1      0.55   1.225         0.1 + 1.8 b
#   u:  0.5   0.15   1.325  0.1           (v + I) / 2
#   s:  1     0      1      0
CURRENT = [1.0, 0.3, 2.5, 0.2]
BY_HAND = {
    "spike": [1.0, 0.0, 1.0, 0.0],
    "v": [0.0, 0.15, 0.0, 0.1],
    "b": [0.0, 0.5, 0.25, 0.625],
}


def follow(node, current):
    """What a node of one neuron holds after each step."""
    found = {"spike": [], "v": [], "b": []}
    with torch.no_grad():
        for value in current:
            node(torch.full((1, 1), value, dtype=torch.float64))
            for name, values in found.items():
                values.append(getattr(node, name).item())
    return found


@pytest.mark.parametrize("kind", [LTCNode, ASRNode])
def test_values_by_hand(kind):
    node = kind(1, start="zero").double()
    for p in node.parameters():
        nn.init.zeros_(p)
    found = follow(node, CURRENT)
    for name, values in BY_HAND.items():
        assert found[name] == pytest.approx(values, abs=1e-12), name


def test_values_by_hand_without_adaptation_and_with_another_threshold():
    """The threshold is b0 = 0.5 at every step: u = 0.5 does not exceed it, 0.9 does, 0.2 not."""
    node = LTCNode(1, start="zero", adaptive=False, b0=0.5).double()
    assert node.retain is None and len([*node.parameters()]) == 2
    for p in node.parameters():
        nn.init.zeros_(p)
    found = follow(node, [1.0, 1.3, 0.4])
    assert found["spike"] == [0.0, 1.0, 0.0]
    assert found["v"] == pytest.approx([0.5, 0.0, 0.2])


def test_each_gate_sees_the_current_and_its_own_state():
    """α = σ(1·I − 2·v + 0.5), ρ = σ(3·I + 4·b − 1) on a second step with I = 0.2."""
    node = LTCNode(1, start="zero").double()
    with torch.no_grad():
        node.update.weight.copy_(torch.tensor([[1.0, -2.0]]))
        node.update.bias.fill_(0.5)
        node.retain.weight.copy_(torch.tensor([[3.0, 4.0]]))
        node.retain.bias.fill_(-1.0)
    node.v, node.b, node.spike = (
        torch.full((1, 1), x, dtype=torch.float64) for x in (0.3, 0.6, 1.0)
    )
    node(torch.full((1, 1), 0.2, dtype=torch.float64))
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    alpha, rho = sigmoid(0.2 - 0.6 + 0.5), sigmoid(0.6 + 2.4 - 1.0)
    b = rho * 0.6 + (1 - rho) * 1.0
    u = 0.3 + alpha * (0.2 - 0.3)
    assert u < 0.1 + 1.8 * b and node.spike.item() == 0.0
    assert node.b.item() == pytest.approx(b) and node.v.item() == pytest.approx(u)


def density(x, mean, sd):
    return torch.exp(-((x - mean) ** 2) / (2 * sd**2)) / (sd * math.sqrt(2 * math.pi))


def fire(x):
    """1[x > 0] with the gradient g(x), written out."""
    with torch.no_grad():
        flanks = density(x, 0.3, 1.8) + density(x, -0.3, 1.8)
        g = 0.5 * (1.15 * density(x, 0, 0.3) - 0.15 * flanks)
    return (x > 0).double() + g * (x - x.detach())


def gate(node, which, current, state):
    """The gate's value by the equation of each form."""
    module = getattr(node, which)
    if isinstance(node, LTCConvNode):
        x = F.conv2d(current + state, module[0].weight, padding=1)
        mean, var = x.mean((0, 2, 3), True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        x = (x - mean) / (var + 1e-5).sqrt()
        x = x * module[1].weight.view(-1, 1, 1) + module[1].bias.view(-1, 1, 1)
    elif isinstance(node, LTCNode):
        half = current.shape[1]
        x = current @ module.weight[:, :half].T + state @ module.weight[:, half:].T + module.bias
    else:
        x = module.view(-1, *(1,) * (current.dim() - 2))
    return 1 / (1 + torch.exp(-x))


def plain(node, x_seq, u, b, s, detach_reset=False):
    """The equations of the neuron, one line each."""
    spikes = []
    for x in x_seq:
        current = x
        if hasattr(node, "synapse"):
            w, n = node.synapse.weight, x.shape[1]
            current = x @ w[:, :n].T + s @ w[:, n:].T + node.synapse.bias
        alpha = gate(node, "update", current, u)
        theta = node.b0
        if node.adaptive:
            rho = gate(node, "retain", current, b)
            b = rho * b + (1 - rho) * s
            theta = node.b0 + 1.8 * b
        u = u + alpha * (current - u)
        s = fire(u - theta)
        u = (1 - (s.detach() if detach_reset else s)) * u
        spikes.append(s)
    return torch.stack(spikes), u


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("name", NODES)
def test_gradient_is_that_of_the_equations(name, adaptive):
    node, x_seq = build(name, adaptive=adaptive, b0=0.2)
    weight, x_seq = torch.randn_like(x_seq[:, :1, ..., :1]), x_seq.requires_grad_()
    torch.manual_seed(1)
    outputs = torch.stack([node(x) for x in x_seq])
    assert 0.05 < outputs.mean() < 0.95
    torch.manual_seed(1)
    start = torch.rand(outputs.shape[1:], dtype=torch.float64)
    results = []
    for case in ("node", "plain", "detached"):
        if case != "node":
            b = torch.full_like(start, 0.2)
            outputs, v = plain(node, x_seq, start, b, 0 * b, detach_reset=case == "detached")
        else:
            v = node.v
        node.zero_grad()
        x_seq.grad = None
        ((outputs * weight).sum() + v.square().sum()).backward()
        grads = [p.grad.clone() for p in node.parameters()]
        results.append((outputs.detach(), v.detach(), x_seq.grad, grads))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)
    # A convolution behind batch norm has no gradient along its own scale, but it has one.
    assert all(g.norm() > 1e-6 for g in results[0][3])
    assert (results[0][2] - results[2][2]).norm() > 1e-3  # the reset carries a gradient


@pytest.mark.parametrize("name", NODES)
def test_start_and_shapes(name):
    node, x_seq = build(name)
    shape = node(x_seq[0]).shape
    assert shape == (4, *({5} if "recurrent" in name else x_seq.shape[2:]))
    node.reset()
    assert node.v is None and node.b is None and node.spike is None
    torch.manual_seed(3)
    v, b, spike = node.materialize_states((x_seq[0],), (None,) * 3, "s")
    torch.manual_seed(3)
    assert torch.equal(v, torch.rand(shape, dtype=torch.float64)) and v.std() > 0.1
    assert torch.equal(b, torch.full(shape, 0.1, dtype=torch.float64))
    assert not spike.any()
    node.start = "zero"
    assert not any(s.any() for s in node.materialize_states((x_seq,), (None,) * 3, "m"))
    # A changed batch starts anew; a changed dtype goes on.
    node(x_seq[0])
    node(x_seq[0, :2])
    assert node.v.shape[0] == 2
    before = node.v.float()
    node.float()(x_seq[0, :2].float())
    assert node.v.dtype == torch.float32 and node.v.shape == before.shape


@pytest.mark.parametrize("name", NODES)
def test_step_modes_and_spikingjellys_tools(name):
    node, x_seq = build(name)
    assert isinstance(node, base.MemoryModule)
    torch.manual_seed(2)
    expected = torch.stack([node(x) for x in x_seq])
    state = node.v
    sj_functional.reset_net(node)
    sj_functional.set_step_mode(node, "m")
    torch.manual_seed(2)
    outputs = node(x_seq)
    assert expected.std() > 0
    if name == "conv":  # running statistics went on, those of the batch are the same
        assert node.update[1].num_batches_tracked == 12
    torch.testing.assert_close((outputs, node.v), (expected, state))
    assert node.v.requires_grad
    node.detach()
    assert not node.v.requires_grad
    node.reset()
    twin = pickle.loads(pickle.dumps(node))
    twin.start = node.start = "zero"
    torch.testing.assert_close(twin(x_seq), node(x_seq))
    assert "adaptive=True" in repr(node)


@pytest.mark.parametrize("name", NODES)
def test_autocast_mixes_no_dtypes_within_a_step(name):
    node, x_seq = build(name)
    node, x_seq = node.float(), x_seq.float()
    readouts = [LeakyReadout(x_seq.shape[-1], gated) for gated in (False, True)]
    for half in (True, False):  # the state follows from one to the other
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = sum(node(x).float() for x in x_seq)
            logits = [readout(x_seq[0]).float() for readout in readouts]
        (out.square().sum() + sum(y.sum() for y in logits)).backward()
        assert all(p.grad.isfinite().all() and p.grad.norm() > 0 for p in node.parameters())
        for module in (node, *readouts):
            module.detach()


def test_leaky_readout_by_hand_and_by_its_equation():
    """α = 1/2 at the start: 1, 0, 3 gives 0.5, 0.25, 1.625."""
    readout = LeakyReadout(1).double()
    with torch.no_grad():
        found = [
            readout(torch.full((1, 1), x, dtype=torch.float64)).item() for x in (1.0, 0.0, 3.0)
        ]
    assert found == [0.5, 0.25, 1.625]
    for gated in (False, True):
        torch.manual_seed(0)
        readout = LeakyReadout(3, gated).double()
        nn.init.normal_(readout.gate.weight if gated else readout.gate)
        x_seq = torch.randn(5, 2, 3).double()
        o, outputs = torch.zeros(2, 3).double(), []
        for x in x_seq:
            logit = readout.gate
            if gated:
                w = readout.gate.weight
                logit = x @ w[:, :3].T + o @ w[:, 3:].T + readout.gate.bias
            o = o + (x - o) / (1 + torch.exp(-logit))
            outputs.append(o)
        readout.step_mode = "m"
        found = readout(x_seq)
        torch.testing.assert_close(found, torch.stack(outputs))
        grads = [
            torch.autograd.grad(y[-1].sum(), [*readout.parameters()]) for y in (found, outputs)
        ]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
        assert grads[0][0].norm() > 0


def test_parameter_count_of_the_add_task():
    """LTC recurrent 128 and a linear readout: 82.7k."""
    model = nn.Sequential(LTCRecurrent(2, 128), nn.Linear(128, 1))
    assert sum(p.numel() for p in model.parameters()) == 82_689


def test_they_learn_by_bptt_and_refuse_traces():
    model = nn.Sequential(LTCRecurrent(3, 5), LeakyReadout(5))
    assert rule_of(model).name == "bptt"
    assert set_rule(model, "bptt") is model
    with pytest.raises(InputError, match="LTCRecurrent carries no presynaptic trace"):
        set_rule(model, "ottt")
    x_seq, target = torch.randn(4, 2, 3), torch.tensor([0, 1])
    with pytest.raises(InputError, match="online update"):
        learning.train_step(
            model, torch.optim.SGD(model.parameters(), 0.1), x_seq, target, update="online"
        )
    mixed = nn.Sequential(LTCNode(3), neuron.OTTTLIFNode())
    with pytest.raises(InputError, match="BPTT needs all of them"):
        rule_of(mixed)


def test_a_random_start_repeats_with_the_seed():
    model = nn.Sequential(LTCRecurrent(3, 5), nn.Linear(5, 2))
    x_seq = torch.randn(4, 2, 3)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(learning.predict(model, x_seq))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_prediction_of_the_last_step():
    model = nn.Sequential(LTCNode(3, start="zero"), LeakyReadout(3))
    x_seq = torch.randn(4, 2, 3)
    with torch.no_grad():
        outputs = torch.stack([model(x) for x in x_seq])
    torch.testing.assert_close(learning.predict(model, x_seq), outputs.sum(0))
    model.prediction = "last"
    torch.testing.assert_close(learning.predict(model, x_seq), outputs[-1])
    target = torch.tensor([0, 1])
    right = (outputs.argmax(2) == target).double().mean(1).tolist()
    assert analysis.latency_curve(model, x_seq, target) == right
    _, logits = learning.train_step(
        model, torch.optim.SGD(model.parameters(), 0.0), x_seq, torch.tensor([0, 1])
    )
    torch.testing.assert_close(logits, outputs[-1])


def test_bad_input_is_named():
    with pytest.raises(InputError, match='start="ones"'):
        LTCNode(3, start="ones")
    with pytest.raises(InputError, match="kernel_size=4"):
        LTCConvNode(3, 4)
