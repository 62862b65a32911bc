"""The data of a run: parts that do not overlap, and what identifies them."""

import numpy as np
import pytest
import torch
from PIL import Image

from sj_ottt import InputError
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.training_data import TrainingData
from tests.helpers import CLASSES, write_recordings


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("bands"), {"train": 10, "test": 3})


def opened(recordings, **options) -> TrainingData:
    return TrainingData.open(TrainConfig(data=str(recordings), steps=3, **options))


def test_parts(recordings):
    data = opened(recordings, val_fraction=0.2, train_samples=21)
    train, validation = set(data.train.indices), set(data.validation.indices)
    assert not train & validation and len(train | validation) == 21
    assert (len(validation), len(data.test)) == (3, 9)
    assert np.bincount(data.train_targets).tolist() == [6, 6, 6]
    assert (data.classes, data.steps, data.in_chans) == (CLASSES, 3, 2)
    of_recordings = {"sensor_size": (16, 16), "window": None, "min_events": None}
    described = data.describe_input()
    activity = described.pop("activity")
    assert described == of_recordings and len(activity.rates) == len(activity.on_shares) == 3


def test_images_state_their_channels_and_statistics(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6), np.uint8)
    labels = np.arange(8, dtype=np.uint8) % 2
    parts = {f"{part}_{k}": v for part in ("train", "test")
             for k, v in (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(tmp_path / "x.npz", class_names=["a", "b"], **parts)
    data = opened(tmp_path / "x.npz", val_fraction=0)
    assert (data.classes, data.steps, data.in_chans, len(data.validation)) == (("a", "b"), 3, 1, 0)
    (mean,), (std,) = data.describe_input()["stats"]
    values = images / 255
    assert (mean, std) == pytest.approx((values.mean(), values.std(ddof=1)), rel=1e-5)
    rows = TrainingData.open(TrainConfig(data=str(tmp_path / "x.npz"), encoding="rows"))
    assert (rows.steps, rows.in_chans) == (6, 6)  # a row of pixels at a time


def test_examples_are_the_first_of_each_class_as_they_look(recordings):
    data = opened(recordings, flip=1.0)
    examples = list(data.examples(2))
    assert len(examples) == 2 and len(list(data.examples(9))) == 3
    counts = torch.from_numpy(np.array(data.raw.counts[[0, 10]])).float()
    for example, expected in zip(examples, counts, strict=True):
        # As many events in the frames together, and none of them moved or scaled.
        torch.testing.assert_close(example.sum(0), expected.sum(0))


def test_the_digest_tells_data_apart(recordings, tmp_path):
    digest = opened(recordings).digest()
    assert opened(recordings, flip=0.5, seed=3).digest() == digest
    other = write_recordings(tmp_path / "other", {"train": 10, "test": 2})
    assert opened(other).digest() != digest


def test_parts_of_different_classes_are_refused(tmp_path):
    for part, name in (("train", "a"), ("test", "b")):
        (tmp_path / part / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / part / name / "0.png")
    with pytest.raises(InputError, match="train and test have different classes: a and b"):
        opened(f"folder:{tmp_path}", val_fraction=0)
