"""The simulated sensor and the data sets made with it."""

import hashlib
import zlib

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import (
    check_events,
    open_dataset,
    saccade_events,
    video_events,
    write_event_dataset,
)
from sj_ottt.data.sets.ndigits import ndigits_root
from sj_ottt.data.simulate import camera


def edge(position, width=20):
    """A dark-to-bright edge, bright on the left, at a column (float): [4, width]."""
    row = np.clip(position - np.arange(width), 0.0, 1.0)
    return np.repeat(row[None], 4, 0)


TIMES = np.arange(11) * 1000


def test_a_still_image_gives_no_events():
    assert len(video_events(np.repeat(edge(7.3)[None], 11, 0), TIMES)) == 0
    assert len(saccade_events(np.zeros((8, 8)))) == 0


def test_a_bright_edge_that_advances_gives_on_events_where_it_goes():
    video = np.stack([edge(5 + i) for i in range(11)])
    forward = video_events(video, TIMES)
    assert len(forward) and (forward["p"] == 1).all()
    assert forward["x"].min() == 5 and forward["x"].max() == 14
    # The edge moves one column per ms, and so do the events.
    for column in range(5, 15):
        t = forward["t"][forward["x"] == column]
        assert (column - 5) * 1000 < t.min() and t.max() <= (column - 4) * 1000
    backward = video_events(video[::-1], TIMES)
    assert (backward["p"] == 0).all() and abs(len(backward) - len(forward)) <= 8


def test_number_of_events_is_contrast_over_threshold():
    """ln((1 + eps) / eps) / threshold events from black to white, whatever the steps between."""
    eps, threshold = 0.2, 0.15
    expected = int(np.log((1 + eps) / eps) / threshold)
    for steps in (1, 3, 50):
        ramp = np.linspace(0, 1, steps + 1)[:, None, None] * np.ones((1, 2, 3))
        times = np.linspace(0, 9000, steps + 1).astype(np.int64)
        events = video_events(ramp, times, threshold=threshold, mismatch=0.0, eps=eps)
        assert len(events) == 6 * expected
        check_events(events, "ramp", (2, 3))
    halved = video_events(ramp, times, threshold=threshold / 2, mismatch=0.0, eps=eps)
    assert len(halved) == pytest.approx(12 * expected, abs=6)


def test_event_times_are_those_of_the_linear_interpolation():
    eps, threshold = 0.2, 0.4
    level = np.log(eps) + np.array([0.0, 1.0])
    video = (np.exp(level) - eps)[:, None, None]
    events = video_events(video, np.array([0, 10_000]), threshold=threshold, mismatch=0, eps=eps)
    assert events["t"].tolist() == pytest.approx([4000, 8000], abs=3)


def test_saccades_stay_on_the_sensor_and_in_time():
    rng = np.random.default_rng(0)
    image = rng.random((8, 8))
    events = saccade_events(image, sensor_size=(30, 40), duration_us=90_000, seed=1)
    check_events(events, "image", (30, 40))
    assert len(events) > 300 and events["t"].min() >= 1 and events["t"].max() <= 90_000
    assert 0.3 < events["p"].mean() < 0.7  # it comes back to where it was
    thirds = np.histogram(events["t"], 3, (0, 90_000))[0]
    assert thirds.min() > 0.15 * thirds.sum()  # three saccades
    again = saccade_events(image, sensor_size=(30, 40), duration_us=90_000, seed=1)
    assert np.array_equal(events, again)
    other = saccade_events(image, sensor_size=(30, 40), duration_us=90_000, seed=2)
    assert not np.array_equal(events, other)


@pytest.mark.parametrize(
    "image",
    [np.zeros((2, 2, 3)), np.full((4, 4), 2.0), np.full((4, 4), np.nan), np.zeros((4, 4), int)],
)
def test_wrong_images(image):
    with pytest.raises(InputError, match="image: "):
        saccade_events(image)


def test_position_and_speed():
    image = np.random.default_rng(0).random((8, 8))
    kwargs = {"sensor_size": (40, 50), "travel": 0.1, "zoom": 0.7}
    still = saccade_events(image, **kwargs)
    moved = saccade_events(image, position=(3, -5), **kwargs)
    assert moved["y"].mean() - still["y"].mean() == pytest.approx(3, abs=0.8)
    assert moved["x"].mean() - still["x"].mean() == pytest.approx(-5, abs=0.8)
    assert np.ptp(still["y"]) < 32 < np.ptp(saccade_events(image, **{**kwargs, "zoom": 1})["y"])
    fast = saccade_events(image, rounds=2, **kwargs)
    assert len(fast) == pytest.approx(2 * len(still), rel=0.15)
    # It stands still where a saccade ends: after a third of the time, or a sixth. Where a round
    # ends, each pixel is back at its first level to the bit, which is a crossing for many.
    for events, ends in ((still, (100_000, 200_000)), (fast, (50_000, 100_000, 200_000, 250_000))):
        near = np.abs(events["t"][:, None] - np.array(ends)).min(1) < 3000
        assert near.mean() < 0.2 * len(ends) * 6000 / 300_000


@pytest.mark.parametrize(
    ("kwargs", "events", "digest"),
    [
        ({"digit": 0}, 4998, "aec75a784e31d888"),
        ({"digit": 7}, 4586, "2c1832bc2bfa66e0"),
        ({"digit": 1000}, 4178, "740227acb264b9ec"),
        (
            {
                "digit": 3, "sensor_size": (30, 40), "duration_us": 91_000, "step_us": 1500,
                "travel": 0.3, "threshold": 0.2, "mismatch": 0.1, "eps": 0.1, "seed": 5,
            },
            14202,
            "515ffb8416d2b088",
        ),
    ],
)  # fmt: skip
def test_events_of_released_data_sets_stay_the_same(kwargs, events, digest):
    """Of `ndigits` as of version 1, and of the shipped weights' training set."""
    from sklearn.datasets import load_digits

    digit = kwargs["digit"]
    kwargs = {"seed": (0, zlib.crc32(b"train"), digit), **kwargs}
    del kwargs["digit"]
    recorded = saccade_events(load_digits().images[digit] / 16, **kwargs)
    assert len(recorded) == events
    assert hashlib.sha256(recorded.tobytes()).hexdigest()[:16] == digest


def still(intensity, n_images=5, size=(20, 30)):
    return np.full((n_images, *size), intensity)


def test_leak_gives_on_events_at_its_rate_and_not_in_step():
    events = video_events(still(0.5), fps=2, leak_hz=10, mismatch=0, seed=1)
    check_events(events, "leak", (20, 30))
    per_pixel = np.bincount(events["y"] * 30 + events["x"], minlength=600)
    assert (per_pixel == 20).all() and (events["p"] == 1).all()  # 2 s
    first = events["t"][:600]
    assert first.max() == pytest.approx(100_000, rel=0.05) and len(np.unique(first)) > 500
    # Half the threshold is crossed twice as often.
    thresholds = 0.3 * np.clip(1 + 0.2 * np.random.default_rng(1).standard_normal(600), 0.5, 1.5)
    uneven = video_events(still(0.5), fps=2, leak_hz=10, mismatch=0.2, seed=1)
    per_pixel = np.bincount(uneven["y"] * 30 + uneven["x"], minlength=600)
    assert np.abs(per_pixel - 20 * 0.3 / thresholds).max() <= 1


@pytest.mark.parametrize(("intensity", "share"), [(0.0, 1.0), (0.5, 0.625), (1.0, 0.25)])
def test_shot_noise_has_its_rate_and_dark_pixels_more(intensity, share):
    events = video_events(still(intensity), fps=2, noise_hz=20, seed=3)
    check_events(events, "noise", (20, 30))
    expected = 600 * 2 * 20 * share
    assert abs(len(events) - expected) < 5 * np.sqrt(expected)
    assert abs(events["p"].sum() - expected / 2) < 5 * np.sqrt(expected)
    assert events["t"].min() >= 1 and events["t"].max() <= 2_000_000
    assert np.bincount(events["y"] * 30 + events["x"], minlength=600).min() > 0
    quarters = np.histogram(events["t"], 4, (0, 2_000_000))[0]
    assert np.abs(quarters - expected / 4).max() < 5 * np.sqrt(expected / 4)


def test_noise_leaves_the_signal_alone():
    image = np.random.default_rng(0).random((8, 8))
    clean = saccade_events(image, seed=4)
    noisy = saccade_events(image, seed=4, noise_hz=5)
    assert len(noisy) > len(clean) + 500
    assert set(clean.tolist()) <= set(noisy.tolist())


def test_refractory_time():
    """Ten thresholds in 10 ms: an event each ms, and deaf for 2.5 ms each third one."""
    eps, threshold = 0.2, 0.15
    level = np.log(eps) + np.array([0.0, 10.001 * threshold])
    video = ((np.exp(level) - eps)[:, None, None] * np.ones((1, 1, 2))).clip(0, 1)
    kwargs = {"threshold": threshold, "mismatch": 0, "eps": eps}
    times = np.array([5_000, 15_001])
    assert len(video_events(video, times, **kwargs)) == 20
    events = video_events(video, times, refractory_us=2_500, **kwargs)
    assert events["x"].tolist() == [0, 1] * 4
    assert events["t"][::2].tolist() == pytest.approx([6_000, 9_000, 12_000, 15_000], abs=3)
    # An event just when the time is over is seen; a pixel does not deafen another.
    t, pixel = np.array([0, 3, 10, 20, 30, 40]), np.array([0, 1, 0, 0, 0, 0])
    kept = camera._outside_refractory(t, pixel, 10)
    assert kept.all()
    kept = camera._outside_refractory(t, pixel, 11)
    assert kept.tolist() == [True, True, False, True, False, True]


def test_refractory_time_against_the_obvious_loop():
    image = np.random.default_rng(0).random((8, 8))
    kwargs = {"sensor_size": (12, 12), "noise_hz": 50, "leak_hz": 5, "seed": 2}
    last, kept = {}, []
    for event in saccade_events(image, **kwargs).tolist():
        t, pixel = event[0], event[1:3]
        if t - last.get(pixel, -10_000) >= 10_000:
            kept.append(event)
            last[pixel] = t
    events = saccade_events(image, refractory_us=10_000, **kwargs)
    assert events.tolist() == kept and len(kept) > 500


def test_a_video_by_frame_rate_in_bytes_and_in_blocks(monkeypatch):
    video = np.random.default_rng(0).integers(0, 256, (20, 9, 11), dtype=np.uint8)
    kwargs = {"noise_hz": 10, "leak_hz": 2, "refractory_us": 50, "seed": 1}
    events = video_events(video, fps=1000, **kwargs)
    check_events(events, "video", (9, 11))
    assert len(events) > 1000 and events["t"].max() <= 19_000
    times = np.arange(20) * 1000
    assert np.array_equal(video_events(video / 255, times, **kwargs), events)
    monkeypatch.setattr(camera, "_BLOCK", 20 * 7)
    assert np.array_equal(video_events(video, times, **kwargs), events)
    assert len(video_events(video[:1], fps=1000, **kwargs)) == 0
    late = video_events(video, times + 10**9, **kwargs)
    assert np.array_equal(late["t"] - 10**9, events["t"])


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"video": np.zeros((3, 4))}, "video: float64 of shape"),
        ({"video": np.full((3, 4, 4), 7.0)}, "video: values from 7.0"),
        ({"video": np.zeros((3, 4, 4), int)}, "video: int64"),
        ({"times": np.arange(3)}, "give one of them"),
        ({"fps": None}, "give one of them"),
        ({"fps": 0}, "fps=0"),
        ({"fps": None, "times": np.arange(4)}, "for 3 images"),
        ({"fps": None, "times": np.arange(3) / 2}, "times: float64"),
        ({"fps": None, "times": np.array([0, 5, 5])}, "do not rise"),
        ({"threshold": 0}, "threshold=0"),
        ({"noise_hz": -1}, "noise_hz=-1"),
        ({"noise_hz": 1e9}, "noise_hz=1000000000.0: give a number from 0 to 10000"),
        ({"leak_hz": float("nan")}, "leak_hz=nan"),
        ({"refractory_us": -1}, "refractory_us=-1"),
    ],
)
def test_wrong_videos(kwargs, words):
    with pytest.raises(InputError, match=words):
        video_events(**{"video": np.zeros((3, 4, 4)), "fps": 10, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"duration_us": 0}, "duration_us=0"),
        ({"step_us": 0}, "step_us=0"),
        ({"travel": 1.0}, "travel=1.0"),
        ({"rounds": -1}, "rounds=-1"),
        ({"zoom": 0}, "zoom=0"),
        ({"position": (1, 2, 3)}, "position="),
        ({"sensor_size": (0, 3)}, "sensor_size="),
    ],
)
def test_wrong_cameras(kwargs, words):
    with pytest.raises(InputError, match=words):
        saccade_events(np.eye(4), **kwargs)


def test_write_event_dataset_depends_on_seed_split_and_index_only(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.random((4, 8, 8)), [0, 1, 1, 0]
    for name, n in (("a", 4), ("b", 2)):
        write_event_dataset(
            tmp_path / name, images[:n], labels[:n], ["no", "yes"], split="train", seed=3
        )
    first = (tmp_path / "a" / "train" / "yes" / "00001.npz").read_bytes()
    assert first == (tmp_path / "b" / "train" / "yes" / "00001.npz").read_bytes()
    data = open_dataset(tmp_path / "a", split="train", steps=3)
    assert data.frame_size == (34, 34) and data.targets.tolist() == [0, 0, 1, 1]
    with pytest.raises(InputError, match="give one for each"):
        write_event_dataset(tmp_path / "c", images, labels[:3], ["no", "yes"], split="train")
    with pytest.raises(InputError, match="indices into class_names"):
        write_event_dataset(tmp_path / "c", images, labels, ["no"], split="train")


@pytest.mark.slow
def test_ndigits(cache):
    """All 1,797 digits, made once, about four fifths of each for training."""
    train, test = (open_dataset("ndigits", split=s, steps=6) for s in ("train", "test"))
    assert len(train) + len(test) == 1797 and 0.19 < len(test) / 1797 < 0.21
    assert train.classes == tuple("0123456789") and train.frame_size == (34, 34)
    assert (train.counts.sum((2, 3, 4)) > 50).all()
    root = ndigits_root()
    assert root.is_relative_to(cache)
    before = root.stat().st_mtime_ns
    assert ndigits_root() == root and root.stat().st_mtime_ns == before
    assert not list(cache.glob(".*"))
