"""A simulated event camera that looks at a still image through saccades.

Model, pixel by pixel: an image of intensity I in [0, 1] is moved smoothly across the sensor; the
pixel follows L = log(I + eps) and keeps a reference level. Whenever L has moved from the reference
by the pixel's contrast threshold, up or down, the pixel emits an ON or OFF event and moves the
reference by one threshold, as often as needed. Thresholds differ a little between pixels, as on a
real sensor. Between simulation steps L is taken to be linear in time, which gives each event its
time in µs. There is no noise, refractory time or leak.
"""

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sj_ottt.data.events import EVENT_DTYPE, write_events
from sj_ottt.data.frames import check_size
from sj_ottt.errors import InputError
from sj_ottt.files import atomic_write

Seed = int | Sequence[int] | np.random.Generator

# The corners of N-MNIST's path, (x, y) in units of its extent: down right, up right, back left.
_CORNERS = np.array([(-0.5, -0.5), (0.0, 0.5), (0.5, -0.5), (-0.5, -0.5)])


def saccade_events(
    image: np.ndarray,
    *,
    sensor_size: tuple[int, int] = (34, 34),
    duration_us: int = 300_000,
    step_us: int = 2_000,
    travel: float = 0.15,
    threshold: float = 0.3,
    mismatch: float = 0.03,
    eps: float = 0.2,
    seed: Seed = 0,
) -> np.ndarray:
    """Record a still image with the simulated sensor, moved along three saccades of equal time.

    The image is scaled to fit the sensor less the way it travels, on black, and goes round a
    triangle; each saccade starts and ends at rest.

    Args:
        image: Grayscale [h, w]: floats in [0, 1], or uint8.
        sensor_size: (height, width) in pixels.
        duration_us: Length of the recording in µs.
        step_us: Length of a simulation step in µs.
        travel: Extent of the path as a fraction of the sensor's shorter side.
        threshold: Contrast threshold, in units of log intensity.
        mismatch: Standard deviation of the thresholds between pixels, relative to ``threshold``.
        eps: Intensity added before the logarithm: the darkest level that the pixels tell apart.
        seed: Of the thresholds; equal seeds give equal events.

    Returns:
        Events [n] of `EVENT_DTYPE` in order of time, within 1 .. ``duration_us`` µs.

    Raises:
        InputError: The image is no grayscale image in [0, 1].
    """
    image = _check_image(image)
    height, width = check_size("sensor_size", sensor_size)
    steps = math.ceil(duration_us / step_us)
    times = np.minimum(np.arange(steps + 1) * step_us, duration_us)

    extent = travel * min(height, width)
    offsets = _path(times / duration_us) * extent
    scale = min((height - extent) / image.shape[0], (width - extent) / image.shape[1])
    columns = _sampling(offsets[:, 0], width, image.shape[1], scale)
    rows = _sampling(offsets[:, 1], height, image.shape[0], scale)
    video = np.clip(rows @ image @ columns.swapaxes(1, 2), 0, 1)
    return sensor_events(video, times, threshold=threshold, mismatch=mismatch, eps=eps, seed=seed)


def sensor_events(
    video: np.ndarray,
    times: np.ndarray,
    *,
    threshold: float = 0.3,
    mismatch: float = 0.03,
    eps: float = 0.2,
    seed: Seed = 0,
) -> np.ndarray:
    """Turn a video into events by the pixel model in this module's description.

    Args:
        video: Intensity in [0, 1], float [S + 1, H, W]; the first image sets the reference.
        times: Time of each image in µs, rising, int [S + 1].
        threshold: As in `saccade_events`.
        mismatch: As in `saccade_events`.
        eps: As in `saccade_events`.
        seed: As in `saccade_events`.

    Returns:
        Events [n] of `EVENT_DTYPE` in order of time.
    """
    n_images, height, width = video.shape
    spread = np.random.default_rng(seed).standard_normal(height * width)
    thresholds = threshold * np.clip(1 + mismatch * spread, 0.5, 1.5)
    # 16-bit intensities: the last bit of a matrix product differs between machines, and must not
    # decide on which side of a threshold a pixel falls.
    brightness = np.log(np.arange(65536) / 65535 + eps)
    level = brightness[np.rint(video.reshape(n_images, -1) * 65535).astype(np.uint16)]
    # In units of the pixel's threshold, relative to the start: the reference is a whole number.
    level = (level - level[0]) / thresholds
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
    start, end = times[step], times[step + 1]
    t = np.clip(start + np.ceil(crossing * (end - start)).astype(np.int64), start + 1, end)

    order = np.argsort(t, kind="stable")
    events = np.empty(len(t), EVENT_DTYPE)
    events["t"] = t[order]
    events["y"], events["x"] = np.divmod(pixel[order], width)
    events["p"] = sign[order] > 0
    return events


def write_event_dataset(
    root: Path,
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    class_names: Sequence[str],
    *,
    split: str,
    seed: int = 0,
    sensor_size: tuple[int, int] = (34, 34),
    progress: bool = False,
) -> None:
    """Record images and write them as one part of a data set that `EventFolder` reads.

    Recording i goes to ``root/<split>/<class>/<i>.npz``, and depends only on its image and on
    (seed, split, i). ``root/dataset.json`` states the sensor's size.

    Args:
        root: The data set's folder, made where it is missing.
        images: n grayscale images, see `saccade_events`.
        labels: n indices into ``class_names``.
        class_names: Names of the class folders.
        split: Name of the part: ``"train"`` or ``"test"``.
        seed: Of the sensor's thresholds.
        sensor_size: (height, width) in pixels.
        progress: Show a progress bar where there is a terminal.

    Raises:
        InputError: Wrong images or labels, or a folder that cannot be written.
    """
    root = Path(root)
    if len(images) != len(labels):
        raise InputError(f"labels: {len(labels)} for {len(images)} images; give one for each")
    if len(labels) and not 0 <= min(labels) <= max(labels) < len(class_names):
        raise InputError(
            f"labels: {min(labels)} to {max(labels)} for {len(class_names)} class names; give "
            "indices into class_names"
        )
    height, width = check_size("sensor_size", sensor_size)
    with atomic_write(root / "dataset.json") as file:
        file.write(json.dumps({"sensor_size": [height, width], "sensor": "simulated"}).encode())
    for label in set(labels):
        (root / split / class_names[label]).mkdir(parents=True, exist_ok=True)
    part = zlib.crc32(split.encode())
    samples = tqdm(
        zip(images, labels, strict=True),
        desc=f"recording {split}",
        total=len(images),
        leave=False,
        disable=None if progress else True,
    )
    for i, (image, label) in enumerate(samples):
        events = saccade_events(image, sensor_size=(height, width), seed=(seed, part, i))
        write_events(root / split / class_names[label] / f"{i:05d}.npz", events)


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
    """Follow the levels [S + 1, P] by whole numbers that stay less than one away from them."""
    low, high = np.floor(level), np.ceil(level)
    reference = np.zeros_like(level)
    for i in range(1, len(level)):
        np.maximum(reference[i - 1], low[i], out=reference[i])
        np.minimum(reference[i], high[i], out=reference[i])
    return reference
