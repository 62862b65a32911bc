"""Events of recordings and streams to predict on."""

import numpy as np

from sj_ottt.data import EVENT_DTYPE

WINDOW = 100_000


def band(label, n=240, seed=0, begin=0, duration=WINDOW):
    """Events of 16 x 16 pixels in a vertical band, as `write_recordings` makes them."""
    rng = np.random.default_rng(seed)
    events = np.empty(n, EVENT_DTYPE)
    events["t"] = begin + np.sort(rng.integers(0, duration, n))
    events["t"][[0, -1]] = begin, begin + duration - 1
    events["x"] = np.clip(rng.normal(3 + 5 * label, 1.5, n).round(), 0, 15)
    events["y"], events["p"] = rng.integers(0, 16, n), rng.integers(0, 2, n)
    return events


def long_recording(labels, **kwargs):
    parts = [band(c, seed=i, begin=i * WINDOW, **kwargs) for i, c in enumerate(labels)]
    return np.concatenate(parts)


def as_text(events):
    return "".join(f"{t},{x},{y},{p}\n" for t, x, y, p in events.tolist()).encode()
