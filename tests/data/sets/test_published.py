"""Published event sets, as SpikingJelly's classes unpack them."""

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import open_dataset


def test_published_event_sets(tmp_path):
    rng = np.random.default_rng(0)
    for place, n in (("train/0", 3), ("train/1", 3), ("test/0", 1), ("test/1", 1)):
        for i in range(n):
            path = tmp_path / "nmnist" / "events_np" / place / f"{i}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **{k: rng.integers(0, 2, 40) for k in "xyp"}, t=np.arange(40))
    data = open_dataset(f"nmnist:{tmp_path / 'nmnist'}", split="train", steps=2)
    assert len(data) == 6 and data.sensor_size == (34, 34) and data.classes == ("0", "1")
    for label in ("cat", "dog"):
        for i in range(20):
            path = tmp_path / "dvs" / "events_np" / label / f"{i}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **{k: rng.integers(0, 2, 40) for k in "xyp"}, t=np.arange(40))
    data = open_dataset(f"cifar10dvs:{tmp_path / 'dvs'}", split="test", steps=2)
    assert len(data) == 4 and data.sensor_size == (128, 128)
    (tmp_path / "dvs" / "events_np.building").touch()
    with pytest.raises(InputError, match="unfinished"):
        open_dataset(f"cifar10dvs:{tmp_path / 'dvs'}", split="test", steps=2)
