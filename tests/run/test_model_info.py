"""What the file of a model says of it: flat names that stay, read also where some are missing."""

import json

import pytest
import timm
from safetensors import safe_open
from safetensors.torch import save_file

from sj_ottt import InputError
from sj_ottt.data import ReadOptions
from sj_ottt.data.activity import Activity
from sj_ottt.run.checkpoint import ModelInfo, read_model, write_model
from sj_ottt.run.sections import FrameOptions

OF_RECORDINGS = ModelInfo(
    model="test_ottt_vgg",
    classes=("left", "right"),
    in_chans=2,
    data="a/folder",
    frames=FrameOptions(
        steps=4, size=(16, 18), frames="surface", tau_us=9e3, crop=(1, 2, 8, 9), hot_pixels=9.0
    ),
    readout="exact",
    rule_variant="code",
    sensor_size=(20, 22),
    window=5000,
    min_events=7,
    activity=Activity((0.1, 0.2, 0.4), (0.4, 0.5, 0.6)),
    reading=ReadOptions(strict=True, sensor_size=(20, 22), camera="left"),
    epoch=3,
    val_accuracy=0.75,
    adapted=12,
)
OF_IMAGES = ModelInfo(
    model="test_ottt_vgg",
    classes=("a", "b", "c"),
    in_chans=1,
    data="mnist:a/folder",
    frames=FrameOptions(steps=28, size=(28, 28), encoding="rows", normalize=False),
    stats=((0.25,), (0.5,)),
)


def through_json(info: ModelInfo) -> dict:
    return json.loads(json.dumps(info.to_metadata()))


@pytest.mark.parametrize("info", [OF_RECORDINGS, OF_IMAGES])
def test_it_comes_back_from_the_file(tmp_path, info):
    path = tmp_path / "best.safetensors"
    state = timm.create_model(info.model).state_dict()
    write_model(path, state, info)
    tensors, again = read_model(path)
    assert again == info and tensors.keys() == state.keys()
    with safe_open(path, "pt") as file:
        values = {key: json.loads(value) for key, value in file.metadata().items()}
    assert values.pop("sha256") and values == through_json(info)


def test_the_names_in_a_file_are_flat_and_stay():
    values = through_json(OF_RECORDINGS)
    assert values == {
        "format": "sj_ottt/1", "model": "test_ottt_vgg", "num_classes": 2, "in_chans": 2,
        "classes": ["left", "right"], "data": "a/folder", "steps": 4, "size": [16, 18],
        "split_by": "count", "frames": "surface", "tau_us": 9000.0, "crop": [1, 2, 8, 9],
        "hot_pixels": 9.0, "normalize": True, "encoding": "direct", "readout": "exact",
        "rule_variant": "code", "stats": None, "sensor_size": [20, 22], "window": 5000,
        "min_events": 7, "epoch": 3, "val_accuracy": 0.75, "adapted": 12,
        "activity": [[0.1, 0.2, 0.4], [0.4, 0.5, 0.6]],
        "reading": {
            "strict": True, "sensor_size": [20, 22], "camera": "left", "time_unit": None,
        },
    }  # fmt: skip


def test_what_a_file_lacks_was_at_its_default():
    values = through_json(OF_RECORDINGS)
    for name in ("frames", "tau_us", "crop", "hot_pixels", "encoding", "readout", "rule_variant"):
        del values[name]
    for name in ("stats", "sensor_size", "window", "min_events", "adapted", "activity", "reading"):
        del values[name]
    info = ModelInfo.from_metadata(values, "old.safetensors")
    assert info.frames == FrameOptions(steps=4, size=(16, 18))
    assert (info.readout, info.rule_variant) == ("traced", "paper")
    assert info.sensor_size is info.window is info.min_events is info.adapted is None
    assert info.activity is None and info.reading == ReadOptions()
    assert (info.epoch, info.val_accuracy) == (3, 0.75)


def test_what_is_unknown_is_ignored():
    values = {**through_json(OF_IMAGES), "mood": "good"}
    assert ModelInfo.from_metadata(values, "x") == OF_IMAGES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "sj_ottt/2"}, r"^x has model format 2, this sj_ottt reads 1; use the version"),
        ({"format": "pt"}, "^x was not written by `sj-ottt train`; give the --out"),
        ({"format": None}, "was not written by"),
        ({"classes": ..., "steps": ...}, "^x does not say its classes, steps; train again"),
        ({"encoding": "moon"}, "^x: encoding must be one of direct.*train again"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_remedy(changes, message):
    values = {**through_json(OF_IMAGES), **changes}
    values = {name: value for name, value in values.items() if value is not ...}
    with pytest.raises(InputError, match=message) as caught:
        ModelInfo.from_metadata(values, "x")
    assert "\n" not in str(caught.value)


def test_a_file_of_another_version_is_refused(tmp_path):
    path = tmp_path / "best.safetensors"
    state = timm.create_model("test_ottt_vgg").state_dict()
    values = {**OF_IMAGES.to_metadata(), "format": "sj_ottt/9", "sha256": "0"}
    save_file(state, path, {key: json.dumps(value) for key, value in values.items()})
    with pytest.raises(InputError, match=r"best\.safetensors has model format 9"):
        read_model(path)
