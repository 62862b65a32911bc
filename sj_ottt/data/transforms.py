"""Transforms of event frames [T, 2, H, W] and of images [C, H, W], and some of batches.

A random transform draws once per sample, the same for all T steps, and `cutmix` once per batch.
`DropEvents` and `JitterTime` draw for each event as well; they take whole counts, and go first. All
draws are from torch's global generator, so that a run resumed with that generator's state repeats
them. Arguments out of range raise `InputError`.

Each random transform has `on_batch` beside it, which does the same to all samples of a batch at
once, [T, N, C, H, W], on the device where they are; `apply_to_batch` goes through a chain of them.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode, Normalize
from torchvision.transforms.functional import rotate

from sj_ottt.data.saccade import Saccade, SaccadeDraws
from sj_ottt.errors import InputError

__all__ = [
    "Compose",
    "Cutout",
    "DropEvents",
    "JitterTime",
    "Normalize",
    "NormalizeFrames",
    "RandomFlip",
    "RandomRotation",
    "RandomShift",
    "Saccade",
    "SaccadeDraws",
    "apply_to_batch",
    "cutmix",
]


def apply_to_batch(chain: Iterable[Callable[[Tensor], Tensor]], batch: Tensor) -> Tensor:
    """Transform all samples of a batch, on its device.

    What is drawn for a sample is drawn on the CPU, one transform after the other, for all samples
    together; what is drawn for single events, on the device.

    Args:
        chain: Transforms of this module, or others that take any dimensions before [C, H, W] and
            draw nothing: they are called once for all samples.
        batch: Sequences [T, N, C, H, W], or images [N, C, H, W].

    Returns:
        A batch of the same shape, contiguous.

    Raises:
        InputError: Another number of dimensions, or as the transforms.
    """
    if batch.dim() not in (4, 5):
        raise InputError(
            f"batch {list(batch.shape)}: give sequences [T, N, C, H, W] or images [N, C, H, W]"
        )
    if not batch.numel():
        return batch  # of a process that got no sample
    x_seq = batch if batch.dim() == 5 else batch[None]
    for transform in chain:
        x_seq = getattr(transform, "on_batch", transform)(x_seq)
    return (x_seq if batch.dim() == 5 else x_seq[0]).contiguous()


class DropEvents:
    """Drop a random share of a recording's events, each independently: binomial thinning of counts.

    Args:
        max_share: The share is drawn uniformly from 0 to this, below 1.
    """

    def __init__(self, max_share: float) -> None:
        self.max_share = _share("max_share", max_share, below_one=True)

    def __call__(self, frames: Tensor) -> Tensor:
        """Return counts of any shape thinned, whole numbers again.

        Raises:
            InputError: The values are not counts.
        """
        share = self.max_share * float(torch.rand(()))
        cells = _cells(frames)
        return _counts(cells[torch.rand(len(cells)) >= share], frames)

    def on_batch(self, x_seq: Tensor) -> Tensor:
        """Return counts [T, N, ...] thinned, each sample by a share of its own.

        Raises:
            InputError: The values are not counts, which is not looked at on a GPU.
        """
        counts = _batch_of_counts(x_seq)
        kept = 1 - self.max_share * torch.rand(counts.shape[1])
        thinned = torch.binomial(counts, _of_samples(kept, counts).expand_as(counts))
        return thinned.to(x_seq.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.max_share})"


class JitterTime:
    """Move each event in time, so that some change to the frame before or after their own.

    An event moves by a uniform draw from -jitter to jitter frames. Frames do not say when in them
    an event was, so all times in a frame count as equally likely; it then changes to either
    neighbour with probability jitter / 4. Those that would leave the recording stay.

    Args:
        jitter: In frames, from 0 to 1.
    """

    def __init__(self, jitter: float) -> None:
        self.jitter = _share("jitter", jitter)

    def __call__(self, frames: Tensor) -> Tensor:
        """Return counts [T, ...] with as many events in each pixel, over all T steps together.

        Raises:
            InputError: The values are not counts.
        """
        cells = _cells(frames)
        draw = torch.rand(len(cells))
        later, earlier = draw < self.jitter / 4, draw > 1 - self.jitter / 4
        moved = cells + frames[0].numel() * (later.long() - earlier.long())
        inside = (moved >= 0) & (moved < frames.numel())
        return _counts(torch.where(inside, moved, cells), frames)

    def on_batch(self, x_seq: Tensor) -> Tensor:
        """Return counts [T, N, ...] with as many events in each pixel, over all T steps together.

        Raises:
            InputError: The values are not counts, which is not looked at on a GPU.
        """
        counts = _batch_of_counts(x_seq)
        moved = torch.binomial(counts, torch.full_like(counts, self.jitter / 2))
        later = torch.binomial(moved, torch.full_like(counts, 0.5))
        earlier = moved - later
        later[-1] = earlier[0] = 0  # these would leave the recording
        jittered = counts - later - earlier
        jittered[1:] += later[:-1]
        jittered[:-1] += earlier[1:]
        return jittered.to(x_seq.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.jitter})"


class RandomFlip:
    """Flip a whole recording, or an image, from left to right.

    Args:
        probability: Of a flip, from 0 to 1.
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = _share("probability", probability)

    def __call__(self, frames: Tensor) -> Tensor:
        """Return ``frames`` [..., W], flipped or as they are."""
        return frames.flip(-1) if torch.rand(()) < self.probability else frames

    def on_batch(self, x_seq: Tensor) -> Tensor:
        """Return ``x_seq`` [T, N, C, H, W], each sample flipped or as it is, as a new tensor."""
        flipped = torch.rand(x_seq.shape[1]) < self.probability
        return torch.where(_of_samples(flipped, x_seq), x_seq.flip(-1), x_seq)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.probability})"


class RandomRotation:
    """Rotate a whole recording about its middle, filling with zeros.

    Values between pixels are interpolated linearly, so that counts are whole no longer.

    Args:
        degrees: Largest angle, from 0 to 180; the angle is drawn uniformly from
            ``-degrees .. degrees``.
    """

    def __init__(self, degrees: float) -> None:
        if isinstance(degrees, bool) or not 0 <= degrees <= 180:
            raise InputError(f"degrees={degrees!r}: give an angle from 0 to 180")
        self.degrees = degrees

    def __call__(self, frames: Tensor) -> Tensor:
        """Return ``frames`` [..., C, H, W] rotated, as a new tensor of the same shape."""
        angle = self.degrees * (2 * float(torch.rand(())) - 1)
        flat = _in_float(frames).flatten(0, -3)
        turned = rotate(flat, angle, InterpolationMode.BILINEAR).view_as(frames)
        return _back_in(frames.dtype, turned)

    def on_batch(self, x_seq: Tensor) -> Tensor:
        """Return ``x_seq`` [T, N, C, H, W], each sample rotated by an angle of its own."""
        steps, n, channels, height, width = x_seq.shape
        angle = torch.deg2rad(self.degrees * (2 * torch.rand(n) - 1))
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(n)
        # Where each pixel comes from, in coordinates from -1 to 1 in both directions.
        rows = (cos, -sin * height / width, zero), (sin * width / height, cos, zero)
        frames = _in_float(x_seq)
        theta = torch.stack([torch.stack(row, 1) for row in rows], 1).to(frames)
        maps = frames.transpose(0, 1).reshape(n, steps * channels, height, width)
        grid = F.affine_grid(theta, list(maps.shape), align_corners=False)
        turned = F.grid_sample(maps, grid, mode="bilinear", align_corners=False)
        turned = turned.view(n, steps, channels, height, width).transpose(0, 1)
        return _back_in(x_seq.dtype, turned)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.degrees})"


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

    def __call__(self, frames: Tensor) -> Tensor:
        """Return ``frames`` [..., H, W] shifted, as a new tensor of the same shape."""
        limit, shifted = self.max_shift, torch.zeros_like(frames)
        dy, dx = torch.randint(-limit, limit + 1, (2,)).tolist()
        _shift_into(shifted, frames, dy, dx)
        return shifted

    def on_batch(self, x_seq: Tensor) -> Tensor:
        """Return ``x_seq`` [T, N, C, H, W], each sample shifted by steps of its own."""
        limit, shifted = self.max_shift, torch.zeros_like(x_seq)
        steps = torch.randint(-limit, limit + 1, (2, x_seq.shape[1]))
        for i, (dy, dx) in enumerate(steps.T.tolist()):
            _shift_into(shifted[:, i], x_seq[:, i], dy, dx)
        return shifted

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.max_shift})"


class Cutout:
    """Blank a square at a random position, cut off where it reaches over the edge.

    Args:
        side: Length of the square's sides in pixels; 16 in the paper's recipe for CIFAR.
    """

    def __init__(self, side: int) -> None:
        if isinstance(side, bool) or not isinstance(side, int) or side < 0:
            raise InputError(f"side={side!r}: give a whole number of pixels, 0 or more")
        self.side = side

    def __call__(self, frames: Tensor) -> Tensor:
        """Return ``frames`` [..., H, W] with zeros in the square, as a new tensor."""
        height, width = frames.shape[-2:]
        top = int(torch.randint(height, ())) - self.side // 2
        left = int(torch.randint(width, ())) - self.side // 2
        blanked = frames.clone()
        rows = slice(max(top, 0), max(top + self.side, 0))
        columns = slice(max(left, 0), max(left + self.side, 0))
        blanked[..., rows, columns] = 0
        return blanked

    def on_batch(self, x_seq: Tensor) -> Tensor:
        """Return ``x_seq`` [T, N, C, H, W] with zeros in a square of each sample."""
        n, _, height, width = x_seq.shape[1:]
        inside = []
        for length in (height, width):
            first = torch.randint(length, (n,))[:, None] - self.side // 2
            place = torch.arange(length)
            inside.append((first <= place) & (place < first + self.side))
        square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return x_seq.masked_fill(square.to(x_seq.device), 0)

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

    def __call__(self, frames: Tensor) -> Tensor:
        """Return ``frames`` [..., C, H, W] scaled, as a new tensor of the same shape."""
        rms = frames.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt()
        return frames * (self.rms / rms.clamp(min=self.floor))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rms={self.rms}, floor={self.floor})"


def cutmix(x_seq: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Put a box of one recording into another, for each recording of a batch (CutMix).

    One box is drawn for the batch, with an area uniform between nothing and everything and a centre
    uniform on the frame, cut off at its edges; and a permutation that says from which recording
    each takes it. As events lie unevenly, labels are mixed by what can be seen, not by area: a
    recording's own label has the share of its own values in the sum of all, over all T steps.

    Args:
        x_seq: [T, N, C, H, W], or a batch of images [N, C, H, W]; no value below 0.
        target: Class indices [N].
        num_classes: How many classes there are.

    Returns:
        The mixed sequence, as a new tensor, and the probabilities of the classes [N, num_classes].
    """
    if x_seq.dim() == 4:
        mixed, labels = cutmix(x_seq[None], target, num_classes)
        return mixed[0], labels
    height, width = x_seq.shape[-2:]
    area, y, x = torch.rand(3).tolist()
    box = (..., _side(y, area**0.5, height), _side(x, area**0.5, width))
    other = torch.randperm(x_seq.shape[1]).to(x_seq.device)
    mixed = x_seq.clone()
    mixed[box] = x_seq[box][:, other]

    everywhere = mixed.sum((0, 2, 3, 4))
    inside = mixed[box].sum((0, 2, 3, 4))
    share = (inside / everywhere.clamp(min=torch.finfo(inside.dtype).tiny))[:, None]
    labels = F.one_hot(target, num_classes).to(share.dtype)
    return mixed, (1 - share) * labels + share * labels[other]


def _side(centre: float, share: float, length: int) -> slice:
    """Return the part of an axis that a box covers; centre and share are relative to its length."""
    low, high = ((centre + sign * share / 2) * length for sign in (-1, 1))
    return slice(max(round(low), 0), min(round(high), length))


def _share(name: str, value: float, below_one: bool = False) -> float:
    if isinstance(value, bool) or not (0 <= value < 1 or (value == 1 and not below_one)):
        raise InputError(f"{name}={value!r}: give a number from 0 to {'below ' * below_one}1")
    return value


def _of_samples(values: Tensor, x_seq: Tensor) -> Tensor:
    """Return values of samples [N], on the device and with the dimensions of x_seq [T, N, ...]."""
    values = values.to(x_seq.device, x_seq.dtype if values.is_floating_point() else None)
    return values.view(1, -1, *[1] * (x_seq.dim() - 2))


def _in_float(frames: Tensor) -> Tensor:
    """Return values in a dtype that PyTorch can rotate, and draw binomial numbers in.

    In half precision on a CPU it refuses the second, and gives nonsense for the first.
    """
    return frames if frames.dtype in (torch.float32, torch.float64) else frames.float()


def _back_in(dtype: torch.dtype, values: Tensor) -> Tensor:
    """Return values in the dtype that they had before `_in_float`."""
    return (values if dtype.is_floating_point else values.round()).to(dtype)


def _batch_of_counts(x_seq: Tensor) -> Tensor:
    """Return counts in a dtype that PyTorch draws binomial numbers in, without a gradient.

    On a GPU their values are not looked at, which would mean to wait for it.

    Raises:
        InputError: Elsewhere, if they are not counts.
    """
    if not x_seq.is_cuda:
        _check_counts(x_seq)
    return _in_float(x_seq.detach())


def _check_counts(frames: Tensor) -> None:
    """Refuse values that are not counts.

    Raises:
        InputError: They are not.
    """
    if not ((frames >= 0) & (frames == frames.floor())).all():
        raise InputError(
            "frames: single events can be dropped and moved in counts only; put DropEvents and "
            "JitterTime before other transforms, and use frames='counts'"
        )


def _cells(frames: Tensor) -> Tensor:
    """Return, for each of n counted events, the index of its cell in the flat frames [n].

    Raises:
        InputError: The values are not counts.
    """
    _check_counts(frames)
    return torch.repeat_interleave(frames.flatten().int())


def _counts(cells: Tensor, frames: Tensor) -> Tensor:
    """Count events by their indices in the flat frames, as a tensor like ``frames``."""
    return torch.bincount(cells, minlength=frames.numel()).to(frames.dtype).view_as(frames)


def _shift_into(shifted: Tensor, frames: Tensor, dy: int, dx: int) -> None:
    """Write frames [..., H, W], shifted, into zeros of the same shape."""
    height, width = frames.shape[-2:]
    if abs(dy) < height and abs(dx) < width:
        to_rows, from_rows = _overlap(dy, height)
        to_columns, from_columns = _overlap(dx, width)
        shifted[..., to_rows, to_columns] = frames[..., from_rows, from_columns]


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Return (target, source) slices that move an axis of ``length`` by ``shift``."""
    return (
        slice(max(shift, 0), length + min(shift, 0)),
        slice(max(-shift, 0), length + min(-shift, 0)),
    )
