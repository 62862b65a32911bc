"""The fast step of the neuron gives the numbers of the reference."""

import pytest
import torch
from spikingjelly.activation_based import surrogate

from sj_ottt._ops.lif import LIF, has_closed_gradient, lif_step, reference_lif_step
from sj_ottt.neuron import OTTTLIFNode

SURROGATES = [
    surrogate.Sigmoid(),
    surrogate.Sigmoid(alpha=2.0),
    surrogate.ATan(),
    surrogate.PiecewiseQuadratic(),
    surrogate.Rect(),
]


@pytest.mark.parametrize("v_reset", [None, 0.0, -0.3])
@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("tau", [2.0, 3.0])
@pytest.mark.parametrize("function", SURROGATES, ids=str)
def test_the_fast_step_is_the_reference(function, tau, decay_input, v_reset):
    """Spikes, state and gradient, bit for bit in float32 but for the surrogate's rounding."""
    torch.manual_seed(0)
    lif = LIF(tau, decay_input, 0.8, v_reset, function)
    assert has_closed_gradient(function)
    v = torch.zeros(400)
    state = {"v": v, "trace": torch.zeros(400)}
    fired = 0.0
    for _ in range(5):
        x = (3 * torch.randn(400)).requires_grad_()
        spike, v = reference_lif_step(x, v, lif)
        fast = lif_step(x, state, lif, lif.lam)
        assert torch.equal(fast, spike) and torch.equal(state["v"], v)
        g = torch.randn(400)
        ours, plain = (torch.autograd.grad(s, x, g)[0] for s in (fast, spike))
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)
        assert plain.abs().sum() > 0
        fired += spike.mean().item() / 5
    assert 0.1 < fired < 0.9


def test_a_surrogate_without_a_closed_gradient_still_works():
    node, plain = OTTTLIFNode(surrogate_function=surrogate.Erf()), OTTTLIFNode()
    assert not has_closed_gradient(node.surrogate_function)
    x = (2 * torch.rand(3, 7)).requires_grad_()
    spike, a = node(x)
    assert torch.equal(spike, plain(x)[0]) and torch.equal(a, plain.trace)
    assert torch.autograd.grad(spike.sum(), x)[0].norm() > 0


def test_a_step_never_writes_into_the_state_it_was_given():
    """A monitor that keeps `node.v` of every step keeps different tensors."""
    node = OTTTLIFNode(trace_dtype="packed")
    node(torch.full((4,), 0.7))
    v, stored = node.v, node.trace
    before = v.clone(), stored.clone()
    node(torch.full((4,), 0.7))
    assert torch.equal(v, before[0]) and torch.equal(stored, before[1])
    assert not torch.equal(node.v, v) and not torch.equal(node.trace, stored)
