"""Frames: each event in exactly one, edges that can be said in a sentence."""

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import EVENT_DTYPE, Framing, crop_events, events_to_frames, time_surface


def recording(n=1000, size=(9, 7), seed=0, duration=100_000):
    rng = np.random.default_rng(seed)
    table = np.empty(n, EVENT_DTYPE)
    table["t"] = np.sort(rng.integers(0, duration, n))
    table["y"], table["x"] = rng.integers(0, size[0], n), rng.integers(0, size[1], n)
    table["p"] = rng.integers(0, 2, n)
    return table


def slowly(table, steps, size, out, split_by):
    """The obvious loop."""
    frames = np.zeros((steps, 2, *out), int)
    n, t0, t1 = len(table), int(table["t"][0]), int(table["t"][-1])
    for i, (t, x, y, p) in enumerate(table.tolist()):
        if split_by == "count":
            step = next(s for s in range(steps) if i < (s + 1) * n // steps)
        else:
            step = steps - 1
            while step and t < t0 + step * (t1 - t0) // steps:
                step -= 1
        frames[step, p, y * out[0] // size[0], x * out[1] // size[1]] += 1
    return frames


@pytest.mark.parametrize("split_by", ["count", "duration"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("out", [None, (4, 5), (20, 20)])
def test_against_the_obvious_loop(split_by, steps, out):
    table = recording(211)
    frames = events_to_frames(table, steps, (9, 7), out, split_by)
    assert np.array_equal(frames, slowly(table, steps, (9, 7), out or (9, 7), split_by))
    assert frames.sum() == 211


def test_no_frame_is_empty_by_rounding():
    for n in range(1, 60):
        table = recording(n)
        for steps in range(1, n + 1):
            per_frame = events_to_frames(table, steps, (9, 7)).sum((1, 2, 3))
            assert per_frame.min() >= 1 and per_frame.max() - per_frame.min() <= 1


def test_duration_edges():
    """Edges at whole µs; an event on an edge opens the next frame, the last event ends the last."""
    table = recording(5)
    table["t"] = [100, 149, 150, 199, 200]
    per_frame = events_to_frames(table, 2, (9, 7), split_by="duration").sum((1, 2, 3))
    assert per_frame.tolist() == [2, 3]
    table["t"] = 42
    assert events_to_frames(table, 3, (9, 7), split_by="duration").sum() == 5


def test_equals_spikingjellys_integration_where_it_is_right():
    """SpikingJelly puts the remainder of n / T into the last frame, so compare without one."""
    sj_utils = pytest.importorskip("spikingjelly.datasets.utils", exc_type=Exception)
    integrate = getattr(sj_utils, "integrate_events_by_fixed_frames_number", None)
    if integrate is None:
        pytest.skip("this SpikingJelly has no integration under the known name")
    table = recording(400)
    theirs = integrate({k: table[k] for k in "txyp"}, "number", 8, 9, 7)
    assert np.array_equal(events_to_frames(table, 8, (9, 7)), theirs)


def test_sizes_beyond_a_byte():
    table = recording(500, (300, 200))
    frames = events_to_frames(table, 1, (300, 200))
    assert frames[0, table["p"][3], table["y"][3], table["x"][3]] > 0 and frames.sum() == 500


def test_a_time_surface_by_hand():
    table = np.zeros(4, EVENT_DTYPE)
    table["t"], table["x"], table["p"] = [0, 100, 300, 400], [0, 0, 1, 0], [1, 1, 0, 1]
    by_duration = time_surface(table, 2, (1, 2), None, "duration", tau_us=50)
    # Frames end at 200 and 400 µs; where nothing fired the surface decays, or is still 0.
    expected = [
        [[[0, 0]], [[np.exp(-100 / 50), 0]]],
        [[[0, np.exp(-100 / 50)]], [[1, 0]]],
    ]
    np.testing.assert_allclose(by_duration, expected, rtol=1e-6)
    # Frames end with their last events, at 100 and 400 µs; tau is half of 400 / 2 µs.
    by_count = time_surface(table, 2, (1, 2))
    expected = [[[[0, 0]], [[1, 0]]], [[[0, np.exp(-100 / 100)]], [[1, 0]]]]
    np.testing.assert_allclose(by_count, expected, rtol=1e-6)


@pytest.mark.parametrize("split_by", ["count", "duration"])
@pytest.mark.parametrize("out", [None, (4, 5)])
def test_a_time_surface_against_the_obvious_loop(split_by, out):
    table, steps, tau = recording(211), 5, 9_000.0
    surface = time_surface(table, steps, (9, 7), out, split_by, tau)
    height, width = out or (9, 7)
    n, t0, t1 = len(table), int(table["t"][0]), int(table["t"][-1])
    for step in range(steps):
        if split_by == "count":
            seen = table[: (step + 1) * n // steps]
            end = seen["t"][-1]
        else:
            end = t0 + (step + 1) * (t1 - t0) // steps
            seen = table[table["t"] < end] if step < steps - 1 else table
        expected = np.zeros((2, height, width))
        for t, x, y, p in seen.tolist():
            expected[p, y * height // 9, x * width // 7] = np.exp(-(end - t) / tau)
        np.testing.assert_allclose(surface[step], expected, rtol=1e-5)
    assert surface.dtype == np.float32 and surface.max() <= 1 and surface.min() == 0
    still = recording(5)
    still["t"] = 42
    assert time_surface(still, 3, (9, 7), split_by="duration").max() == 1


def test_a_crop_only_drops_events():
    table = recording(1000)
    whole = events_to_frames(table, 1, (9, 7))
    for crop, box in (((5, 3), np.s_[2:7, 2:5]), ((1, 2, 4, 5), np.s_[1:5, 2:7])):
        inside, size = crop_events(table, (9, 7), crop)
        assert size == tuple(crop[-2:]) and whole[..., *box].sum() == len(inside)
        assert np.array_equal(events_to_frames(inside, 1, size), whole[..., *box])
    assert np.array_equal(table, recording(1000))  # its argument is left alone
    everything, size = crop_events(table, (9, 7), (9, 7))
    assert np.array_equal(everything, table) and size == (9, 7)
    for crop in ((10, 7), (0, 0, 9, 8), (3, 3, 7, 1), (-1, 0, 2, 2), (0, 3), (1, 2, 3), 4):
        with pytest.raises(InputError, match="crop="):
            crop_events(table, (9, 7), crop)


def test_framing_puts_it_together():
    table = recording(1000)
    noisy = np.concatenate([table, np.repeat(table[:1], 900)])
    noisy["t"] = np.arange(len(noisy))
    hot = (int(table["y"][0]), int(table["x"][0]))
    counts = Framing(4)(noisy, (9, 7), "noisy")
    assert counts.sum() == 1900 and counts[..., *hot].sum() >= 900
    clean = Framing(4, hot_pixels=5)(noisy, (9, 7), "noisy")
    assert clean[..., *hot].sum() == 0 and clean.sum() == 1900 - counts[..., *hot].sum()
    cropped = Framing(4, crop=(5, 3), size=(2, 2))
    assert cropped.frame_size((9, 7)) == (2, 2)
    assert Framing(4, crop=(5, 3)).frame_size((9, 7)) == (5, 3)
    inside, _ = crop_events(table, (9, 7), (5, 3))
    assert cropped(table, (9, 7), "some").sum() == len(inside)
    framing = Framing(4, frames="surface", tau_us=2e4)
    surface = time_surface(table, 4, (9, 7), tau_us=2e4)
    kept = framing(table, (9, 7), "some")
    assert kept.dtype == np.uint8
    np.testing.assert_allclose(kept * framing.unit, surface, atol=0.5 / 255 + 1e-6)
    table["y"] = 8
    with pytest.raises(InputError, match="some: has no events but those"):
        Framing(4, crop=(0, 0, 3, 3))(table, (9, 7), "some")
    for wrong, words in (
        ({"frames": "voxels"}, "frames='voxels'"),
        ({"tau_us": 0}, "tau_us=0"),
        ({"crop": (1,)}, "crop="),
        ({"hot_pixels": 0.5}, "hot_pixels=0.5"),
        ({"size": (1, 2, 3)}, "size="),
        ({"steps": None}, "steps=None"),
    ):
        with pytest.raises(InputError, match=words):
            Framing(**{"steps": 4, **wrong})


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((0, (9, 7)), "steps=0"),
        ((2.5, (9, 7)), "steps=2.5"),
        ((True, (9, 7)), "steps=True"),
        ((2, (9,)), "sensor_size"),
        ((2, (9, 7), (0, 4)), "size="),
        ((2, (9, 7), None, "time"), "split_by='time'"),
        ((2, (8, 7)), "outside the sensor"),
        ((2000, (9, 7)), "1000 events cannot fill 2000 frames"),
    ],
)
def test_bad_arguments(args, words):
    with pytest.raises(InputError, match=words):
        events_to_frames(recording(), *args)
