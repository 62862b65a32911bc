"""Layers and chains: what each does with spike and trace, and what a chain refuses."""

import pytest
import torch
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import nn

from sj_ottt import InputError, layer, learning
from sj_ottt._ops import blocks
from sj_ottt.neuron import OTTTLIFNode


def pair(*shape):
    return [torch.randint(0, 2, shape).float(), torch.rand(shape)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (layer.AvgPool2d(2), sj_layer.AvgPool2d(2)),
        (layer.MaxPool2d(2), sj_layer.MaxPool2d(2)),
        (layer.AdaptiveAvgPool2d(2), sj_layer.AdaptiveAvgPool2d(2)),
        (layer.Flatten(), sj_layer.Flatten()),
        (layer.Scale(2.74), lambda x: 2.74 * x),
    ],
)
def test_maps_act_on_spike_and_trace_alike(ours, theirs):
    x = pair(2, 3, 4, 4)
    for out, expected in zip(ours(x), map(theirs, x), strict=True):
        torch.testing.assert_close(out, expected)
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))


def test_layers_are_spikingjellys():
    ours = set(layer.__all__) & vars(layer).keys()
    for name in ours - {"Feedback", "Pair", "Scale", "OTTTSequential"}:
        assert issubclass(getattr(layer, name), getattr(sj_layer, name))
    assert issubclass(layer.OTTTSequential, nn.Sequential)


@pytest.mark.parametrize("cls", [layer.Dropout, layer.Dropout2d])
def test_dropout_draws_one_mask_per_sequence(cls):
    torch.manual_seed(0)
    drop = cls(0.5)
    ones = torch.ones(4, 16, 3, 3)
    first = drop([ones, 2 * ones])
    torch.testing.assert_close(2 * first[0], first[1])
    assert 0 < (first[0] == 0).float().mean() < 1
    torch.testing.assert_close(drop([ones, ones])[0], first[0])  # the next time step
    drop.reset()
    assert not torch.equal(drop([ones, ones])[0], first[0])
    assert drop([ones[:2], ones[:2]])[0].shape[0] == 2  # another batch size without a reset
    torch.testing.assert_close(drop.eval()(ones), ones)


def test_dropout_in_a_chain_keeps_trace_the_trace_of_the_spikes():
    torch.manual_seed(0)
    chain = layer.OTTTSequential(OTTTLIFNode(), layer.Dropout(0.5))
    trace = 0
    for _ in range(4):
        spike, a = chain(2 * torch.rand(3, 8))
        trace = 0.5 * trace + spike
        torch.testing.assert_close(a, trace)


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(0.2),
        nn.Sequential(nn.Flatten(), nn.Dropout2d(0.1)),
    ],
)
def test_dropouts_of_pytorch_are_refused_at_build_time(module):
    with pytest.raises(InputError, match="Dropout"):
        layer.OTTTSequential(nn.Linear(4, 4), OTTTLIFNode(), module)
    layer.OTTTSequential(nn.Linear(4, 4), module, OTTTLIFNode())  # on a tensor all is well


def test_unfit_modules_that_come_later_are_refused_when_a_pair_reaches_them():
    chain = layer.OTTTSequential(nn.Linear(4, 4), OTTTLIFNode()).append(nn.Dropout(0.2))
    with pytest.raises(InputError, match="Dropout"):
        chain(torch.rand(2, 4))
    chain.eval()(torch.rand(2, 4))


def test_a_block_with_neurons_that_hand_on_no_trace_is_refused():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(4, 4), sj_neuron.LIFNode())

        def forward(self, x):
            return x + self.branch(x)

    with pytest.raises(
        InputError, match=r"Residual has a part .* no trace, LIFNode: use sj_ottt.convert"
    ):
        layer.OTTTSequential(OTTTLIFNode(), Residual())


def test_nested_chains_and_final_lif():
    torch.manual_seed(0)
    flat = [nn.Linear(4, 5), OTTTLIFNode(), nn.Linear(5, 5), OTTTLIFNode(), nn.Linear(5, 2)]
    nested = layer.OTTTSequential(
        nn.Sequential(flat[0], flat[1]), nn.Sequential(*flat[2:]), sj_neuron.LIFNode(v_reset=None)
    )
    whole = layer.OTTTSequential(*flat, sj_neuron.LIFNode(v_reset=None))
    x = 2 * torch.rand(3, 4)
    torch.testing.assert_close(nested(x), (learning.reset_state(whole), whole(x))[1])


@pytest.mark.parametrize("module", [nn.PReLU(), nn.LayerNorm(3), sj_layer.SynapseFilter(tau=2.0)])
def test_what_is_not_linear_behind_a_neuron_is_refused(module):
    """Neither the spike nor the trace gives such a module's parameters the gradient of the rule."""
    chain = layer.OTTTSequential(OTTTLIFNode(), module)
    name = type(module).__name__
    with pytest.raises(
        InputError, match=rf"(was called in {name} on|{name}\) remembers its input)"
    ):
        chain(torch.rand(2, 3))
    chain.eval()(torch.rand(2, 3))


class Branch(nn.Module):
    """PyTorch's own layers in a forward of one's own; batch norm sees a current."""

    def __init__(self):
        super().__init__()
        self.synapse, self.norm = nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.synapse(x).mul(2))


def test_a_module_of_ones_own_runs_once_on_the_pair():
    torch.manual_seed(0)
    chain = layer.OTTTSequential(OTTTLIFNode(trace_dtype="float32"), Branch()).double()
    alike = Branch().double()
    alike.load_state_dict(chain[1].state_dict())
    for _ in range(3):
        x = 2 * torch.rand(5, 3).double()
        pair = chain[0](x)
        chain[1](pair).square().sum().backward()
    assert int(chain[1].norm.num_batches_tracked) == 3
    # Value of the spike, gradient of the trace: the same by hand, for the last step.
    chain.zero_grad()
    chain[1](pair).square().sum().backward()
    value = nn.functional.linear(pair[0].detach(), alike.synapse.weight.detach())
    traced = nn.functional.linear(pair[1], alike.synapse.weight)
    alike.norm(2 * (value + traced - traced.detach())).square().sum().backward()
    for ours, theirs in zip(chain[1].parameters(), alike.parameters(), strict=True):
        assert theirs.grad.norm() > 0
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


def test_evaluation_is_an_ordinary_chain():
    chain = layer.OTTTSequential(layer.Conv2d(2, 3, 3), OTTTLIFNode(), layer.Flatten()).eval()
    assert chain(torch.rand(2, 2, 5, 5)).shape == (2, 27)


@pytest.mark.parametrize("who", ["synapse", "neuron", "neuron before", "nobody"])
def test_a_current_that_a_hook_sees_is_not_written_into(who, monkeypatch):
    net = layer.OTTTSequential(layer.Linear(5, 4), OTTTLIFNode(), layer.Linear(4, 3))
    seen, given = [], []
    monkeypatch.setattr(
        "sj_ottt.layer.sequential.give_away", lambda x: (given.append(x), blocks.give_away(x))
    )
    if who == "synapse":
        net[0].register_forward_hook(lambda m, args, out: seen.append(out))
    elif who == "neuron":
        net[1].register_forward_hook(lambda m, args, out: seen.append(args[0]))
    elif who == "neuron before":
        net[1].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    x = 5 * torch.rand(6, 5)
    net(x)
    current = torch.nn.functional.linear(x, net[0].weight, net[0].bias)
    if who == "nobody":  # the neuron has its membrane there
        assert (current >= 1).any()
        assert torch.allclose(given[0], current - (current >= 1).float())
    else:
        assert not given and torch.allclose(seen[0], current)
