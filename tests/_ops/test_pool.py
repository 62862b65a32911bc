"""Average pooling that keeps nothing."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import surrogate

from benchmarks.measure import peak_bytes
from sj_ottt import functional
from sj_ottt._ops import pool
from sj_ottt._ops.lif import LIF, LIFState
from sj_ottt._ops.scan import lif_scan


@pytest.mark.parametrize(("size", "kernel"), [((8, 6), 2), ((9, 7), 2), ((9, 9), 3)])
def test_average_pooling_without_its_input(size, kernel):
    x = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    y, expected = functional.avg_pool2d(x, kernel), F.avg_pool2d(x, kernel)
    assert torch.equal(y, expected)
    g = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, x, g)[0], torch.autograd.grad(expected, x, g)[0]
    )
    assert peak_bytes(lambda: functional.avg_pool2d(x, kernel)) == y.nbytes


def _pooled_neurons(steps, memory_format, pool, v_reset=None):
    """Currents through a neuron, K steps as a chunk has them, and through a pooling."""
    torch.manual_seed(0)
    x = torch.randn(steps * 3, 4, 8, 6, dtype=torch.double).to(memory_format=memory_format)
    x.requires_grad_()
    lif = LIF(2.0, False, 0.5, v_reset, surrogate.Sigmoid())
    zero = torch.zeros_like(x[:3].detach())
    state = LIFState(v=zero, trace=zero.to(torch.uint8))
    spike, _ = lif_scan(x.unflatten(0, (steps, 3)), state, lif, 0.5)
    return x, spike, pool(spike.flatten(0, 1))


@pytest.mark.parametrize("v_reset", [None, 0.0])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_neuron_takes_the_gradient_of_a_pooling_in_parts(
    steps, memory_format, v_reset, monkeypatch
):
    monkeypatch.setattr(pool, "_PART", 2 * 4 * 8 * 6)  # two samples
    made = []
    monkeypatch.setattr(pool.Repeated, "made", lambda self: made.append(self))
    mean = partial(functional.avg_pool2d, kernel_size=2)
    x, _, y = _pooled_neurons(steps, memory_format, mean, v_reset)
    g = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, x, g)
    x, _, y = _pooled_neurons(steps, memory_format, partial(F.avg_pool2d, kernel_size=2), v_reset)
    torch.testing.assert_close(found, torch.autograd.grad(y, x, g)[0], rtol=1e-14, atol=0)
    assert found.abs().max() > 0
    assert not made


def test_whoever_looks_at_that_gradient_sees_an_ordinary_one():
    mean, theirs = (partial(f, kernel_size=2) for f in (functional.avg_pool2d, F.avg_pool2d))
    expected, seen = [], []
    for found, pooling in ((expected, theirs), (seen, mean)):
        x, spike, y = _pooled_neurons(2, torch.contiguous_format, pooling)
        spike.retain_grad()
        spike.register_hook(lambda g, found=found: found.append(2 * g))
        y.square().sum().backward()
        found += [spike.grad, x.grad]
        x, spike, y = _pooled_neurons(2, torch.contiguous_format, pooling)
        (y.sum() + spike.square().sum()).backward()  # added to another one
        found.append(x.grad)
    for ours, other in zip(seen, expected, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, other, rtol=1e-14, atol=0)


def test_no_gradient_as_large_as_the_layer_is_made_for_a_pooled_neuron(monkeypatch):
    monkeypatch.setattr(pool, "_PART", 1)  # sample by sample
    peaks = []
    for pooling in (functional.avg_pool2d, F.avg_pool2d):
        x, _, y = _pooled_neurons(4, torch.contiguous_format, partial(pooling, kernel_size=2))
        g = torch.ones_like(y)
        peaks.append(peak_bytes(lambda x=x, y=y, g=g: torch.autograd.grad(y, x, g)) / x.nbytes)
    ours, theirs = peaks
    assert ours < 1.6
    assert theirs >= 2
