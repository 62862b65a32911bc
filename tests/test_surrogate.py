"""The multi-Gaussian surrogate: its values, its integral, and its place in SpikingJelly's nodes."""

import math

import pytest
import torch
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate as sj_surrogate

from sj_ottt import InputError, surrogate
from sj_ottt.neuron import OTTTLIFNode


def gradient(fn, x):
    x = x.clone().requires_grad_()
    fn(x).sum().backward()
    return x.grad


def test_check_values():
    x = torch.tensor([0.0, 0.3, 1.0, 0.7633], dtype=torch.float64)
    expected = torch.tensor([0.73185, 0.43143, -0.02526, 0.0], dtype=torch.float64)
    g = gradient(surrogate.MultiGaussian(), x)
    torch.testing.assert_close(g, expected, rtol=0, atol=6e-6)
    torch.testing.assert_close(gradient(surrogate.MultiGaussian(), -x), g)
    # The zero crossing lies between its neighbours in the last digit.
    around = gradient(surrogate.MultiGaussian(), torch.tensor([0.7632, 0.7634]).double())
    assert around[0] > 0 > around[1]


def normal(x, mean, sd):
    return math.exp(-((x - mean) ** 2) / (2 * sd**2)) / (sd * math.sqrt(2 * math.pi))


@pytest.mark.parametrize("shape", [(0.5, 0.15, 0.3, 6.0), (0.7, 0.4, 0.5, 2.0)])
def test_gradient_is_the_sum_of_normal_densities(shape):
    scale, h, sigma, k = shape
    fn = surrogate.MultiGaussian(*shape)
    x = 0.15 * torch.arange(-20, 21, dtype=torch.float64)
    expected = [
        scale
        * (
            (1 + h) * normal(v, 0, sigma)
            - h * normal(v, sigma, k * sigma)
            - h * normal(v, -sigma, k * sigma)
        )
        for v in x.tolist()
    ]
    torch.testing.assert_close(gradient(fn, x), torch.tensor(expected).double())
    assert torch.equal(fn(x), (x > 0).double())  # not at 0, which is among them
    assert (x == 0).any()
    # A factor on the output reaches the input.
    torch.testing.assert_close(gradient(lambda v: 3 * fn(v), x), 3 * gradient(fn, x))


def test_the_primitive_has_this_gradient():
    fn = surrogate.MultiGaussian()
    x = torch.linspace(-2, 2, 33, dtype=torch.float64)
    expected = gradient(fn, x)
    fn.set_spiking_mode(False)
    torch.testing.assert_close(gradient(fn, x), expected)
    ends = fn(torch.tensor([-50.0, 50.0]).double())
    torch.testing.assert_close(ends, torch.tensor([0.0, 0.5 * 0.85]).double())


def test_it_serves_the_nodes_and_says_what_it_is():
    fn = surrogate.MultiGaussian(sigma=0.4)
    assert isinstance(fn, sj_surrogate.SurrogateFunctionBase) and "sigma=0.4" in repr(fn)
    assert surrogate.ATan is sj_surrogate.ATan
    for node in (sj_neuron.LIFNode(surrogate_function=fn), OTTTLIFNode(surrogate_function=fn)):
        x = torch.tensor([[0.9, 1.9, 2.2]], requires_grad=True)
        out = node(x)
        (out[0] if isinstance(out, list) else out).sum().backward()
        assert x.grad.abs().min() > 0
    with pytest.raises(InputError, match="sigma=0"):
        surrogate.MultiGaussian(sigma=0.0)
