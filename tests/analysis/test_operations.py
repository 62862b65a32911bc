"""Every product of a network is counted, or listed: against counts by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sj_ottt import InputError, analysis, layer, learning
from sj_ottt.neuron import OTTTLIFNode

STEPS, BATCH = 3, 2


class OwnNeuron(nn.Module):
    """A neuron without a state, written by a user."""

    def __init__(self):
        super().__init__()
        self.fire = surrogate.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.fire(x - 0.5)


def spikes_of(neuron: nn.Module, x_seq: Tensor) -> list[Tensor]:
    learning.reset_state(neuron)
    neuron.eval()
    spikes = [neuron(x) for x in x_seq]
    learning.reset_state(neuron)
    assert 0 < torch.stack(spikes).mean() < 1
    return spikes


def touching(shape: tuple[int, ...], synapse: nn.Module) -> Tensor:
    """How many weights each input meets, by autograd: the gradient of a map with weights 1."""
    x = torch.zeros(1, *shape, requires_grad=True)
    for parameter in synapse.parameters():
        nn.init.ones_(parameter)
    synapse(x).sum().backward()
    return x.grad[0]


SYNAPSES = {
    "linear": ((6,), lambda: nn.Linear(6, 5)),
    "conv1d": ((4, 9), lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2)),
    "conv2d": ((4, 5, 5), lambda: nn.Conv2d(4, 3, 3, dilation=2, padding=1)),
    "conv3d": ((2, 4, 4, 4), lambda: nn.Conv3d(2, 3, 2)),
    "transposed1d": ((4, 5), lambda: nn.ConvTranspose1d(4, 3, 3, stride=2)),
    "transposed2d": ((4, 3, 3), lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2)),
    "transposed3d": ((2, 2, 2, 2), lambda: nn.ConvTranspose3d(2, 3, 2)),
}
NEURONS = {
    "ours": OTTTLIFNode,
    "LIF": sj_neuron.LIFNode,
    "parametric": sj_neuron.ParametricLIFNode,
    "own": OwnNeuron,
}


@pytest.mark.parametrize(("kind", "neuron"), [*itertools.product(SYNAPSES, NEURONS)])
def test_additions_of_each_layer_behind_each_neuron(kind, neuron):
    torch.manual_seed(0)
    shape, make = SYNAPSES[kind]
    net = nn.Sequential(NEURONS[neuron](), make())
    x_seq = 2 * torch.rand(STEPS, BATCH, *shape)
    by_hand = sum((s * touching(shape, make())).sum().item() for s in spikes_of(net[0], x_seq))
    found = analysis.synaptic_operations(net, x_seq)
    assert found == {"1": by_hand / BATCH, "total": by_hand / BATCH}
    assert not found.multiplications and not found.not_counted
    rates = analysis.firing_rates(net, x_seq)
    assert rates["mean"] == pytest.approx(torch.stack(spikes_of(net[0], x_seq)).mean().item())


def test_real_values_are_listed_as_multiplications():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), OTTTLIFNode(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))
    found = analysis.synaptic_operations(net, 3 * torch.randn(STEPS, BATCH, 4))
    assert list(found) == ["2", "total"]
    assert found.multiplications == {"0": STEPS * 4 * 6, "4": STEPS * 3 * 2}


class Attention(nn.Module):
    """Spiking attention (q kᵀ) v, with a functional projection and a real-valued gate."""

    def __init__(self, functional: bool):
        super().__init__()
        self.neurons = nn.ModuleList(OTTTLIFNode() for _ in range(3))
        self.weight = nn.Parameter(torch.randn(7, 4))
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (node(x * (i + 1)) for i, node in enumerate(self.neurons))
        if self.functional:
            return F.linear(q, self.weight) + torch.einsum("ntc,oc->nto", k + v, self.weight)
        return (q @ k.transpose(1, 2)) @ v


def test_products_of_functions_and_of_spikes_with_spikes():
    torch.manual_seed(0)
    x_seq = 2 * torch.rand(STEPS, BATCH, 5, 4)
    q, k, v = (torch.stack(spikes_of(OTTTLIFNode(), x_seq * (i + 1))) for i in range(3))
    found = analysis.synaptic_operations(Attention(True), x_seq)
    by_hand = (q.sum() + ((k + v) != 0).sum()).item() * 7 / BATCH
    assert found == {"Attention": by_hand, "total": by_hand}
    scores = torch.einsum("tnic,tnjc->tnij", q, k)  # each an overlap of spikes
    by_hand = (scores.sum() + v.sum() * 5).item() / BATCH  # scores are no spikes, v is
    found = analysis.synaptic_operations(nn.Sequential(Attention(False)), x_seq)
    assert found == {"0": by_hand, "total": by_hand}


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.neuron, self.linear = OTTTLIFNode(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        s = self.neuron(x).unsqueeze(1)
        return F.scaled_dot_product_attention(s, s, s) + self.linear(s)


def test_what_is_not_counted_is_named():
    x_seq = 2 * torch.rand(STEPS, BATCH, 5, 4)
    with pytest.warns(UserWarning, match="not counted, though spikes enter it: Unknown"):
        found = analysis.synaptic_operations(Unknown(), x_seq)
    assert "attention" in found.not_counted["Unknown"] and found["linear"] > 0


def test_a_sum_of_spikes_and_a_current_is_no_spikes():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.neuron, self.b = nn.Linear(4, 4), OTTTLIFNode(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.neuron(self.a(x)) + self.a(x))

    x_seq = 2 * torch.rand(STEPS, BATCH, 4)
    with pytest.raises(InputError, match="Residual has no layer that sees spikes"):
        analysis.synaptic_operations(Residual(), x_seq)


class NoFloat64(TorchDispatchMode):
    """A device without float64, as Apple's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in tree_leaves(out)):
            raise TypeError(f"{func}: no float64")
        return out


def test_instruments_need_no_float64():
    torch.manual_seed(0)
    net = layer.OTTTSequential(
        layer.WSConv2d(2, 4, 3), OTTTLIFNode(v_threshold=0.2), layer.Flatten(), layer.Linear(64, 3)
    )
    x_seq, target = 3 * torch.randn(STEPS, BATCH, 2, 6, 6), torch.tensor([0, 1])
    own = layer.OTTTSequential(layer.Linear(72, 9), OTTTLIFNode(), layer.Linear(9, 3))
    with NoFloat64():
        assert analysis.firing_rates(net, x_seq)["mean"] > 0
        assert analysis.synaptic_operations(net, x_seq)["total"] > 0
        assert len(analysis.latency_curve(net, x_seq, target)) == STEPS
        assert analysis.gradient_alignment(net, x_seq, target)
        assert analysis.theorem1(own, x_seq.flatten(2), target)
        with pytest.raises(TypeError, match="no float64"):
            torch.ones(1).double()
