"""Events of a still image before a moving camera, in frames, anew each time and on any device.

A camera's gaze moves over the image along a path d of whole pixels, several steps a frame. With the
log intensity L = log(I + eps) and the contrast threshold theta, a pixel that looks at x emits

    ON  = floor(max(L(x + d[s + 1]) - r, 0) / theta),
    OFF = floor(max(r - L(x + d[s + 1]), 0) / theta)

events at step s, where its reference r, at first L(x + d[0]), moves by theta at each event. So the
first step is the difference of two shifted images, and what is left below the threshold counts in
later steps, as in a camera. A frame holds the events of its steps.

It is the model of `video_events` without times and mismatch, and fast: a shift by whole pixels is a
view of one table. What `video_events` makes of the same images on the same path, followed in tenths
of a pixel, correlates with these counts, for each frame, polarity and pixel, at 0.88 on average on
Fashion-MNIST and 0.82 on Tiny-ImageNet (tests/data/test_saccade.py), and has some more events: 95%
and 84% of them are here. One step a frame, and nothing left for later: 0.85 and 0.75, 74% and 57%.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sj_ottt.errors import InputError

__all__ = ["Saccade", "SaccadeDraws"]

_LUMINANCE = (0.299, 0.587, 0.114)


class SaccadeDraws(NamedTuple):
    """What is drawn for each of N samples: one float32 [N] each, or as stated.

    Attributes:
        direction: In which the gaze sets off, in radians: 0 is right, pi / 2 down.
        turn: Of the direction, in radians a frame.
        speed: In pixels a frame, along the axis on which it is faster.
        start: Of the gaze, (x, y) as a share of its reach, from -1 to 1 [N, 2].
        threshold: Contrast threshold, in units of log intensity.
        zoom: Size of the image, relative to the frame.
        shift: Of the image to the (right, bottom), as a share of the frame [N, 2].
        flip: Whether left and right change places, bool [N].
        thin: Probability that an event is lost.
        noise: Events of noise in a pixel of a frame, of each polarity.
        max_count: The most events of a pixel in a frame, of each polarity; noise comes on top.
    """

    direction: Tensor
    turn: Tensor
    speed: Tensor
    start: Tensor
    threshold: Tensor
    zoom: Tensor
    shift: Tensor
    flip: Tensor
    thin: Tensor
    noise: Tensor
    max_count: Tensor


class Saccade:
    """Make frames of events of still images, as this module describes, each sample by own draws.

    All draws are uniform, within (low, high) where a pair is given. Outside the image lie the
    values of its edge: black there would make each border of a bright image an edge that moves,
    and a network would learn the frame instead of what is in it. At the ends of its reach the gaze
    turns back, so that any number of frames shows the image.

    Args:
        steps: T, frames of a sample.
        speed: Pixels a frame along the faster axis, from 1 on. Each frame takes as many steps as
            the highest speed has pixels, which is most of the cost.
        turn: Largest change of direction, to either side, in degrees a frame.
        travel: Reach of the gaze to either side, as a share of the image's shorter side; a pixel at
            least.
        threshold: Contrast threshold, in units of log intensity.
        zoom: Size of the image, relative to the frame.
        shift: Largest shift of the image on either axis, as a share of the frame's side.
        flip: Probability that left and right change places.
        thin: Largest probability that an event is lost.
        noise: Largest number of noise events in a pixel of a frame, of each polarity.
        max_count: The most events of a pixel in a frame, of each polarity; noise comes on top.
        eps: Intensity added before the logarithm: the darkest level that the pixels tell apart.
        random: False for evaluation, where equal images give equal events, without any draw: the
            gaze sets off from the middle to the lower right and turns to the right by half of
            ``turn`` in each frame; pairs are at their middle; no shift, flip, thinning or noise.

    Raises:
        InputError: An argument is out of range.
    """

    def __init__(
        self,
        steps: int,
        *,
        speed: tuple[float, float] = (1.0, 4.0),
        turn: float = 60.0,
        travel: float = 0.15,
        threshold: tuple[float, float] = (0.08, 0.24),
        zoom: tuple[float, float] = (0.7, 1.3),
        shift: float = 0.1,
        flip: float = 0.5,
        thin: float = 0.4,
        noise: float = 0.02,
        max_count: tuple[int, int] = (3, 12),
        eps: float = 0.1,
        random: bool = True,
    ) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"steps={steps!r}: give a whole number of frames, 1 or more")
        self.steps, self.random = steps, random
        self.speed = _pair("speed", speed, 1, 100)
        self.threshold = _pair("threshold", threshold, 0.01, 10)
        self.zoom = _pair("zoom", zoom, 0.1, 10)
        self.max_count = _pair("max_count", max_count, 1, 1_000_000, whole=True)
        self.turn = _number("turn", turn, 0, 180)
        self.travel = _number("travel", travel, 0, 0.5)
        self.shift = _number("shift", shift, 0, 0.5)
        self.flip = _number("flip", flip, 0, 1)
        self.thin = _number("thin", thin, 0, 1)
        self.noise = _number("noise", noise, 0, 1)
        self.eps = _number("eps", eps, 1e-6, 10)

    def draw(
        self,
        n: int,
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> SaccadeDraws:
        """Draw what N samples are made with; without ``random``, return the fixed values.

        Args:
            n: N, the number of samples.
            device: Of the images.
            generator: What draws, on that device; None takes torch's global one.
        """
        if self.random:
            u = torch.rand(13, n, dtype=torch.float32, device=device, generator=generator)
        else:
            u = torch.full((13, n), 0.5, dtype=torch.float32, device=device)
            u[0], u[1], u[10:] = 1 / 8, 3 / 4, 0
        signed = 2 * u - 1
        most = torch.floor(_between(self.max_count[0], self.max_count[1] + 1, u[9]))
        return SaccadeDraws(
            direction=2 * math.pi * u[0],
            turn=math.radians(self.turn) * signed[1],
            speed=_between(*self.speed, u[2]),
            start=signed[3:5].t(),
            threshold=_between(*self.threshold, u[5]),
            zoom=_between(*self.zoom, u[6]),
            shift=self.shift * signed[7:9].t(),
            flip=u[10] > 1 - self.flip,
            thin=self.thin * u[11],
            noise=self.noise * u[12],
            max_count=most.clamp(max=self.max_count[1]),
        )

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        draws: SaccadeDraws | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return counts of events, computed on the images' device.

        To flip a teacher's maps along with the images, draw first:

            draws = saccade.draw(len(images), device=images.device)
            x_seq = saccade(images, draws)  # of which draws.flip [N] are flipped

        Args:
            images: Intensities in [0, 1], [N, C, H, W] or [C, H, W]; C is 1, or 3 for colour, of
                which the luminance counts.
            draws: From `draw`, or changed by the caller; None draws.
            generator: What draws, on the images' device; None takes torch's global one.

        Returns:
            Float32 [T, N, 2, H, W] or [T, 2, H, W], channel 0 for OFF (darker) and 1 for ON.

        Raises:
            InputError: Images of another form or range, or too small to have an edge.
        """
        if images.dim() == 3:
            return self(images[None], draws, generator=generator)[:, 0]
        _check_images(images)
        n = len(images)
        if draws is None:
            draws = self.draw(n, device=images.device, generator=generator)
        elif len(draws.flip) != n:
            raise InputError(f"draws: of {len(draws.flip)} samples for {n} images; draw({n})")
        frames = self._record(images, draws)
        _lose_events(frames, draws.thin, generator)
        _add_noise(frames, draws.noise, generator)
        return frames

    def _record(self, images: Tensor, draws: SaccadeDraws) -> Tensor:
        """Return the events of contrast of images [N, C, H, W], counts [T, N, 2, H, W]."""
        n, _, height, width = images.shape
        reach = max(1, round(self.travel * min(height, width)))
        per_frame = math.ceil(self.speed[1])
        level = _levels(images, draws, reach, self.eps)
        path = _path(draws, self.steps, per_frame, reach).round().long()
        views = _views(level, path + reach, (height, width))
        reference = next(views)
        frames = level.new_zeros(self.steps, n, 2, height, width)
        for frame in frames:
            off, on = frame.unbind(1)
            for _ in range(per_frame):
                change = next(views) - reference
                brighter = change.floor().clamp_(min=0)
                darker = change.ceil_().clamp_(max=0)
                reference += brighter
                reference += darker
                on += brighter
                off -= darker
        return frames.clamp_(max=draws.max_count.view(-1, 1, 1, 1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items())})"


def _levels(images: Tensor, draws: SaccadeDraws, reach: int, eps: float) -> Tensor:
    """Return log intensities in units of the threshold [N, H + 2 reach, W + 2 reach].

    The image is flipped, zoomed and shifted, linear between pixels, with the values of its edge
    around it.
    """
    image = images.float()
    if image.shape[1] == 3:
        weights = image.new_tensor(_LUMINANCE).view(1, 3, 1, 1)
        image = (image * weights).sum(1, keepdim=True)
    height, width = image.shape[-2:]
    sign = 1 - 2 * draws.flip.float()
    x = _axis(width, reach, draws.zoom, draws.shift[:, 0]) * sign[:, None]
    y = _axis(height, reach, draws.zoom, draws.shift[:, 1])
    n, columns, rows = *x.shape, y.shape[1]
    grid = image.new_empty(n, rows, columns, 2)
    grid[..., 0], grid[..., 1] = x[:, None, :], y[:, :, None]
    seen = F.grid_sample(image, grid, padding_mode="border", align_corners=False)[:, 0]
    # Resizing may have gone a little below black, where there may be no logarithm.
    return seen.clamp_(min=0).add_(eps).log_().div_(draws.threshold[:, None, None])


def _axis(length: int, reach: int, zoom: Tensor, shift: Tensor) -> Tensor:
    """Return where the pixels of an axis lie in the image, from -1 to 1 [N, length + 2 reach]."""
    pixel = torch.arange(-reach, length + reach, dtype=zoom.dtype, device=zoom.device)
    return ((2 * pixel + 1) / length - 1 - 2 * shift[:, None]) / zoom[:, None]


def _path(draws: SaccadeDraws, steps: int, per_frame: int, reach: int) -> Tensor:
    """Return the gaze at the start and after each step, in pixels [S + 1, N, 2] of (x, y)."""
    turn = draws.turn
    time = torch.arange(steps * per_frame, dtype=turn.dtype, device=turn.device)[:, None]
    angle = draws.direction + turn * (time / per_frame)
    move = torch.stack([angle.cos(), angle.sin()], -1)
    move *= (draws.speed / per_frame)[:, None] / move.abs().amax(-1, keepdim=True)
    start = draws.start * reach
    where = torch.cat([start[None], start + move.cumsum(0)])
    # Reflected at both ends of the reach, as often as needed.
    return reach - ((where + reach) % (4 * reach) - 2 * reach).abs()


def _views(level: Tensor, corner: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield what each sample sees at each step [N, H, W], with its corner at (x, y) of a table.

    Args:
        level: The tables [N, rows, columns].
        corner: int64 [S + 1, N, 2].
        size: (H, W).
    """
    windows = level.unfold(1, size[0], 1).unfold(2, size[1], 1)
    sample = torch.arange(len(level), device=level.device)
    for x, y in zip(*corner.unbind(-1), strict=True):
        yield windows[sample, y, x]


def _lose_events(frames: Tensor, probability: Tensor, generator: torch.Generator | None) -> None:
    """Lose each event of counts [T, N, ...] with its sample's probability [N], in place.

    A count c becomes c (1 - p) rounded up or down at random, so that its mean is exact: for one
    event that is a draw, for more it varies less than draws of each would, at a fraction of the
    cost. Probabilities are whole 256ths.
    """
    if not probability.any():
        return
    kept = (256 * (1 - probability)).round().view(-1, 1, 1, 1)
    # Eight random bytes for the price of one number.
    words = torch.empty(-(-frames.numel() // 8), dtype=torch.int64, device=frames.device)
    words.random_(-(2**63), None, generator=generator)
    dither = words.view(torch.uint8)[: frames.numel()].view(frames.shape)
    frames.mul_(kept).add_(dither).div_(256).floor_()


def _add_noise(frames: Tensor, rate: Tensor, generator: torch.Generator | None) -> None:
    """Add events at random places to counts [T, N, ...], ``rate`` [N] a place on average."""
    if not rate.any():
        return
    steps, n = frames.shape[:2]
    per_frame = frames[0, 0].numel()
    device = frames.device
    u = torch.rand(n, dtype=rate.dtype, device=device, generator=generator)
    events = rate * (steps * per_frame) + u
    most = int(events.max())
    place = torch.randint(per_frame, (n, most), device=device, generator=generator)
    frame = torch.randint(steps, (n, most), device=device, generator=generator)
    sample = torch.arange(n, device=device)[:, None]
    happens = torch.arange(1, most + 1, device=device) <= events[:, None]
    where = (frame * n + sample) * per_frame + place
    frames.view(-1).index_add_(0, where.flatten(), happens.flatten().to(frames.dtype))


def _between(low: float, high: float, u: Tensor) -> Tensor:
    return low + (high - low) * u


def _check_images(images: Tensor) -> None:
    shape = tuple(images.shape)
    if images.dim() != 4 or shape[1] not in (1, 3) or not images.is_floating_point():
        raise InputError(
            f"images: {images.dtype} of shape {shape}; give floats in [0, 1], [N, C, H, W] or "
            "[C, H, W] with 1 channel or 3"
        )
    if min(shape[2:]) < 2:
        raise InputError(
            f"images: of {shape[2]} x {shape[3]} pixels have no edges to see; give 2 x 2 or more"
        )
    # Interpolation before may overshoot a little. Written so that NaN fails too.
    if len(images) and not (images.min() >= -1e-3 and images.max() <= 1 + 1e-3):
        raise InputError(
            f"images: values from {images.min():.3g} to {images.max():.3g}; give intensities in "
            "[0, 1], not standardized"
        )


def _number(name: str, value: float, low: float, high: float) -> float:
    # Written so that NaN fails too.
    if isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name}={value!r}: give a number from {low:g} to {high:g}")
    return value


def _pair(
    name: str, pair: tuple[float, float], low: float, high: float, whole: bool = False
) -> tuple[float, float]:
    try:
        first, last = pair
        fits = low <= first <= last <= high and not (whole and (first % 1 or last % 1))
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise InputError(
            f"{name}={pair!r}: give (low, high), two {'whole ' * whole}numbers from {low:g} to "
            f"{high:g} in order"
        )
    return first, last
