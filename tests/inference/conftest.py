"""Trained models, and recordings in which something has changed since."""

import pytest

from sj_ottt.data import write_events
from sj_ottt.run import evaluation
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.training import train
from tests.helpers import CLASSES, write_recordings
from tests.inference.recordings import band


@pytest.fixture(scope="package")
def run(tmp_path_factory):
    """A run on recordings of 100 ms that knows its three classes."""
    root = tmp_path_factory.mktemp("live")
    data = write_recordings(root / "data", {"train": 20, "test": 3})
    config = TrainConfig(
        model="test_ottt_vgg", data=str(data), out=str(root / "run"), steps=3, epochs=6,
        batch_size=10, lr=0.1, device="cpu", val_fraction=0,
    )  # fmt: skip
    assert train(config)["test_accuracy"] == 1.0
    return root / "run"


@pytest.fixture
def trained(run):
    return evaluation.load_trained(run, "cpu")


@pytest.fixture(scope="package")
def ltc(tmp_path_factory):
    """A run of LTC neurons, which start at random and whose last output is the prediction."""
    root = tmp_path_factory.mktemp("ltc")
    data = write_recordings(root / "data", {"train": 12, "test": 2})
    config = TrainConfig(
        model="test_ltc_cnn", data=str(data), out=str(root / "run"), steps=3, epochs=8,
        batch_size=6, lr=0.02, optimizer="adam", rule="fptt", device="cpu", val_fraction=0,
    )  # fmt: skip
    train(config)
    return root / "run"


@pytest.fixture
def session(tmp_path):
    """Recordings in which left is right: what the run learned no longer holds."""
    root = tmp_path / "session"
    for i in range(24):
        label = i % 3
        (root / CLASSES[2 - label]).mkdir(parents=True, exist_ok=True)
        write_events(root / CLASSES[2 - label] / f"{i:02d}.npz", band(label, seed=100 + i))
    files = sorted(root.rglob("*.npz"), key=lambda path: path.name)
    return files[:18], files[18:]
