"""Hot pixels: those that fire without a cause."""

import numpy as np

from sj_ottt.data.frames.frames import check_size
from sj_ottt.errors import InputError


def hot_pixels(
    events: np.ndarray, sensor_size: tuple[int, int], *, ratio: float = 10.0
) -> np.ndarray:
    """Find the pixels that fire far more often than those around them.

    A pixel with c events is hot where ``c > ratio * (1 + m)``, m being the median of the events in
    the 5 x 5 pixels around it, mirrored at the sensor's edges: what passes before a sensor excites
    neighbours alike, a defect does not. The median ignores other hot pixels close by, up to a
    dozen, and the 1 lets a lone pixel in silent surroundings have ``ratio`` events.

    Args:
        events: [n] of `EVENT_DTYPE` inside the sensor, or counts [..., H, W], summed over the rest.
        sensor_size: (height, width) in pixels.
        ratio: How many times as often counts as hot, at least 1.

    Returns:
        Bool [H, W].

    Raises:
        InputError: Counts of another size than the sensor's, or a wrong argument.
    """
    from scipy.ndimage import median_filter

    sensor_size = check_size("sensor_size", sensor_size)
    check_ratio("ratio", ratio)
    if events.dtype.names:
        pixel = events["y"].astype(np.int64) * sensor_size[1] + events["x"]
        counts = np.bincount(pixel, minlength=sensor_size[0] * sensor_size[1])
        counts = counts.reshape(sensor_size)
    elif events.shape[-2:] == sensor_size:
        counts = events.reshape(-1, *sensor_size).sum(0)
    else:
        raise InputError(
            f"counts of shape {list(events.shape)} do not end in the sensor's size "
            f"{list(sensor_size)}: give [..., H, W]"
        )
    around = median_filter(counts, size=5, mode="mirror")
    return counts > ratio * (1 + around)


def check_ratio(name: str, ratio: float) -> float:
    """Return ``ratio``; `InputError`, naming the argument, unless it is a number from 1 on."""
    if isinstance(ratio, bool) or not 1 <= ratio < np.inf:
        raise InputError(f"{name}={ratio!r}: give a number from 1 on (10 is usual)")
    return ratio
