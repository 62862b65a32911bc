"""Average pooling that keeps nothing."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.measure import peak_bytes
from sj_ottt import functional


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


@pytest.mark.parametrize("kernel", [41, 47, 55, 61])
def test_a_large_pooling_repeats_each_gradient_where_it_belongs(kernel):
    x = torch.randn(2, 3, 2 * kernel, 2 * kernel, requires_grad=True)
    g = torch.randn(2, 3, 2, 2)
    ours, theirs = (
        torch.autograd.grad(pool(x, kernel), x, g)[0]
        for pool in (functional.avg_pool2d, F.avg_pool2d)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("of_grad", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_x", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_lies_in_memory_as_the_input_does(of_x, of_grad):
    """Else the neuron before it would have to reorder it, four times as large."""
    x = torch.randn(2, 5, 9, 6).contiguous(memory_format=of_x).requires_grad_()
    seen = []
    y = x * 1.0
    y.register_hook(seen.append)
    g = torch.randn(2, 5, 4, 3).contiguous(memory_format=of_grad)
    functional.avg_pool2d(y, 2).backward(g)
    assert seen[0].is_contiguous(memory_format=of_x)
    expected = F.avg_pool2d(x, 2)
    assert torch.equal(x.grad, torch.autograd.grad(expected, x, g)[0])
