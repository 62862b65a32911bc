"""How a still image becomes a sequence, for networks that take it piece by piece."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

__all__ = ["ENCODINGS", "STEPS_FROM_IMAGE"]


def _poisson(image: Tensor, steps: int) -> Tensor:
    return (torch.rand(steps, *image.shape) < image).float()


def _pixels(image: Tensor) -> Tensor:
    return image.flatten(1).t()


def _rows(image: Tensor) -> Tensor:
    return image.permute(1, 2, 0).flatten(1)


def _permuted(image: Tensor) -> Tensor:
    pixels = _pixels(image)
    # One permutation for ever: accuracies are comparable only where it is the same.
    order = np.random.default_rng(0).permutation(len(pixels))
    return pixels[torch.from_numpy(order)]


ENCODINGS: dict[str, Callable[[int], Callable[[Tensor], Tensor] | None]] = {
    "direct": lambda steps: None,
    "poisson": lambda steps: partial(_poisson, steps=steps),
    "rows": lambda steps: _rows,
    "pixels": lambda steps: _pixels,
    "permuted": lambda steps: _permuted,
}
"""Name → T → what makes a sequence of an image [C, H, W].

- ``direct``: nothing; the image itself is shown at each of T steps.
- ``poisson``: T frames [T, C, H, W] of spikes, each with the pixel's intensity as its probability.
- ``rows``: a row a step, [H, W · C].
- ``pixels``: a pixel a step, row by row, [H · W, C] (sequential MNIST).
- ``permuted``: the same in one fixed random order (permuted sequential MNIST).
"""

STEPS_FROM_IMAGE = frozenset({"rows", "pixels", "permuted"})
"""Those whose number of steps follows from the image's size, whatever T is."""
