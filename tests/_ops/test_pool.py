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
