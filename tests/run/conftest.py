"""Recordings and runs that several test files of this folder share."""

from pathlib import Path

import pytest

from sj_ottt.run import training
from sj_ottt.run.config import TrainConfig
from tests.helpers import write_recordings


@pytest.fixture(scope="package")
def recordings(tmp_path_factory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("bands"), {"train": 10, "test": 3})


@pytest.fixture
def options(recordings, tmp_path):
    """A run of seconds that uses everything random: shuffle, shift, dropout, split, init."""
    return {
        "model": "test_ottt_vgg",
        "data": str(recordings),
        "out": str(tmp_path / "run"),
        "steps": 3,
        "optimizer": "adam",
        "epochs": 2,
        "batch_size": 9,
        "lr": 0.01,
        "shift": 1,
        "drop_rate": 0.1,
        "val_fraction": 0.2,
        "device": "cpu",
    }


@pytest.fixture(scope="package")
def finished(recordings, tmp_path_factory):
    """A run that learnt something, in its folder."""
    out = tmp_path_factory.mktemp("finished") / "run"
    result = training.train(
        TrainConfig(
            model="test_ottt_vgg",
            data=str(recordings),
            out=str(out),
            steps=4,
            epochs=6,
            batch_size=6,
            optimizer="adam",
            lr=0.02,
            val_fraction=0.2,
            device="cpu",
        )
    )
    return out, result
