"""Events in groups of pixels that lie side by side: one word for all, and a bit for each."""

import numpy as np

from sj_ottt.data.recordings.events import EVENT_DTYPE


def set_bits(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each set bit, from the lowest of the first mask on, its mask and its place.

    Args:
        masks: Little-endian unsigned integers [n].

    Returns:
        Index of the mask and of the bit in it, int64 [number of set bits].
    """
    bits = np.unpackbits(np.ascontiguousarray(masks).view(np.uint8), bitorder="little")
    # Of booleans, unlike of bytes, the set ones are found without a jump for each.
    places = np.flatnonzero(bits.view(np.bool_))
    width = 8 * masks.itemsize
    return places // width, places % width


def table(t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return events [n] of `EVENT_DTYPE`, of integers [n] that it holds without a check."""
    events = np.empty(len(t), EVENT_DTYPE)
    events["t"], events["x"], events["y"], events["p"] = t, x, y, p
    return events
