"""One way from events, or an image, to what a network sees; batches of either kind."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from sj_ottt import InputError
from sj_ottt.data import (
    EVENT_DTYPE,
    Augmentation,
    EventFolder,
    Framing,
    ImageSet,
    NormalizeFrames,
    Preprocessing,
    collate_for,
    collate_still_images,
    collate_time_first,
    events_to_frames,
    read_events,
)
from sj_ottt.data.loading import BatchLoader
from tests.helpers import write_recordings

FRAMINGS = (
    {"steps": 4},
    {"steps": 3, "size": (7, 9), "split_by": "duration"},
    {"steps": 4, "frames": "surface", "tau_us": 9e3},
    {"steps": 2, "crop": (12, 14), "hot_pixels": 30.0},
)


@pytest.fixture
def recordings(tmp_path):
    return write_recordings(tmp_path / "data", {"train": 3, "test": 1})


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    parts = {}
    for part, n in (("train", 6), ("test", 4)):
        parts[f"{part}_images"] = rng.integers(0, 256, (n, 6, 5), np.uint8)
        parts[f"{part}_labels"] = np.arange(n, dtype=np.uint8) % 2
    np.savez(tmp_path / "x.npz", class_names=np.array(["a", "b"]), **parts)
    return str(tmp_path / "x.npz")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("options", FRAMINGS)
def test_a_data_set_and_single_recordings_go_the_same_way(recordings, options, normalize):
    preprocessing = Preprocessing.from_options({**options, "normalize": normalize, "lr": 0.1})
    data = preprocessing.open(str(recordings), "train")
    for i in (0, 4, 8):
        path = data.root / data.files[i]
        frames = preprocessing(read_events(path), data.sensor_size, path)
        assert frames.dtype == torch.float32 and torch.equal(frames, data[i][0])
        assert frames.shape == (options["steps"], 2, *data.frame_size) and frames.any()


def test_against_counts_scaled_by_hand(recordings):
    path = recordings / "train" / "left" / "0.npz"
    events = read_events(path)
    counts = torch.from_numpy(events_to_frames(events, 3, (16, 16))).float()
    plain = Preprocessing(Framing(3), normalize=False)
    assert torch.equal(plain(events, (16, 16), path), counts)
    scaled = Preprocessing(Framing(3))(events, (16, 16), path)
    assert torch.equal(scaled, NormalizeFrames()(counts)) and not torch.equal(scaled, counts)


def test_a_single_frame_of_a_stream_is_a_frame_of_counts(recordings):
    events = read_events(recordings / "train" / "right" / "1.npz")
    whole = Preprocessing(Framing(5, (8, 8), "duration"))
    frame = whole.single_frame()(events, (16, 16), "stream")
    counts = torch.from_numpy(events_to_frames(events, 1, (16, 16), (8, 8))).float()
    assert frame.shape == (1, 2, 8, 8) and torch.equal(frame[0], NormalizeFrames()(counts[0]))
    one_event = np.zeros(1, EVENT_DTYPE)
    assert whole.single_frame()(one_event, (16, 16), "stream").any()
    with pytest.raises(InputError, match="stream: event 0 at x=16"):
        one_event["x"] = 16
        whole.single_frame()(one_event, (16, 16), "stream")


def test_options_come_back_from_a_file():
    options = {
        "steps": 3, "size": (8, 9), "split_by": "duration", "frames": "surface", "tau_us": 9e3,
        "crop": (1, 2, 8, 9), "hot_pixels": 20.0, "normalize": False, "encoding": "rows",
        "stats": ((0.5,), (0.2,)),
    }  # fmt: skip
    first = Preprocessing.from_options(options)
    assert first.options() == options
    assert Preprocessing.from_options(json.loads(json.dumps(first.options()))) == first
    # A file that lacks an option is older than it.
    assert Preprocessing.from_options({"steps": 6}) == Preprocessing(Framing(6))
    more = first.with_steps(12)
    assert more.framing.steps == 12 and more.with_steps(3) == first
    with pytest.raises(InputError, match=r"encoding='row': choose one of direct, poisson"):
        Preprocessing(Framing(3), encoding="row")
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.normalize = True


def test_views_share_their_samples_and_keep_their_transforms(recordings, images):
    augmentation = Augmentation(flip=0.5, cutout=2)
    for spec, raw in ((str(recordings), None), (images, None)):
        preprocessing = Preprocessing(Framing(3))
        plain = preprocessing.open(spec, "train")
        names = [type(step).__name__ for step in plain.transform.transforms]
        assert names == ["NormalizeFrames" if spec != images else "Normalize"]
        augmented = preprocessing.augment(plain, augmentation)
        steps = [type(step).__name__ for step in augmented.transform.transforms]
        assert steps == ["RandomFlip", *names, "Cutout"]
        assert [type(step).__name__ for step in plain.transform.transforms] == names
        assert plain.unprocessed().transform is raw
        assert not torch.equal(plain.unprocessed()[0][0], plain[0][0])
        assert np.shares_memory(plain.targets, augmented.targets)
        assert type(augmented) is type(plain) and len(augmented) == len(plain)
    for options in ({"crop": (4, 4)}, {"time_jitter": 0.5}):
        preprocessing = Preprocessing.from_options({"steps": 3, **options})
        data = preprocessing.open(images, "train")
        with pytest.raises(InputError, match=r"is for recordings, but .*x\.npz holds still"):
            preprocessing.augment(data, Augmentation.from_options(options))


def test_statistics_of_other_images_take_the_place_of_these(images):
    own = Preprocessing(Framing(3)).open(images, "test")
    given = Preprocessing.from_options({"steps": 3, "stats": [[0.1], [2.0]]}).open(images, "test")
    assert (given.mean, given.std) == ((0.1,), (2.0,)) and own.mean != given.mean
    raw = own.unprocessed()[1][0]
    torch.testing.assert_close(given[1][0], (raw - 0.1) / 2)


@pytest.mark.parametrize(
    ("encoding", "shape"),
    [("direct", (4, 1, 6, 5)), ("poisson", (3, 4, 1, 6, 5)), ("rows", (6, 4, 5))],
)
def test_a_data_set_says_whether_it_is_still(images, encoding, shape):
    """A row-wise sequence [6, 5], too, whose number of dimensions says nothing."""
    data = Preprocessing(Framing(3), encoding=encoding).open(images, "test")
    assert data.still == (encoding == "direct")
    assert data.unprocessed().still
    for loaded in (data, Subset(data, range(4)), Subset(Subset(data, range(4)), range(4))):
        (batch, labels), *rest = BatchLoader(loaded, batch_size=4, workers=0).one_pass()
        assert batch.shape == shape and labels.tolist() == [0, 1, 0, 1] and not rest
    assert pickle.loads(pickle.dumps(data)).still == data.still


def test_batches_begin_with_time(recordings):
    data = EventFolder(recordings, 4, split="train")
    assert not data.still and collate_for(data) is collate_time_first
    frames, labels = next(iter(DataLoader(data, 9, collate_fn=collate_time_first)))
    assert frames.shape == (4, 9, 2, 16, 16) and labels.dtype == torch.int64
    assert torch.equal(frames[:, 5], data[5][0]) and labels[5] == data[5][1]


def test_still_images_are_stacked_as_they_are(images):
    data = ImageSet(images, "test")
    assert collate_for(Subset(data, [1])) is collate_still_images
    batch, _ = next(iter(DataLoader(data, 3, collate_fn=collate_for(data))))
    assert torch.equal(batch[2], data[2][0])


def test_another_data_set_has_to_say_what_it_holds():
    data = TensorDataset(torch.rand(4, 3, 2, 5, 5), torch.zeros(4))
    with pytest.raises(InputError, match="TensorDataset does not say whether it holds still"):
        collate_for(data)
    data.still = False
    assert collate_for(data) is collate_time_first
