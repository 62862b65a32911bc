"""NDOT: the trace decays by the ratio of the neuron's own membranes."""

import copy
from functools import partial

import pytest
import torch

from sj_ottt import layer, set_rule
from sj_ottt._ops.ndot import NDOTState, advance_ndot
from sj_ottt.neuron import NDOTLIFNode
from tests.learning.rules.networks import STEPS, chain, gradients
from tests.networks import largest_error, relative_error


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        # e = v[t] / v[t-1] = 1/2 (from 0), -1/2, -3 -> -1/2, 0, 1/2 (from 0); one step late
        ("paper", [1.0, 0.5, 0.75, -0.375, 0.0, 0.5 * 0.0 + 1.0]),
        # q = v - s = -0.6, -0.2, -0.4, 0, 0.1, -0.7; e = 1/3, 2 -> 1/2, 0, inf -> 1/2, -7 -> -1/2
        ("code", [1.0, 1 / 3, 1 / 6 + 1, 0.0, 0.0, 1.0]),
    ],
)
def test_ndot_by_hand(variant, expected):
    v = torch.tensor([0.4, -0.2, 0.6, 0.0, 0.1, 0.3]).double()
    spike = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]).double()
    zero = torch.zeros(()).double()
    state, found, before = NDOTState(zero, zero), [], zero
    for t in range(6):
        constants = {"lam": 0.5, "v_threshold": 1.0, "variant": variant}
        state = advance_ndot(state, spike[t], before, v[t], **constants)
        before = v[t]
        found.append(state.trace)
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected).double())


@pytest.mark.parametrize(("variant", "expected"), [("paper", 0.0), ("code", 0.5)])
def test_ndot_of_a_neuron_without_a_membrane(variant, expected):
    """0 / 0 is 0 in variant "paper" and lambda in variant "code"."""
    zero, one = torch.zeros(1), torch.ones(1)
    state = NDOTState(trace=one, memory=one if variant == "paper" else zero)
    constants = {"lam": 0.5, "v_threshold": 1.0, "variant": variant}
    for _ in range(2 if variant == "paper" else 1):  # its ratio is applied one step later
        state = advance_ndot(state, zero, zero, zero, **constants)
    assert state.trace.item() == expected


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_ndot_takes_its_trace_to_the_weight(variant):
    torch.manual_seed(2)
    node, linear = NDOTLIFNode(variant=variant), layer.Linear(7, 3).double()
    net = layer.OTTTSequential(node, linear)
    expected, states = torch.zeros(3, 7).double(), []
    for _ in range(STEPS):
        x, g = torch.randn(4, 7).double() + 0.5, torch.randn(4, 3).double()
        (net(x) * g).sum().backward()
        states.append(node.trace)
        expected += g.t() @ node.trace.trace
    assert relative_error(linear.weight.grad, expected) < 1e-12
    # The neuron's own steps lead to the trace of the function.
    again = copy.deepcopy(node)
    assert isinstance(again.trace, NDOTState) and again.rule.variant == variant
    if variant == "paper":
        left = [s.memory.abs().sum() / s.trace.abs().sum() for s in states]
        assert all(0.2 < share <= 0.5 for share in left)
    switched = set_rule(chain(), "ndot", variant)
    assert switched[1].rule.variant == variant and not isinstance(switched[1], NDOTLIFNode)
    assert (
        largest_error(gradients(switched), gradients(chain(partial(NDOTLIFNode, variant=variant))))
        < 1e-12
    )


def test_switching_keeps_ndots_variant_unless_told():
    net = set_rule(chain(), "ndot", "code")
    found = gradients(net)
    assert largest_error(gradients(set_rule(set_rule(net, "ottt"), "ndot")), found) < 1e-12
    assert largest_error(gradients(set_rule(net, "ndot", "paper")), found) > 1e-3
