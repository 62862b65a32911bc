"""How the recordings of a run are read: said once, and known to its model."""

import pytest
import torch

from sj_ottt import InputError
from sj_ottt.data import ReadOptions
from sj_ottt.run.checkpoint import ModelInfo
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.evaluation import TrainedModel
from sj_ottt.run.sections import DatasetOptions
from sj_ottt.run.training_data import TrainingData
from tests.helpers import write_recordings
from tests.packed_images import pack


@pytest.fixture
def unstated(tmp_path, monkeypatch):
    """Recordings of a sensor that nothing states."""
    monkeypatch.setenv("SJ_OTTT_CACHE", str(tmp_path / "cache"))
    root = write_recordings(tmp_path / "data", {"train": 3, "test": 2})
    (root / "dataset.json").unlink()
    return root


def test_the_options_reach_the_data_and_the_model(unstated):
    cfg = TrainConfig(data=str(unstated), sensor_size=[20, 24], strict=True, steps=3)
    data = TrainingData.open(cfg)
    about = data.describe_input()
    assert about["sensor_size"] == (20, 24) and data.test.frame_size == (20, 24)
    # 240 events in somewhat less than 100 ms before 480 pixels.
    low, middle, high = about["activity"].rates
    assert 5 <= low <= middle <= high < 5.5
    info = ModelInfo(
        "m", data.classes, 2, str(unstated), cfg.frames, reading=cfg.dataset.reading, **about
    )
    trained = TrainedModel(unstated, torch.nn.Identity(), info, torch.device("cpu"))
    assert trained.dataset(None, "test", 3).sensor_size == (20, 24)
    other = ReadOptions(sensor_size=(30, 40))
    opened = trained.dataset(str(unstated), "test", 3, other)
    assert opened.sensor_size == (30, 40) and opened.reading.strict


def test_what_is_not_said_is_taken_with_a_warning(unstated):
    cfg = TrainConfig(data=str(unstated), steps=3)
    with pytest.warns(UserWarning, match="34 x 34 .*smallest usual sensor"):
        assert TrainingData.open(cfg).describe_input()["sensor_size"] == (34, 34)
    with pytest.raises(InputError, match="--strict takes none"):
        TrainingData.open(cfg.replace({"strict": True}))


def test_still_images_are_not_read_so(tmp_path):
    path = pack(tmp_path / "images.npz")
    for options in ({"sensor_size": (6, 6)}, {"time_unit": "ns"}, {"strict": True}):
        cfg = TrainConfig(data=str(path), **options)
        with pytest.raises(InputError, match=f"{next(iter(options))}=.* is for recordings"):
            TrainingData.open(cfg)


def test_a_camera_may_be_a_number():
    assert DatasetOptions(camera=0).reading.camera == "0"
    with pytest.raises(InputError, match="time_unit must be one of us, ns, ms, s, not 'min'"):
        DatasetOptions(time_unit="min")
