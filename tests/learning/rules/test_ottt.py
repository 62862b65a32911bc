"""OTTT: the gradient of SpikingJelly, of the equations, and of BPTT where it is exact."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from spikingjelly.activation_based.learning import online_learning as sj_learning
from torch import nn

from sj_ottt import layer, learning, neuron
from sj_ottt.layer import step_weights, synapse
from tests.networks import (
    OURS,
    SPIKINGJELLY,
    assert_alive,
    random_network,
    random_sequence,
    relative_error,
    train_once,
)

SEEDS = (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12)  # 7 draws a network that stays silent


def _compare(seed: int, online: bool, build=OURS, chain=None) -> float:
    """The largest relative error of any parameter's gradient and update against SpikingJelly's."""
    theirs = random_network(seed, *SPIKINGJELLY)
    ours = random_network(seed, *build, chain=chain)
    ours.load_state_dict(theirs.state_dict())
    x_seq, target_seq = random_sequence(seed)
    a = train_once(learning.ottt_online_training, ours, x_seq, target_seq, online)
    b = train_once(sj_learning.ottt_online_training, theirs, x_seq, target_seq, online)
    assert_alive(b)
    torch.testing.assert_close(a["outputs"], b["outputs"])
    torch.testing.assert_close(a["loss"], b["loss"])
    return max(
        relative_error(a[what][k], b[what][k]) for what in ("grads", "parameters") for k in b[what]
    )


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_spikingjelly(seed, online):
    assert _compare(seed, online) < 1e-9


@pytest.mark.parametrize("seed", SEEDS[:4])
def test_our_neurons_in_their_chain(seed):
    assert _compare(seed, True, chain=sj_layer.OTTTSequential) < 1e-9


@pytest.mark.parametrize("seed", SEEDS[:4])
def test_their_layers_in_our_chain(seed):
    mixed = (neuron, sj_layer)
    assert _compare(seed, True, build=mixed, chain=layer.OTTTSequential) < 1e-9


@pytest.mark.gpu
@pytest.mark.parametrize("seed", SEEDS[:4])
def test_a_gpu_gives_the_gradient_of_the_cpu(seed):
    results = []
    for device in ("cpu", "cuda"):
        model = random_network(seed, *OURS).to(device)
        x_seq, target_seq = (tensor.to(device) for tensor in random_sequence(seed))
        results.append(
            train_once(learning.ottt_online_training, model, x_seq, target_seq, online=True)
        )
    assert_alive(results[0])
    for k, expected in results[0]["parameters"].items():
        assert relative_error(results[1]["parameters"][k].cpu(), expected) < 1e-9


def test_fails_if_the_trace_is_replaced_by_the_spike(monkeypatch):
    """The negative control of the tests above."""
    real = synapse.traced_product
    for module in (synapse, step_weights):
        monkeypatch.setattr(
            module, "traced_product", lambda p, s, t, *args: real(p, s, None, *args)
        )
    assert all(_compare(seed, False) > 1e-2 for seed in SEEDS[:4])


def test_equations_4_and_5_by_hand():
    """A two-layer net with every recursion of the paper written out, no autograd."""
    torch.manual_seed(0)
    n, steps, tau, alpha = 5, 6, 4.0, 4.0
    lam = 1 - 1 / tau
    w1, w2 = torch.randn(7, 4).double(), torch.randn(3, 7).double()
    x_seq = 2 * torch.rand(steps, n, 4).double()
    target = torch.tensor([0, 1, 2, 0, 1])

    net = layer.OTTTSequential(
        layer.Linear(4, 7), neuron.OTTTLIFNode(tau), layer.Linear(7, 3), neuron.OTTTLIFNode(tau)
    ).double()
    with torch.no_grad():
        net[0].weight.copy_(w1)
        net[2].weight.copy_(w2)
        net[0].bias.zero_()
        net[2].bias.zero_()

    class SpikeReadout(nn.Module):
        def forward(self, x):
            return net(x)[0]

    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    learning.train_step(SpikeReadout(), optimizer, x_seq, target, loss_fn=F.cross_entropy)

    def surrogate_derivative(x):
        s = torch.sigmoid(alpha * x)
        return alpha * s * (1 - s)

    v1, v2, a1 = torch.zeros(n, 7).double(), torch.zeros(n, 3).double(), torch.zeros(n, 7).double()
    grad_w1, grad_w2 = torch.zeros_like(w1), torch.zeros_like(w2)
    grad_b1, grad_b2 = torch.zeros(7).double(), torch.zeros(3).double()
    fired = 0.0
    for t in range(steps):
        u1 = lam * v1 + x_seq[t] @ w1.T
        s1 = (u1 >= 1).double()
        v1 = u1 - s1
        a1 = lam * a1 + s1
        u2 = lam * v2 + s1 @ w2.T
        s2 = (u2 >= 1).double()
        v2 = u2 - s2
        probability = torch.softmax(s2, dim=1)
        g_s2 = (probability - F.one_hot(target, 3)) / n / steps
        g_u2 = g_s2 * surrogate_derivative(u2 - 1)
        g_u1 = (g_u2 @ w2) * surrogate_derivative(u1 - 1)
        grad_w2 += g_u2.T @ a1
        grad_w1 += g_u1.T @ x_seq[t]
        grad_b2 += g_u2.sum(0)
        grad_b1 += g_u1.sum(0)
        fired += s1.mean().item() + s2.mean().item()
    assert 0.1 < fired / (2 * steps) < 0.9
    by_hand = {"0.weight": grad_w1, "0.bias": grad_b1, "2.weight": grad_w2, "2.bias": grad_b2}
    for name, p in net.named_parameters():
        assert relative_error(p.grad, by_hand[name]) < 1e-12, name


def test_exact_against_bptt_for_the_last_leaky_layer():
    """OTTT equals BPTT (detached reset) where the paper says so, and not one layer below."""
    torch.manual_seed(1)
    steps, n = 8, 4
    x_seq = 2 * torch.rand(steps, n, 6).double()
    target = torch.rand(steps, n, 3).double()
    net = layer.OTTTSequential(
        layer.Linear(6, 10), neuron.OTTTLIFNode(), layer.Linear(10, 3), neuron.OTTTLIFNode()
    ).double()
    nn.init.normal_(net[0].weight)
    nn.init.normal_(net[2].weight)
    bptt = nn.Sequential(nn.Linear(6, 10), _lif(), nn.Linear(10, 3), _lif()).double()
    bptt.load_state_dict(net.state_dict())

    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    learning.ottt_online_training(
        net, optimizer, x_seq.transpose(0, 1), target.transpose(0, 1), F.mse_loss, online=False
    )
    loss = sum(F.mse_loss(bptt(x), y) for x, y in zip(x_seq, target, strict=True))
    loss.backward()
    assert relative_error(net[2].weight.grad, bptt[2].weight.grad) < 1e-12
    assert relative_error(net[2].bias.grad, bptt[2].bias.grad) > 1e-3  # no trace for a bias
    below = F.cosine_similarity(net[0].weight.grad.flatten(), bptt[0].weight.grad.flatten(), dim=0)
    assert 0.2 < below < 0.999
    sj_functional.reset_net(bptt)


def _lif():
    return sj_neuron.LIFNode(2.0, False, 1.0, None, surrogate.Sigmoid(), detach_reset=True)
