"""The readout with a membrane: exact for its own parameters against plain autograd."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from sj_ottt import InputError, layer, learning, set_rule
from sj_ottt.layer import Pair
from sj_ottt.neuron import MembraneReadout, OTTTLIFNode, OTTTParametricLIFNode
from tests.networks import relative_error

STEPS = 5
SYNAPSES = {
    "Linear": (lambda: layer.Linear(6, 4), (6,)),
    "nn.Linear": (lambda: nn.Linear(6, 4), (6,)),
    "WSLinear": (lambda: layer.WSLinear(6, 4), (6,)),
    "Conv2d": (lambda: layer.Conv2d(2, 3, 3, padding=1), (2, 5, 5)),
    "nn.Conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "WSConv2d": (lambda: layer.WSConv2d(2, 3, 3), (2, 5, 5)),
    "nn.ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 5, 5)),
}


def build(name: str, tau: float = 1.6) -> tuple[MembraneReadout, Tensor]:
    """Return a readout and spikes [T, N, ...] for it."""
    torch.manual_seed(0)
    make, shape = SYNAPSES[name]
    readout = MembraneReadout(make(), tau).double()
    spikes = (torch.rand(STEPS, 3, *shape) < 0.4).double()
    assert 0.2 < spikes.mean() < 0.6
    return readout, spikes


def loss(o: Tensor, t: int) -> Tensor:
    """Return a loss that is not linear in the output, and another one in each step."""
    return ((o - 0.3 * t) ** 2).mean()


def through_time(readout: MembraneReadout, spikes: Tensor, steps: range) -> dict[str, Tensor]:
    """Return the gradient of the losses of some steps, by plain autograd through all of them."""
    synapse, o, total = readout.synapse, 0.0, torch.zeros(()).double()
    synapse.zero_grad()
    for t, s in enumerate(spikes):
        o = (1 - 1 / readout.tau) * o + synapse(s)
        if t in steps:
            total = total + loss(o, t)
    total.backward()
    return {k: p.grad.clone() for k, p in synapse.named_parameters()}


def online(readout: MembraneReadout, spikes: Tensor, steps: range, pair=True) -> dict[str, Tensor]:
    """Return the same by one backward pass a step."""
    readout.reset()
    readout.zero_grad()
    for t, s in enumerate(spikes):
        # The neuron's own trace, of another time constant, must not matter.
        o = readout(Pair.of([s, 7 * s + 1]) if pair else s)
        if t in steps:
            loss(o, t).backward()
    return {k: p.grad.clone() for k, p in readout.synapse.named_parameters()}


def error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    assert all(g.norm() > 1e-3 for g in exact.values()) and "bias" in exact
    return max(relative_error(found[k], exact[k]) for k in exact)


@pytest.mark.parametrize("name", SYNAPSES)
def test_exact_at_every_step_or_the_last(name):
    readout, spikes = build(name)
    for steps in (range(STEPS), range(STEPS - 1, STEPS)):
        exact = through_time(readout, spikes, steps)
        for pair in (True, False):
            assert error(online(readout, spikes, steps, pair), exact) < 1e-12
        set_rule(readout, "sltt")  # the control: the spike alone is not exact
        assert error(online(readout, spikes, steps), exact) > 0.05
        set_rule(readout, "ottt")


@pytest.mark.parametrize("tau", [1.2, 2.0, float("inf")])
@pytest.mark.parametrize("rule", ["ottt", "ndot"])
def test_any_time_constant(tau, rule):
    readout, spikes = build("Linear", tau)
    set_rule(readout, rule)
    exact = through_time(readout, spikes, range(STEPS))
    assert error(online(readout, spikes, range(STEPS)), exact) < 1e-12


def test_bptt_and_sltt():
    readout, spikes = build("Linear")
    exact = through_time(readout, spikes, range(STEPS))
    set_rule(readout, "bptt").zero_grad()
    sum(loss(readout(s), t) for t, s in enumerate(spikes)).backward()
    assert error({k: p.grad for k, p in readout.synapse.named_parameters()}, exact) < 1e-12
    set_rule(readout, "sltt")
    found = online(readout, spikes, range(STEPS))
    readout.reset()
    expected = {k: torch.zeros_like(g) for k, g in exact.items()}
    for t, s in enumerate(spikes):
        o = readout(s).detach()
        g = 2 * (o - 0.3 * t) / o.numel()
        expected["weight"] += g.T @ s
        expected["bias"] += g.sum(0)
    assert error(found, expected) < 1e-12


def test_the_input_gets_the_gradient_through_space():
    readout, spikes = build("Linear")
    readout(spikes[0])
    s = spikes[1].clone().requires_grad_()
    o = readout(s)
    loss(o, 1).backward()
    expected = 2 * (o.detach() - 0.3) / o.numel() @ readout.synapse.weight.detach()
    assert relative_error(s.grad, expected) < 1e-12


@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_in_a_network(update):
    """Behind neurons of another time constant, in `train_step`, with every parameter alive."""
    torch.manual_seed(0)
    net = layer.OTTTSequential(
        layer.Linear(6, 20), OTTTLIFNode(3.0), MembraneReadout(layer.Linear(20, 2))
    ).double()
    net.prediction = "last"
    x_seq, target = 2 * torch.randn(STEPS, 3, 6).double(), torch.randn(3, 2).double()
    before = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    _, out = learning.train_step(
        net, optimizer, x_seq, target, update=update, loss_fn=nn.functional.mse_loss
    )
    assert out.shape == (3, 2) and all(p.grad.norm() > 0 for p in net.parameters())
    if update == "online":
        return
    synapse, o, total = before[2].synapse, 0.0, 0.0
    with torch.no_grad():
        spikes = [before[1](before[0](x))[0] for x in x_seq]
    for s in spikes:
        o = 0.5 * o + synapse(s)
        total = total + nn.functional.mse_loss(o, target) / STEPS
    total.backward()
    assert relative_error(out, o) < 1e-12
    for name in ("weight", "bias"):
        found, exact = getattr(net[2].synapse, name).grad, getattr(synapse, name).grad
        assert relative_error(found, exact) < 1e-12


@pytest.mark.parametrize("rule", ["ottt", "bptt"])
def test_sequences_of_different_lengths(rule):
    """Together as alone: the traces and the membrane of the sequences that go on stay theirs."""
    torch.manual_seed(0)
    net = layer.OTTTSequential(
        layer.Linear(6, 20), OTTTParametricLIFNode(3.0), MembraneReadout(layer.Linear(20, 2))
    ).double()
    set_rule(net, rule).prediction = "last"
    x_seq, target = 2 * torch.randn(STEPS, 3, 6).double(), torch.randn(3, 2).double()
    lengths = torch.tensor([5, 2, 4])
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    kwargs = {"loss_fn": nn.functional.mse_loss}
    _, out = learning.train_step(net, optimizer, x_seq, target, lengths=lengths, **kwargs)
    found = {k: p.grad.clone() for k, p in net.named_parameters()}
    alone = {k: torch.zeros_like(g) for k, g in found.items()}
    for n, length in enumerate(lengths):
        one = slice(n, n + 1)
        _, y = learning.train_step(net, optimizer, x_seq[:length, one], target[one], **kwargs)
        assert relative_error(out[one], y) < 1e-12
        for k, p in net.named_parameters():
            alone[k] += p.grad / 3
    assert all(g.norm() > 0 for g in alone.values())
    assert max(relative_error(found[k], alone[k]) for k in alone) < 1e-12


@pytest.mark.parametrize("name", SYNAPSES)
def test_evaluation_and_step_mode_m(name):
    readout, spikes = build(name)
    trained = torch.stack([readout(s) for s in spikes])
    set_rule(readout, "ottt").eval()
    stepwise = torch.stack([readout(s) for s in spikes])
    assert torch.equal(stepwise, trained) and not readout.o.requires_grad
    readout.reset()
    for part in readout.modules():
        if hasattr(part, "step_mode"):
            part.step_mode = "m"
    assert relative_error(readout(spikes), stepwise) < 1e-12
    readout.train()
    for rule in ("ottt", "bptt"):
        set_rule(readout, rule)
        assert relative_error(readout(spikes), stepwise) < 1e-12


@pytest.mark.parametrize("rule", ["ottt", "sltt", "bptt"])
@pytest.mark.parametrize("name", SYNAPSES)
def test_steps_together_have_the_gradient_of_the_steps(name, rule):
    found = []
    for mode in "sm":
        readout, spikes = build(name)
        set_rule(readout, rule)
        for part in readout.modules():
            if hasattr(part, "step_mode"):
                part.step_mode = mode
        spikes = spikes.clone().requires_grad_()
        out = readout(spikes) if mode == "m" else torch.stack([readout(s) for s in spikes])
        torch.manual_seed(2)
        (out * torch.randn_like(out)).sum().backward()
        found.append([spikes.grad, *(p.grad for p in readout.parameters())])
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(*found, strict=True))
    assert all(g.norm() > 0 for g in found[0])


def test_a_readout_in_evaluation_within_a_network_that_trains():
    """It learns as in training, as neurons do; alone it passes the gradient of the step."""
    readout, spikes = build("Linear")
    exact = through_time(readout, spikes, range(STEPS))
    net = nn.Sequential(readout)
    readout.eval()
    readout.zero_grad()
    for t, s in enumerate(spikes):
        loss(net(s), t).backward()
    assert error({k: p.grad for k, p in readout.synapse.named_parameters()}, exact) < 1e-12
    net.eval()
    s = spikes[0].clone().requires_grad_()
    readout.reset()
    readout(s).sum().backward()
    assert relative_error(s.grad[0], readout.synapse.weight.sum(0).detach()) < 1e-12
    assert readout.trace is None


def test_the_state_follows_its_input():
    readout, spikes = build("Linear")
    readout(spikes[0])
    small = readout(spikes[1][:2])
    assert torch.equal(small, readout.synapse(spikes[1][:2])) and readout.constant == 1
    readout.float()
    assert readout(spikes[2][:2].float()).dtype == torch.float32 and readout.constant > 1
    readout.reset()
    assert readout.o is None and readout.trace is None and readout.constant == 0
    readout(spikes[0].float())
    copies = (readout, copy.deepcopy(readout), pickle.loads(pickle.dumps(readout)))
    for each in copies:
        each.zero_grad()
        each(spikes[1].float()).sum().backward()
        assert torch.equal(each.synapse.weight.grad, readout.synapse.weight.grad)


def test_refusals():
    with pytest.raises(InputError, match="must be above 1"):
        MembraneReadout(layer.Linear(2, 2), 1.0)
    with pytest.raises(InputError, match="takes one linear layer"):
        MembraneReadout(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


@pytest.mark.slow
def test_compiled():
    readout, spikes = build("Linear")
    exact = through_time(readout, spikes, range(STEPS))
    readout.reset()
    readout.zero_grad()
    compiled = torch.compile(readout, backend="aot_eager")
    for t, s in enumerate(spikes):
        loss(compiled(s), t).backward()
    assert error({k: p.grad for k, p in readout.synapse.named_parameters()}, exact) < 1e-12
