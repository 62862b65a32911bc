"""Scaled weight standardization."""

import pytest
import torch

from sj_ottt import functional


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
