"""The product whose weight gradient takes the trace."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_ottt import functional, layer, neuron
from sj_ottt._ops import synapse as ops
from sj_ottt._ops.trace import Trace


def test_one_product_per_synapse_and_step(monkeypatch):
    """SpikingJelly's chain computes each synapse twice a step; ours computes it once."""
    calls = []
    real = ops._TracedProduct.forward
    monkeypatch.setattr(
        ops._TracedProduct,
        "forward",
        staticmethod(lambda ctx, *args: calls.append(1) or real(ctx, *args)),
    )
    chain = layer.OTTTSequential(neuron.OTTTLIFNode(), layer.Conv2d(2, 3, 3), nn.ReLU())
    convolutions = []
    chain[1].register_forward_hook(lambda *_: convolutions.append(1))
    chain(torch.rand(2, 2, 6, 6))
    assert len(calls) == len(convolutions) == 1


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_traced_product_is_the_ordinary_one_when_the_trace_is_the_spike(dim, groups):
    """â = s makes the traced product an ordinary convolution: all gradients agree."""
    torch.manual_seed(dim)
    space = (7, 6, 5)[:dim]
    x = torch.randn(2, 4, *space, dtype=torch.double, requires_grad=True)
    w = torch.randn(6, 4 // groups, *(3,) * dim, dtype=torch.double, requires_grad=True)
    b = torch.randn(6, dtype=torch.double, requires_grad=True)
    conv = (F.conv1d, F.conv2d, F.conv3d)[dim - 1]
    args = ((2,) * dim, (1,) * dim, (1,) * dim, groups)
    y, expected = functional.traced_conv(x, x.detach(), w, b, *args), conv(x, w, b, *args)
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, (x, w, b), g),
        torch.autograd.grad(expected, (x, w, b), g),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_traced_linear_on_more_than_two_dimensions():
    x = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)
    w = torch.randn(5, 4, dtype=torch.double, requires_grad=True)
    b = torch.randn(5, dtype=torch.double, requires_grad=True)
    y, expected = functional.traced_linear(x, x.detach(), w, b), F.linear(x, w, b)
    g = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, (x, w, b), g),
        torch.autograd.grad(expected, (x, w, b), g),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


class Sink:
    """Adds up what the products of several steps do not add themselves."""

    def __init__(self):
        self.total, self.others = None, 0

    def add(self, grad_weight, grad_bias):
        if self.total is None:
            self.total = grad_weight
        elif grad_weight is not self.total:
            self.total += grad_weight
            self.others += 1


@pytest.mark.parametrize("half", [False, True])
def test_a_matrix_product_adds_to_the_sum_of_the_steps(half):
    """But not in half precision, whose sum is in float32."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if half else torch.float64
    sink, expected = Sink(), 0.0
    w = torch.randn(5, 4, dtype=dtype, requires_grad=True)
    for _ in range(4):
        x, g = torch.randn(3, 4, dtype=dtype), torch.randn(3, 5, dtype=dtype)
        y = ops.traced_product(ops.Product(), x, Trace(2 * x), w, None, sink)
        y.backward(g)
        sink.total = sink.total.float() if half else sink.total
        expected = expected + 2 * g.t() @ x
    assert sink.others == (3 if half else 0) and w.grad is None
    tolerance = 0.1 if half else 1e-12
    torch.testing.assert_close(sink.total, expected.to(sink.total), rtol=0, atol=tolerance)
