"""Scaled weight standardization."""

import pytest
import torch

from sj_ottt import functional
from sj_ottt._ops import standardize


def test_scaled_weight_standardization_against_its_definition():
    torch.manual_seed(0)
    w = torch.randn(3, 2, 3, 3, dtype=torch.double)
    gain = torch.rand(3, 1, 1, 1, dtype=torch.double)
    expected = torch.empty_like(w)
    for i in range(3):
        values = w[i].flatten()
        mean = values.sum() / 18
        var = ((values - mean) ** 2).sum() / 17  # unbiased
        expected[i] = gain[i] * (w[i] - mean) / (var * 18 + 1e-4) ** 0.5
    torch.testing.assert_close(functional.scaled_weight_standardization(w, gain, 1e-4), expected)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 20)])
def test_autocast_does_not_reach_it(half, shape):
    torch.manual_seed(0)
    w, gain = torch.randn(shape).requires_grad_(), torch.rand(8, *[1] * (len(shape) - 1))
    gain.requires_grad_()
    grad = torch.randn(shape)

    def run(enabled: bool) -> list[torch.Tensor]:
        with torch.autocast("cpu", half, enabled=enabled):
            made = functional.scaled_weight_standardization(w, gain, 1e-4)
            return [made, *torch.autograd.grad(made, (w, gain), grad)]

    for cast, plain in zip(run(True), run(False), strict=True):
        assert cast.dtype == torch.float32 and torch.equal(cast, plain)


@pytest.mark.parametrize("with_gain", [True, False])
@pytest.mark.parametrize("block", [1, 1 << 17])
def test_the_gradient_is_that_of_the_definition(monkeypatch, block, with_gain):
    """Block by block, or all at once; by PyTorch's own differentiation."""
    monkeypatch.setattr(standardize, "_BLOCK", block)
    torch.manual_seed(0)
    w = torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    gain = (1 + torch.rand(6, 1, 1, 1, dtype=torch.float64)).requires_grad_()
    var, mean = torch.var_mean(w, (1, 2, 3), keepdim=True)
    expected = (w - mean) / torch.sqrt(var * 36 + 1e-4) * (gain if with_gain else 1)
    made = standardize.scaled_weight_standardization(w, gain if with_gain else None, 1e-4)
    wanted = (w, gain) if with_gain else (w,)
    grad = torch.randn_like(w)
    for found, right in zip(
        torch.autograd.grad(made, wanted, grad),
        torch.autograd.grad(expected, wanted, grad),
        strict=True,
    ):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)
