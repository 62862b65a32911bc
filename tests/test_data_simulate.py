"""The simulated sensor and the data sets made with it."""

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import check_events, open_dataset, saccade_events, write_event_dataset
from sj_ottt.data.ndigits import ndigits_root
from sj_ottt.data.simulate import sensor_events


def edge(position, width=20):
    """A dark-to-bright edge, bright on the left, at a column (float): [4, width]."""
    row = np.clip(position - np.arange(width), 0, 1)
    return np.repeat(row[None], 4, 0)


TIMES = np.arange(11) * 1000


def test_a_still_image_gives_no_events():
    assert len(sensor_events(np.repeat(edge(7.3)[None], 11, 0), TIMES)) == 0
    assert len(saccade_events(np.zeros((8, 8)))) == 0


def test_a_bright_edge_that_advances_gives_on_events_where_it_goes():
    video = np.stack([edge(5 + i) for i in range(11)])
    forward = sensor_events(video, TIMES)
    assert len(forward) and (forward["p"] == 1).all()
    assert forward["x"].min() == 5 and forward["x"].max() == 14
    # The edge moves one column per ms, and so do the events.
    for column in range(5, 15):
        t = forward["t"][forward["x"] == column]
        assert (column - 5) * 1000 < t.min() and t.max() <= (column - 4) * 1000
    backward = sensor_events(video[::-1], TIMES)
    assert (backward["p"] == 0).all() and abs(len(backward) - len(forward)) <= 8


def test_number_of_events_is_contrast_over_threshold():
    """ln((1 + eps) / eps) / threshold events from black to white, whatever the steps between."""
    eps, threshold = 0.2, 0.15
    expected = int(np.log((1 + eps) / eps) / threshold)
    for steps in (1, 3, 50):
        ramp = np.linspace(0, 1, steps + 1)[:, None, None] * np.ones((1, 2, 3))
        times = np.linspace(0, 9000, steps + 1).astype(np.int64)
        events = sensor_events(ramp, times, threshold=threshold, mismatch=0.0, eps=eps)
        assert len(events) == 6 * expected
        check_events(events, "ramp", (2, 3))
    halved = sensor_events(ramp, times, threshold=threshold / 2, mismatch=0.0, eps=eps)
    assert len(halved) == pytest.approx(12 * expected, abs=6)


def test_event_times_are_those_of_the_linear_interpolation():
    eps, threshold = 0.2, 0.4
    level = np.log(eps) + np.array([0.0, 1.0])
    video = (np.exp(level) - eps)[:, None, None]
    events = sensor_events(video, np.array([0, 10_000]), threshold=threshold, mismatch=0, eps=eps)
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
