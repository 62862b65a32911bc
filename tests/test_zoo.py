"""Weights: found, checked, adapted, and refused when they are not what the manifest says."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from sj_ottt import InputError, learning, zoo
from sj_ottt.zoo import adapt_input_channels

SHIPPED = [f"{row['name']}.{tag}" for row in zoo.model_rows() for tag in row["weights"]]


@pytest.fixture
def weights(tmp_path):
    """A saved `test_ottt_vgg` with 2 input channels and 4 classes: (file, model)."""
    torch.manual_seed(0)
    model = timm.create_model("test_ottt_vgg", in_chans=2, num_classes=4)
    file = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    return file, model


def load(file, **kwargs):
    overlay = {"file": str(file), "num_classes": 4, "input_size": (2, 32, 32)}
    return timm.create_model(
        "test_ottt_vgg", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs
    )


def test_every_architecture_with_weights_has_them_shipped():
    assert "ottt_vgg5_ws" in {name.split(".")[0] for name in SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_load_and_have_a_card(name):
    entry = zoo._manifest()[name]
    model = timm.create_model(name, pretrained=True)
    assert model.num_classes == entry["cfg"]["num_classes"]
    assert model.in_chans == entry["cfg"]["input_size"][0]
    card = (zoo._zoo_dir() / entry["file"]).with_suffix(".md").read_text()
    assert entry["sha256"] in card and f"{100 * entry['test_accuracy']:.2f}" in card
    other = timm.create_model(name.split(".")[0], pretrained=True)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_adapt_to_channels_and_classes(name):
    for in_chans, num_classes in ((1, 5), (3, 5), (2, 0)):
        model = timm.create_model(name, pretrained=True, in_chans=in_chans, num_classes=num_classes)
        x = 2 * torch.randn(1, in_chans, 32, 32)
        assert learning.predict(model, x, steps=2).shape == (1, num_classes or model.num_features)
    features = timm.create_model(name, pretrained=True, features_only=True)
    assert len(features(2 * torch.randn(1, 2, 32, 32))) == len(features.feature_info)


def test_overlay_file_and_checkpoint_path(weights):
    file, model = weights
    x = 2 * torch.randn(2, 2, 32, 32)
    expected = learning.predict(model, x, steps=3)
    for loaded in (
        load(file),
        timm.create_model("test_ottt_vgg", in_chans=2, num_classes=4, checkpoint_path=str(file)),
    ):
        torch.testing.assert_close(learning.predict(loaded, x, steps=3), expected)


def test_new_classes_keep_the_body(weights):
    file, model = weights
    loaded = load(file, num_classes=9)
    assert loaded.fc.weight.shape[0] == 9
    assert torch.equal(loaded.layer2[1].weight, model.layer2[1].weight)


def test_input_channels_follow_timm():
    w = torch.randn(5, 2, 3, 3)
    torch.testing.assert_close(adapt_input_channels(w, 1), w.sum(1, keepdim=True))
    three = adapt_input_channels(w, 3)
    torch.testing.assert_close(three, torch.cat([w, w[:, :1]], 1) * 2 / 3)
    assert adapt_input_channels(w, 2) is w
    torch.testing.assert_close(
        adapt_input_channels(torch.ones(1, 3, 1, 1), 2), torch.full((1, 2, 1, 1), 1.5)
    )


def test_other_files_are_refused(weights, tmp_path):
    file, _ = weights
    with pytest.raises(InputError, match="no such weight file"):
        load(tmp_path / "missing.safetensors")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"truncated\.safetensors is not a readable"):
        load(truncated)
    text = tmp_path / "text.pt"
    text.write_text("hello")
    with pytest.raises(InputError, match=r"text\.pt is not a readable"):
        load(text)
    with pytest.raises(InputError, match="does not fit NFResNet"):
        timm.create_model(
            "test_ottt_nf_resnet", pretrained=True, pretrained_cfg_overlay={"file": str(file)}
        )


def test_a_pickle_is_never_executed(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    file = tmp_path / "attack.pt"
    torch.save({"state_dict": Attack()}, file)
    with pytest.raises(InputError, match="not a readable weight file"):
        load(file)
    assert not (tmp_path / "executed").exists()


def test_a_changed_or_missing_shipped_file_is_refused(weights, tmp_path, monkeypatch):
    file, _ = weights
    entry = {"file": file.name, "sha256": "0" * 64, "cfg": {}}
    (tmp_path / "manifest.json").write_text(json.dumps({"test_ottt_vgg.x": entry}))
    monkeypatch.setattr(zoo, "_zoo_dir", lambda: tmp_path)
    with pytest.raises(InputError, match="SHA-256 differs"):
        load(file)
    file.unlink()
    with pytest.raises(InputError, match="no such weight file"):
        load(file)


def test_no_weights_is_said():
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("ottt_nf_resnet18", pretrained=True)
