"""Layers and chains: what each does with spike and trace, and what a chain refuses."""

import pytest
import torch
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import nn

from sj_ottt import InputError, layer, learning
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
        nn.Sequential(nn.ReLU(), nn.Dropout2d(0.1)),
        sj_layer.SynapseFilter(tau=2.0),
    ],
)
def test_unfit_modules_are_refused_at_build_time(module):
    with pytest.raises(InputError, match=r"Dropout|SynapseFilter"):
        layer.OTTTSequential(nn.Linear(4, 4), OTTTLIFNode(), module)
    layer.OTTTSequential(nn.Linear(4, 4), module, OTTTLIFNode())  # on a tensor all is well


def test_unfit_modules_that_come_later_are_refused_when_a_pair_reaches_them():
    chain = layer.OTTTSequential(nn.Linear(4, 4), OTTTLIFNode()).append(nn.Dropout(0.2))
    with pytest.raises(InputError, match="Dropout"):
        chain(torch.rand(2, 4))
    chain.eval()(torch.rand(2, 4))


def test_a_stateful_block_is_refused_instead_of_run_twice():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(4, 4), sj_neuron.LIFNode())

        def forward(self, x):
            return x + self.branch(x)

    with pytest.raises(InputError, match="Residual keeps a state"):
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


def test_other_parametrised_modules_run_on_both():
    """A module that is no single product: value at the spike, gradient at the trace."""
    torch.manual_seed(0)
    module = nn.PReLU(init=0.3)
    chain = layer.OTTTSequential(module)
    spike, trace = pair(2, 3)
    spike.requires_grad_()
    y = chain([spike, trace - 0.5])
    torch.testing.assert_close(y, spike)
    y.sum().backward()
    torch.testing.assert_close(module.weight.grad, (trace - 0.5).clamp(max=0).sum().view(1))


def test_evaluation_is_an_ordinary_chain():
    chain = layer.OTTTSequential(layer.Conv2d(2, 3, 3), OTTTLIFNode(), layer.Flatten()).eval()
    assert chain(torch.rand(2, 2, 5, 5)).shape == (2, 27)
