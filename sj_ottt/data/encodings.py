"""How a still image becomes a sequence, for networks that take it piece by piece."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sj_ottt.data.saccade import Saccade

__all__ = ["ENCODINGS", "EVENTS_FROM_IMAGE", "OF_INTENSITIES", "STEPS_FROM_IMAGE"]


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


ENCODINGS: dict[str, Callable[..., Callable[[Tensor], Tensor] | None]] = {
    "direct": lambda steps, training=False: None,
    "poisson": lambda steps, training=False: partial(_poisson, steps=steps),
    "rows": lambda steps, training=False: _rows,
    "pixels": lambda steps, training=False: _pixels,
    "permuted": lambda steps, training=False: _permuted,
    # Of a letter, the mirror image is none: whether to flip is the augmentation's to say.
    "saccade": lambda steps, training=False: Saccade(steps, flip=0, random=training),
}
"""Name → T and whether it is for training → what makes a sequence of an image [C, H, W].

- ``direct``: nothing; the image itself is shown at each of T steps.
- ``poisson``: T frames [T, C, H, W] of spikes, each with the pixel's intensity as its probability.
- ``rows``: a row a step, [H, W · C].
- ``pixels``: a pixel a step, row by row, [H · W, C] (sequential MNIST).
- ``permuted``: the same in one fixed random order (permuted sequential MNIST).
- ``saccade``: T frames [T, 2, H, W] of the events that a camera sees which moves over the image,
  others each time in training, see `Saccade`.
"""

STEPS_FROM_IMAGE = frozenset({"rows", "pixels", "permuted"})
"""Those whose number of steps follows from the image's size, whatever T is."""

OF_INTENSITIES = frozenset({"poisson", "saccade"})
"""Those that take intensities in [0, 1], not standardized images."""

EVENTS_FROM_IMAGE = frozenset({"saccade"})
"""Those that make frames of events: a network that learned from them takes recordings too."""
