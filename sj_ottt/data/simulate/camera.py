"""A simulated event camera, which records a video, or a still image moved along saccades.

The model, pixel by pixel, with L = log(I + eps) for an intensity I in [0, 1]:

- *Contrast.* The pixel keeps a reference level. Whenever L has moved from it by the pixel's
  contrast threshold, up or down, the pixel emits an ON or OFF event and moves the reference by
  one threshold, as often as needed. Between two images L is taken to be linear in time, which
  gives each event its time in µs.
- *Mismatch.* Thresholds differ between pixels: normal, of relative standard deviation ``mismatch``,
  cut off at half and one and a half times ``threshold``.
- *Leak.* The reference sinks by ``leak_hz`` times ``threshold`` a second, so that a pixel in front
  of a still scene emits that many ON events a second; pixels begin at a random point of that cycle.
- *Shot noise.* Events of random polarity at random times (a Poisson process) that leave the
  reference alone, ``noise_hz`` a second in a dark pixel, falling linearly with I (of the image
  before) to a quarter of that in a white one.
- *Refractory time.* For ``refractory_us`` after an event a pixel emits nothing: its events in that
  time, of whatever origin, are lost, while its reference moves on.

Leak, noise and refractory time are off unless asked for.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sj_ottt.data.frames.frames import check_size
from sj_ottt.data.recordings.events import EVENT_DTYPE
from sj_ottt.errors import InputError

Seed = int | Sequence[int] | np.random.Generator

# The corners of N-MNIST's path, (x, y) in units of its extent: down right, up right, back left.
_CORNERS = np.array([(-0.5, -0.5), (0.0, 0.5), (0.5, -0.5), (-0.5, -0.5)])
# The rate of shot noise in a white pixel, as a share of that in a dark one.
_NOISE_IN_WHITE = 0.25
# Pixels are simulated in blocks of about this many numbers, so that long videos fit in memory.
_BLOCK = 1 << 21


def saccade_events(
    image: np.ndarray,
    *,
    sensor_size: tuple[int, int] = (34, 34),
    duration_us: int = 300_000,
    step_us: int = 2_000,
    travel: float = 0.15,
    rounds: float = 1.0,
    position: tuple[float, float] = (0.0, 0.0),
    zoom: float = 1.0,
    seed: Seed = 0,
    **pixel: Any,
) -> np.ndarray:
    """Record a still image with the simulated sensor, moved along saccades of equal time.

    The image is scaled to fit the sensor less the way it travels, on black, and goes round a
    triangle of three saccades. Each starts and ends at rest.

    Args:
        image: Grayscale [h, w]: floats in [0, 1], or uint8.
        sensor_size: (height, width) in pixels.
        duration_us: Length of the recording in µs.
        step_us: Length of a simulation step in µs.
        travel: Extent of the path as a fraction of the sensor's shorter side.
        rounds: How often it goes round the triangle; with ``duration_us``, this sets the speed.
        position: Where the path's centre lies, (down, right) of the sensor's centre in pixels.
        zoom: Size of the image, relative to the largest that stays on the sensor.
        seed: Of the pixels; equal seeds give equal events.
        **pixel: ``threshold``, ``mismatch``, ``eps``, ``refractory_us``, ``leak_hz`` and
            ``noise_hz`` of `video_events`.

    Returns:
        Events [n] of `EVENT_DTYPE` in order of time, within 1 .. ``duration_us`` µs.

    Raises:
        InputError: The image is no grayscale image in [0, 1], or an argument is out of range.
    """
    image = _check_image(image)
    height, width = check_size("sensor_size", sensor_size)
    _check_within(1, math.inf, duration_us=duration_us, step_us=step_us)
    _check_within(0, math.inf, rounds=rounds)
    _check_within(0, 0.9, travel=travel)
    _check_within(0.01, math.inf, zoom=zoom)
    if len(position) != 2 or not np.isfinite(position).all():
        raise InputError(f"position={position!r}: give (down, right), two numbers of pixels")
    steps = math.ceil(duration_us / step_us)
    times = np.minimum(np.arange(steps + 1) * step_us, duration_us)

    extent = travel * min(height, width)
    offsets = _path(times / duration_us * rounds % 1) * extent + position[::-1]
    scale = zoom * min((height - extent) / image.shape[0], (width - extent) / image.shape[1])
    columns = _sampling(offsets[:, 0], width, image.shape[1], scale)
    rows = _sampling(offsets[:, 1], height, image.shape[0], scale)
    video = np.clip(rows @ image @ columns.swapaxes(1, 2), 0, 1)
    return video_events(video, times, seed=seed, **pixel)


def video_events(
    video: np.ndarray,
    times: np.ndarray | None = None,
    *,
    fps: float | None = None,
    threshold: float = 0.3,
    mismatch: float = 0.03,
    eps: float = 0.2,
    refractory_us: int = 0,
    leak_hz: float = 0.0,
    noise_hz: float = 0.0,
    seed: Seed = 0,
) -> np.ndarray:
    """Turn a video into events by the pixel model in this module's description.

    Args:
        video: Intensity [S, H, W]: floats in [0, 1], or uint8; the first image sets the reference.
        times: Time of each image in µs, rising, int [S]. Give this or ``fps``.
        fps: Images per second; the first is at 0 µs.
        threshold: Contrast threshold, in units of log intensity.
        mismatch: Standard deviation of the thresholds between pixels, relative to ``threshold``.
        eps: Intensity added before the logarithm: the darkest level that the pixels tell apart.
        refractory_us: Time in µs after an event in which its pixel emits no other.
        leak_hz: Leak events of a pixel per second, at the nominal threshold.
        noise_hz: Shot noise events of a dark pixel per second, half of them ON.
        seed: Of thresholds, leak and noise; equal seeds give equal events.

    Returns:
        Events [n] of `EVENT_DTYPE` in order of time, after the first image's time and up to the
        last's.

    Raises:
        InputError: The video is no sequence of images in [0, 1], the times do not rise, or an
            argument is out of range.
    """
    video = _check_video(video)
    times = _check_times(times, fps, len(video))
    _check_within(0, math.inf, mismatch=mismatch, refractory_us=refractory_us)
    # No pixel exceeds this, and a slip of the hand would fill the memory with events.
    _check_within(0, 10_000, leak_hz=leak_hz, noise_hz=noise_hz)
    _check_within(0.01, math.inf, threshold=threshold)
    _check_within(1e-6, math.inf, eps=eps)
    width = video.shape[2]
    video = video.reshape(len(video), -1)
    n_pixels = video.shape[1]

    rng = np.random.default_rng(seed)
    thresholds = threshold * np.clip(1 + mismatch * rng.standard_normal(n_pixels), 0.5, 1.5)
    start = rng.random(n_pixels) if leak_hz else np.zeros(n_pixels)
    leak = leak_hz * 1e-6 * threshold * (times - times[0])
    block = max(1, _BLOCK // len(video))
    parts = []
    for first in range(0, n_pixels, block):
        some = slice(first, first + block)
        t, pixel, on = _contrast_events(
            video[:, some], times, thresholds[some], start[some], leak, eps
        )
        parts.append((t, pixel + first, on))
    if noise_hz:
        parts.append(_shot_noise(video, times, noise_hz, rng))
    t, pixel, on = (np.concatenate(columns) for columns in zip(*parts, strict=True))

    order = np.argsort(t, kind="stable")
    if refractory_us:
        order = order[_outside_refractory(t[order], pixel[order], refractory_us)]
    events = np.empty(len(order), EVENT_DTYPE)
    events["t"] = t[order]
    events["y"], events["x"] = np.divmod(pixel[order], width)
    events["p"] = on[order]
    return events


def _check_image(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype == np.uint8:
        image = image / 255
    if image.ndim != 2 or 0 in image.shape or image.dtype.kind != "f":
        raise InputError(
            f"image: {image.dtype} of shape {image.shape}; give grayscale [h, w], floats in "
            "[0, 1] or uint8"
        )
    # Written so that NaN fails too.
    if not (image.min() >= 0 and image.max() <= 1):
        raise InputError(f"image: values from {image.min()} to {image.max()}; scale them to [0, 1]")
    return image.astype(np.float64)


def _check_video(video: np.ndarray) -> np.ndarray:
    video = np.asarray(video)
    if video.ndim != 3 or 0 in video.shape or video.dtype.kind not in "fu":
        raise InputError(
            f"video: {video.dtype} of shape {video.shape}; give grayscale images [S, H, W], floats "
            "in [0, 1] or uint8"
        )
    # Written so that NaN fails too.
    if video.dtype != np.uint8 and not (video.min() >= 0 and video.max() <= 1):
        raise InputError(f"video: values from {video.min()} to {video.max()}; scale them to [0, 1]")
    return video


def _check_times(times: np.ndarray | None, fps: float | None, n_images: int) -> np.ndarray:
    if (times is None) == (fps is None):
        raise InputError("times and fps: give one of them, to say when each image was taken")
    if fps is not None:
        if not 0 < fps <= 1e6:
            raise InputError(f"fps={fps!r}: give images per second, above 0 and up to 1,000,000")
        return np.rint(np.arange(n_images) * (1e6 / fps)).astype(np.int64)
    times = np.asarray(times)
    if times.shape != (n_images,) or times.dtype.kind not in "iu":
        raise InputError(
            f"times: {times.dtype} of shape {times.shape} for {n_images} images; give a whole "
            "number of µs for each"
        )
    times = times.astype(np.int64)
    if (np.diff(times) <= 0).any():
        raise InputError("times: do not rise from image to image; sort the images, drop repeats")
    return times


def _check_within(low: float, high: float, **values: float) -> None:
    for name, value in values.items():
        if not (low <= value <= high and value < math.inf):
            to = "on" if high == math.inf else f"to {high}"
            raise InputError(f"{name}={value!r}: give a number from {low} {to}")


def _contrast_events(
    video: np.ndarray,
    times: np.ndarray,
    thresholds: np.ndarray,
    start: np.ndarray,
    leak: np.ndarray,
    eps: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return time (µs), pixel and polarity of the events by contrast and leak, each [n].

    Args:
        video: Intensity [S, P] of P pixels.
        times: Time of each image in µs [S].
        thresholds: Contrast threshold of each pixel [P].
        start: Where in its leak's cycle each pixel begins, from 0 to 1 [P].
        leak: How far a reference has sunk at each image [S], in units of log intensity.
        eps: See `video_events`.
    """
    # 16-bit intensities: the last bit of a matrix product differs between machines, and must not
    # decide on which side of a threshold a pixel falls.
    brightness = np.log(np.arange(65536) / 65535 + eps)
    level = brightness[_in_16_bits(video)]
    # In units of the pixel's threshold, relative to the start: the reference is a whole number.
    level = (level - level[0] + leak[:, None]) / thresholds + start
    reference = _references(level)

    change = np.diff(reference, axis=0).astype(np.int64)
    step, pixel = np.nonzero(change)
    change = change[step, pixel]
    repeats = np.abs(change)
    first = np.repeat(np.cumsum(repeats) - repeats, repeats)
    nth = np.arange(len(first)) - first + 1
    step, pixel, sign = (np.repeat(a, repeats) for a in (step, pixel, np.sign(change)))

    before, after = level[step, pixel], level[step + 1, pixel]
    crossing = (reference[step, pixel] + sign * nth - before) / (after - before)
    begin, end = times[step], times[step + 1]
    t = np.clip(begin + np.ceil(crossing * (end - begin)).astype(np.int64), begin + 1, end)
    return t, pixel, sign > 0


def _in_16_bits(video: np.ndarray) -> np.ndarray:
    if video.dtype == np.uint8:
        return video.astype(np.uint16) * np.uint16(257)
    return np.rint(video * 65535).astype(np.uint16)


def _shot_noise(
    video: np.ndarray, times: np.ndarray, noise_hz: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return time (µs), pixel and polarity of the noise, each [n].

    Events are drawn as if all pixels were dark, then thinned.
    """
    n_pixels, duration = video.shape[1], int(times[-1] - times[0])
    n = rng.poisson(noise_hz * 1e-6 * duration * n_pixels)
    t = times[0] + 1 + rng.integers(max(1, duration), size=n)
    pixel = rng.integers(n_pixels, size=n)
    image = np.searchsorted(times, t) - 1  # the last one before the event
    intensity = _in_16_bits(video[image, pixel]) / 65535
    kept = rng.random(n) < 1 - (1 - _NOISE_IN_WHITE) * intensity
    on = rng.random(n) < 0.5
    return t[kept], pixel[kept], on[kept]


def _outside_refractory(t: np.ndarray, pixel: np.ndarray, refractory_us: int) -> np.ndarray:
    """Mark which events [n], given in order of time, fall outside their pixel's refractory time."""
    kept = np.zeros(len(t), bool)
    if not len(t):
        return kept
    # One time axis with all pixels one after the other, too far apart to affect each other.
    axis = pixel * (int(t[-1] - t[0]) + int(refractory_us) + 1) + t
    order = np.argsort(axis, kind="stable")
    axis = axis[order]
    following = np.searchsorted(axis, axis + refractory_us).tolist()
    i, chain = 0, []
    while i < len(following):
        chain.append(i)
        i = following[i]
    kept[order[chain]] = True
    return kept


def _path(phase: np.ndarray) -> np.ndarray:
    """Return the offset (x, y) in units of the path's extent [n, 2], at phases in [0, 1] [n]."""
    n_saccades = len(_CORNERS) - 1
    leg = np.minimum((phase * n_saccades).astype(int), n_saccades - 1)
    progress = (1 - np.cos(np.pi * (phase * n_saccades - leg))) / 2
    return _CORNERS[leg] + progress[:, None] * (_CORNERS[leg + 1] - _CORNERS[leg])


def _sampling(offsets: np.ndarray, n_out: int, n_in: int, scale: float) -> np.ndarray:
    """Return the matrices [S, n_out, n_in] that scale and shift one axis of an image, bicubically.

    Outside the image it is black. Where the image shrinks, the kernel widens to the same degree,
    so that no detail aliases.
    """
    position = (np.arange(n_out) + 0.5 - n_out / 2 - offsets[:, None]) / scale + n_in / 2 - 0.5
    shrink = max(1.0, 1 / scale)
    distance = np.abs(position[:, :, None] - np.arange(n_in)) / shrink
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0)) / shrink


def _references(level: np.ndarray) -> np.ndarray:
    """Follow the levels [S, P] by whole numbers that stay less than one away from them."""
    low, high = np.floor(level), np.ceil(level)
    reference = np.zeros_like(level)
    for i in range(1, len(level)):
        np.maximum(reference[i - 1], low[i], out=reference[i])
        np.minimum(reference[i], high[i], out=reference[i])
    return reference
