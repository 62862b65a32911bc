"""Standardized weights in evaluation."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sj_ottt import InputError, layer, learning
from sj_ottt.neuron import OTTTLIFNode
from tests.every_layer import network, train
from tests.networks import largest_error


def test_standardized_weight_is_kept_in_evaluation_until_it_changes():
    conv = layer.WSConv2d(3, 4, 3).eval()
    with torch.no_grad():
        first = conv.get_weight()
        assert conv.get_weight() is first
        conv.weight.mul_(-2)
        second = conv.get_weight()
        assert second is not first and (second + first).abs().max() < 1e-3
        conv.load_state_dict({k: v + 0.5 for k, v in conv.state_dict().items()})
        assert conv.get_weight() is not second
        conv.weight.data.neg_()  # invisible to PyTorch's count of changes
        stale = conv.get_weight()
        assert (conv.train().get_weight() + stale).abs().max() < 1e-5
        assert conv.double().get_weight().dtype == torch.double
    assert conv.get_weight().requires_grad
    with torch.no_grad():
        conv.get_weight()
    assert copy.deepcopy(conv)._kept is None and pickle.loads(pickle.dumps(conv))._kept is None


def test_evaluation_under_inference_mode_does_not_spoil_training():
    net = network("packed")
    x_seq = torch.randn(2, 3, 2, 13, 13).double()
    learning.predict(net, x_seq)
    expected = train(network("packed"))
    assert largest_error(train(net), expected) < 1e-12


def test_a_synapse_without_gradients_is_refused_where_what_comes_before_learns():
    pair = OTTTLIFNode()((2 * torch.rand(2, 3)).requires_grad_())
    with torch.no_grad(), pytest.raises(InputError, match="what comes before would not learn"):
        layer.Linear(3, 4)(pair)
    with torch.no_grad():
        assert layer.Linear(3, 4)(pair.detach()).shape == (2, 4)


@pytest.mark.parametrize("before_learns", [False, True])
@pytest.mark.parametrize("module", [layer.Linear(3, 4), nn.Linear(3, 4)])
def test_the_older_checkpoint_round_a_synapse_is_refused(module, before_learns):
    """PyTorch looks for tensors that learn among its arguments, and a pair is none."""
    pair = OTTTLIFNode()((2 * torch.rand(2, 3)).requires_grad_(before_learns))
    with pytest.raises(InputError, match="leave the checkpoint out, or give use_reentrant=False"):
        checkpoint(module, pair, use_reentrant=True)
    found, expected = checkpoint(module, pair, use_reentrant=False), module(pair)
    grads = [torch.autograd.grad(y.square().sum(), module.parameters()) for y in (found, expected)]
    torch.testing.assert_close(*grads)
