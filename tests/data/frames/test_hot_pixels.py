"""Hot pixels are found where they are, and nothing else is."""

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import EVENT_DTYPE, hot_pixels, read_events


def test_planted_pixels_are_found_at_any_event_rate():
    rng = np.random.default_rng(0)
    for rate in (0.01, 1.0, 30.0, 1000.0):
        counts = rng.poisson(rate, (40, 50))
        planted = np.zeros((40, 50), bool)
        planted[[0, 5, 5, 39, 20], [0, 7, 8, 49, 0]] = True  # corners, an edge, two side by side
        counts[planted] = 12 * (rate + 1) + 20
        assert np.array_equal(hot_pixels(counts, (40, 50)), planted)


def test_the_rule_by_hand():
    counts = np.full((7, 7), 4)
    counts[3, 3] = 50
    assert not hot_pixels(counts, (7, 7)).any()  # 10 * (1 + 4)
    counts[3, 3] = 51
    assert hot_pixels(counts, (7, 7)).sum() == 1
    assert not hot_pixels(counts, (7, 7), ratio=11).any()
    assert hot_pixels(counts / 4, (7, 7), ratio=6).sum() == 1  # 51 / 4 > 6 * 2


def test_events_and_counts_agree():
    rng = np.random.default_rng(1)
    events = np.zeros(900, EVENT_DTYPE)
    events["y"], events["x"] = rng.integers(0, 9, 900), rng.integers(0, 11, 900)
    events["p"] = rng.integers(0, 2, 900)
    events["y"][:300], events["x"][:300] = 4, 10
    counts = np.zeros((2, 9, 11), int)
    np.add.at(counts, (events["p"], events["y"], events["x"]), 1)
    found = hot_pixels(events, (9, 11))
    assert np.array_equal(found, hot_pixels(counts, (9, 11)))
    assert np.argwhere(found).tolist() == [[4, 10]]
    assert not hot_pixels(events[:0], (9, 11)).any()
    with pytest.raises(InputError, match="do not end in the sensor's size"):
        hot_pixels(counts, (11, 9))
    with pytest.raises(InputError, match="ratio=0"):
        hot_pixels(counts, (9, 11), ratio=0)


def test_a_real_recording_loses_little(nmnist):
    """A camera's signal is no hot pixel: of 20 recordings less than one event in a hundred."""
    lost = total = 0
    for path in sorted(nmnist.glob("test/*/*.bin"))[::5]:
        events = read_events(path)
        hot = hot_pixels(events, (34, 34))
        lost += hot[events["y"], events["x"]].sum()
        total += len(events)
    assert total > 50_000 and lost / total < 0.01
