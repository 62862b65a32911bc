"""Scaled weight standardization."""

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
