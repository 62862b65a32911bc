"""SLTT: the spike in place of the trace."""

from functools import partial

import pytest
import torch
from spikingjelly.activation_based import neuron as sj_neuron
from torch import nn

from sj_ottt import InputError, set_rule
from sj_ottt.learning.rules import rule_of
from sj_ottt.neuron import OTTTLIFNode, SLTTLIFNode
from tests.learning.rules.networks import chain, gradients, plain_loop
from tests.networks import largest_error


@pytest.mark.parametrize("v_reset", [None, 0.0])
@pytest.mark.parametrize("decay_input", [False, True])
def test_sltt_is_spikingjellys(decay_input, v_reset):
    """Their node, our node in plain PyTorch's chain, and a switched OTTT network, in float64."""
    kwargs = {"tau": 1.7, "decay_input": decay_input, "v_reset": v_reset}
    theirs = plain_loop(chain(partial(sj_neuron.SLTTLIFNode, **kwargs), nn.Sequential))
    ours = plain_loop(chain(partial(SLTTLIFNode, **kwargs), nn.Sequential))
    assert largest_error(ours, theirs) < 1e-12
    for form in ("float32", "bfloat16"):
        net = chain(partial(OTTTLIFNode, **kwargs, trace_dtype=form))
        assert largest_error(gradients(set_rule(net, "sltt")), theirs) < 1e-12
        assert largest_error(gradients(set_rule(net, "ottt")), theirs) > 1e-2
    packed = set_rule(chain(partial(SLTTLIFNode, **kwargs)), "sltt")
    assert largest_error(gradients(packed), theirs) < 1e-12


def test_sltt_keeps_a_byte_for_any_tau():
    net = chain(partial(OTTTLIFNode, trace_dtype="packed"))
    set_rule(net, "sltt")
    net[1].tau = 3.0
    pair = net[1](torch.rand(4, 5).double() * 3)
    assert pair.trace.stored.dtype == torch.uint8
    assert torch.equal(pair.trace.decode(torch.double), pair.spike)
    spike, trace = net[1](torch.rand(4, 5).double() * 3)
    assert 0 < spike.mean() < 1 and torch.equal(trace, spike)
    with pytest.raises(InputError, match="needs tau=2"):
        set_rule(net, "ottt")
    assert rule_of(net).name == "sltt"  # nothing was changed


def test_slttlifnode_of_any_tau_takes_the_rules_that_store_no_decaying_trace():
    node = partial(SLTTLIFNode, tau=1.5, decay_input=False, v_reset=None)
    same = partial(OTTTLIFNode, tau=1.5)
    for rule in ("bptt", "ndot"):
        assert (
            largest_error(gradients(chain(node), rule=rule), gradients(chain(same), rule=rule))
            < 1e-12
        )
    with pytest.raises(InputError, match="trace_dtype"):
        set_rule(chain(node), "ottt")
    found = gradients(chain(partial(node, trace_dtype="float32")), rule="ottt")
    assert largest_error(found, gradients(chain(same))) < 1e-12
