"""Transforms of event frames [T, 2, H, W] and of images [C, H, W].

Each draws once per sample, the same for all T steps, and only from torch's global generator, so
that a run resumed with that generator's state repeats the same draws.
"""

import torch
from torchvision.transforms import Compose, Normalize

from sj_ottt.errors import InputError

__all__ = ["Compose", "Cutout", "Normalize", "NormalizeFrames", "RandomFlip", "RandomShift"]


class RandomShift:
    """Move a whole recording by a few pixels, filling with zeros.

    Args:
        max_shift: Largest shift in pixels; each axis draws uniformly from
            ``-max_shift .. max_shift``.
    """

    def __init__(self, max_shift: int) -> None:
        if isinstance(max_shift, bool) or not isinstance(max_shift, int) or max_shift < 0:
            raise InputError(f"max_shift={max_shift!r}: give a whole number of pixels, 0 or more")
        self.max_shift = max_shift

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Return ``frames`` [..., H, W] shifted, as a new tensor of the same shape."""
        limit = self.max_shift
        dy, dx = torch.randint(-limit, limit + 1, (2,)).tolist()
        height, width = frames.shape[-2:]
        shifted = torch.zeros_like(frames)
        if abs(dy) < height and abs(dx) < width:
            to_rows, from_rows = _overlap(dy, height)
            to_columns, from_columns = _overlap(dx, width)
            shifted[..., to_rows, to_columns] = frames[..., from_rows, from_columns]
        return shifted

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.max_shift})"


class RandomFlip:
    """Mirror a sample left to right, every second time."""

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Return ``frames`` [..., H, W], or a mirrored copy."""
        return frames.flip(-1) if torch.rand(()) < 0.5 else frames

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Cutout:
    """Blank a square at a random place; what reaches over the edge is lost.

    Args:
        side: Length of the square's sides in pixels; 16 in the paper's recipe for CIFAR.
    """

    def __init__(self, side: int) -> None:
        if isinstance(side, bool) or not isinstance(side, int) or side < 0:
            raise InputError(f"side={side!r}: give a whole number of pixels, 0 or more")
        self.side = side

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Return ``frames`` [..., H, W] with zeros in the square, as a new tensor."""
        height, width = frames.shape[-2:]
        top = int(torch.randint(height, ())) - self.side // 2
        left = int(torch.randint(width, ())) - self.side // 2
        blanked = frames.clone()
        rows = slice(max(top, 0), max(top + self.side, 0))
        columns = slice(max(left, 0), max(left + self.side, 0))
        blanked[..., rows, columns] = 0
        return blanked

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.side})"


class NormalizeFrames:
    """Scale each frame to a given root mean square.

    Taken frame by frame, it needs no future frame, and makes the input's strength independent of
    the number of steps and of the camera's event rate. A frame of zeros stays zero.

    Args:
        rms: The root mean square to reach. At 2, networks with standardized weights fire from
            the first steps on; at 1, half as often, and training gets off the ground later.
        floor: The smallest root mean square, in events per pixel, that is scaled up to ``rms``;
            keeps noise in a near-empty frame small.
    """

    def __init__(self, rms: float = 2.0, floor: float = 0.1) -> None:
        for name, value in (("rms", rms), ("floor", floor)):
            if not value > 0:
                raise InputError(f"{name}={value!r}: give a number above 0")
        self.rms = rms
        self.floor = floor

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Return ``frames`` [..., C, H, W] scaled, as a new tensor of the same shape."""
        rms = frames.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt()
        return frames * (self.rms / rms.clamp(min=self.floor))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rms={self.rms}, floor={self.floor})"


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Return (target, source) slices that move an axis of ``length`` by ``shift`` places."""
    return (
        slice(max(shift, 0), length + min(shift, 0)),
        slice(max(-shift, 0), length + min(-shift, 0)),
    )
