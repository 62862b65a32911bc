"""Weights: found, checked, adapted, and refused when they are not what the manifest says."""

import hashlib

import pytest
import timm
import torch
from safetensors.torch import load_file, save, save_file

from sj_ottt import InputError, learning, zoo
from sj_ottt._ops.standardize import scaled_weight_standardization
from sj_ottt.zoo import adapt_input_channels
from sj_ottt.zoo.cards import read_card
from tests.fresh import python

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
    assert set(timm.list_pretrained(["ottt_*", "ltc_*"])) == set(SHIPPED)
    assert {"ottt_vgg5_ws", "ottt_nf_resnet34"} <= {name.split(".")[0] for name in SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_load_and_have_a_card(name):
    entry = zoo.entry_named(name)
    model = timm.create_model(name, pretrained=True)
    assert model.num_classes == entry.cfg["num_classes"]
    assert model.in_chans == entry.cfg["input_size"][0]
    card = read_card(entry)
    assert entry.sha256 == card.sha256 == hashlib.sha256(entry.file.read_bytes()).hexdigest()
    assert card.results and card.trained_on and len(card.text.split("---\n")[2]) > 300
    assert {"recipe", "commit", "options"} & card.provenance.keys() and card.provenance["samples"]
    channels, classes = entry.cfg["input_size"][0], entry.cfg["num_classes"]
    tagged = zoo.create(entry.arch, classes, in_chans=channels, pretrained=entry.tag)
    for a, b in zip(model.parameters(), tagged.parameters(), strict=True):
        assert torch.equal(a, b) and a.isfinite().all()


def test_the_zoo_holds_what_its_manifest_names_and_is_not_too_large():
    folder = zoo.shipped_folder()
    names = {path.stem for path in folder.glob("*.safetensors")}
    assert names == set(zoo.zoo_entries(folder)) == set(SHIPPED)
    assert names == {path.stem for path in folder.glob("*.md")}
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size <= zoo.WEIGHTS_LIMIT, f"{size / 1e6:.1f} MB"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_adapt_to_channels_and_classes(name):
    for in_chans, num_classes in ((1, 5), (3, 5), (2, 0)):
        model = timm.create_model(name, pretrained=True, in_chans=in_chans, num_classes=num_classes)
        x = 2 * torch.randn(1, in_chans, 32, 32)
        assert learning.predict(model, x, steps=2).shape == (1, num_classes or model.num_features)
    features = timm.create_model(name, pretrained=True, features_only=True)
    in_chans = timm.get_pretrained_cfg(name).input_size[0]
    assert len(features(2 * torch.randn(1, in_chans, 32, 32))) == len(features.feature_info)


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


def test_standardized_weights_undo_the_scale_of_repeated_channels():
    torch.manual_seed(0)
    w, gain = torch.randn(5, 2, 7, 7), torch.rand(5, 1, 1, 1)
    for channels in (3, 5):
        adapted = adapt_input_channels(w, channels)
        repeated = torch.cat([w] * 3, 1)[:, :channels]
        made = [scaled_weight_standardization(x, gain, 1e-4) for x in (adapted, repeated)]
        torch.testing.assert_close(*made, rtol=1e-3, atol=1e-4)
        assert (adapted - repeated).abs().max() > 0.1


def test_weights_of_a_hub_are_asked_for_by_its_name(weights, monkeypatch):
    """Also where the default weights are a file, which timm would take first."""
    file, model = weights
    asked = []

    def hub(model_id, *args, **kwargs):
        asked.append(model_id)
        return load_file(file)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", hub)
    monkeypatch.setattr("timm.models._builder.has_hf_hub", lambda necessary=False: True)
    overlay = {"hf_hub_id": "user/name", "num_classes": 4, "input_size": (2, 32, 32)}
    for base in ({}, {"pretrained_cfg": {"file": "no such file", "custom_load": True}}):
        known = {**base.get("pretrained_cfg", {}), "first_conv": "layer1.0", "classifier": "fc"}
        loaded = timm.create_model(
            "test_ottt_vgg", pretrained=True, pretrained_cfg_overlay=overlay, pretrained_cfg=known
        )
        assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    assert asked == ["user/name"] * 2


def test_weights_of_an_address_are_asked_for_by_it(weights, tmp_path, monkeypatch):
    """Also where the default weights are a file; and of other channels and classes."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    model = timm.create_model("ottt_vgg5_ws", in_chans=2, num_classes=4)
    save_file(model.state_dict(), tmp_path / "given.safetensors")
    given = {"num_classes": 4, "input_size": (2, 32, 32)}
    for source in (
        {"url": (tmp_path / "given.safetensors").as_uri()},
        {"state_dict": model.state_dict()},
    ):
        overlay = {**source, **given}
        loaded = timm.create_model("ottt_vgg5_ws", pretrained=True, pretrained_cfg_overlay=overlay)
        assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    overlay = {"url": (tmp_path / "given.safetensors").as_uri(), **given}
    other = timm.create_model(
        "ottt_vgg5_ws", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=3, num_classes=2
    )
    assert torch.equal(other.layer2[1].weight, model.layer2[1].weight)
    adapted = adapt_input_channels(model.layer1[0].weight, 3)
    torch.testing.assert_close(other.layer1[0].weight, adapted)


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


def test_values_that_are_no_finite_numbers_are_refused(weights, tmp_path):
    _, model = weights
    for value in (float("nan"), float("inf"), 1e300, None):
        state = {name: tensor.double() for name, tensor in model.state_dict().items()}
        state["layer2.1.weight"][0, 0, 0, 0] = value or 1
        if value is None:
            state["layer2.1.weight"] = state["layer2.1.weight"].long()
        torch.save(state, tmp_path / "spoilt.pth")
        with pytest.raises(InputError, match=r"spoilt\.pth: layer2\.1\.weight holds values"):
            load(tmp_path / "spoilt.pth")


@pytest.mark.parametrize("name", ["test_ottt_vgg", "test_ltc_cnn", "test_ltc_rnn"])
def test_a_classifier_stays_fresh_where_the_file_has_none_or_another(tmp_path, name):
    file = tmp_path / "weights.safetensors"
    given = timm.create_model(name, num_classes=4, in_chans=2)
    for classes in (4, 0):
        saved = timm.create_model(name, num_classes=classes, in_chans=2)
        save_file(saved.state_dict(), file)
        for num_classes in (0, 6):
            model = timm.create_model(name, num_classes=num_classes, in_chans=2)
            fresh = {k: v.clone() for k, v in model.state_dict().items()}
            zoo.load_weights(model, file)
            for key, value in model.state_dict().items():
                own = key.startswith(("fc.", "integrator."))
                assert torch.equal(value, (fresh if own else saved.state_dict())[key]), key
    head = {k: v for k, v in given.state_dict().items() if k != "fc.bias"}
    save_file(head, file)
    with pytest.raises(InputError, match=r"the first is fc\.bias"):  # half a classifier is none
        zoo.load_weights(given, file)


def test_a_pickle_is_never_executed(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    file = tmp_path / "attack.pt"
    torch.save({"state_dict": Attack()}, file)
    with pytest.raises(InputError, match="not a readable weight file"):
        load(file)
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's zoo, with one of `test_ottt_vgg`: (its entry, the model)."""
    torch.manual_seed(0)
    model = timm.create_model("test_ottt_vgg", in_chans=2, num_classes=4)
    monkeypatch.setenv("SJ_OTTT_ZOO", str(tmp_path / "own"))
    cfg = {"input_size": [2, 32, 32], "pool_size": [8, 8], "num_classes": 4}
    data = save(model.state_dict())
    return zoo.add_to_zoo(zoo.own_folder(), "test_ottt_vgg.mine", data, "{sha256}", cfg), model


def test_an_entry_says_how_its_network_is_built(own):
    """The plain line builds the readout that was trained, unless another one is asked for."""
    entry, model = own
    data, cfg = save(model.state_dict()), entry.cfg
    other = zoo.add_to_zoo(
        entry.folder, "test_ottt_vgg.other", data, "", cfg, options={"readout": "membrane"}
    )
    zoo.add_to_zoo(entry.folder, "test_ottt_vgg.third", data, "", cfg)  # writes the rows anew
    overlay = {"file": str(other.file)}
    build = {"num_classes": 4, "in_chans": 2}
    given = {**overlay, "first_conv": "layer1.0", "classifier": "fc", "custom_load": True}
    for made in (
        timm.create_model("test_ottt_vgg", pretrained=True, pretrained_cfg_overlay=overlay),
        timm.create_model("test_ottt_vgg", pretrained=True, pretrained_cfg=given),
        zoo.create("test_ottt_vgg.other", **build, pretrained=True),
    ):
        assert made.readout == "membrane" and made.prediction == "last"
    exact = zoo.create("test_ottt_vgg.other", **build, pretrained=True, readout="exact")
    fresh = timm.create_model("test_ottt_vgg", pretrained_cfg_overlay=overlay)
    assert exact.readout == "exact" and create_mine(4).readout == fresh.readout == "traced"
    manifest = entry.folder / "manifest.json"
    good = manifest.read_text()
    for wrong in ('"neuron": "membrane"', '"readout": 3'):
        manifest.write_text(good.replace('"readout": "membrane"', wrong))
        with pytest.raises(InputError, match=r"test_ottt_vgg\.other has an option"):
            zoo.entry_named("test_ottt_vgg.other")


def test_a_flipped_bit_and_a_missing_file_are_refused_by_name(own):
    entry, _ = own
    data = bytearray(entry.file.read_bytes())
    data[-1] ^= 1
    entry.file.write_bytes(data)
    for load_it in (lambda: load(entry.file), lambda: create_mine(4)):
        with pytest.raises(InputError, match=r"test_ottt_vgg\.mine\.safetensors: the SHA-256 dif"):
            load_it()
    data[-1] ^= 1
    entry.file.write_bytes(data)
    load(entry.file)
    entry.file.rename(entry.file.with_name("test_ottt_vgg.other.safetensors"))
    with pytest.raises(InputError, match="no such weight file"):
        load(entry.file)
    with pytest.raises(InputError, match=r"other\.safetensors: the zoo's manifest\.json does not"):
        load(entry.file.with_name("test_ottt_vgg.other.safetensors"))


def create_mine(num_classes):
    return zoo.create("test_ottt_vgg.mine", num_classes, in_chans=2, pretrained=True)


def test_a_zoos_file_says_its_classes_and_channels(own):
    """Loaded by its path alone, it is the model that was saved."""
    entry, model = own
    overlay = {"file": str(entry.file)}
    loaded = timm.create_model("test_ottt_vgg", pretrained=True, pretrained_cfg_overlay=overlay)
    assert loaded.num_classes == 4 and loaded.in_chans == 2
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    first = zoo.create("test_ottt_vgg", 4, in_chans=2, pretrained=True)
    for made in (create_mine(4), first):  # in this process, too
        assert all(map(torch.equal, made.parameters(), model.parameters()))
        assert made.pretrained_cfg["tag"] == "mine"
    other = timm.create_model(
        "test_ottt_vgg", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=3
    )
    assert other.num_classes == 7 and other.in_chans == 3


@pytest.mark.slow
def test_an_ltc_network_of_the_zoo_has_a_name(tmp_path, monkeypatch):
    """Also with another number of classes, whose integrator has another size too."""
    monkeypatch.setenv("SJ_OTTT_ZOO", str(tmp_path / "own"))
    model = timm.create_model("test_ltc_cnn", in_chans=2, num_classes=4)
    cfg = {"input_size": [2, 32, 32], "pool_size": [8, 8], "num_classes": 4}
    zoo.add_to_zoo(zoo.own_folder(), "test_ltc_cnn.mine", save(model.state_dict()), "", cfg)
    code = (
        "import timm, sj_ottt\n"
        "for classes in ({}, {'num_classes': 7}, {'features_only': True}):\n"
        "    model = timm.create_model('test_ltc_cnn.mine', pretrained=True, **classes)\n"
        "    print(dict(getattr(model, 'model', model).named_parameters())['layer3.0.weight']"
        ".double().sum().item())"
    )
    expected = model.layer3[0].weight.double().sum().item()
    assert [float(line) for line in python("-c", code).stdout.splitlines()] == [expected] * 3


@pytest.mark.slow
def test_a_new_process_knows_the_users_weights_and_passes_over_a_damaged_zoo(own):
    entry, model = own
    code = (
        "import timm, sj_ottt\n"
        "print(timm.list_pretrained('test_ottt_*'))\n"
        "model = timm.create_model('test_ottt_vgg.mine', pretrained=True)\n"
        "print(model.num_classes, model.in_chans, model.fc.weight.double().sum().item())"
    )
    names, facts = python("-c", code).stdout.splitlines()
    assert names == "['test_ottt_vgg.mine']"
    classes, channels, total = facts.split()
    assert (classes, channels) == ("4", "2")
    assert float(total) == pytest.approx(model.fc.weight.double().sum().item(), abs=1e-6)
    (entry.folder / "manifest.json").write_text('{"test_ottt_vgg.mine": {"cfg": {"url": 1}}}')
    said = python("-c", code)
    assert "[]" in said.stdout and "the user's zoo is passed over" in said.stderr
    assert "manifest.json" in said.stderr and "No pretrained" not in said.stdout


@pytest.mark.parametrize("size", [(32, 32), (34, 34), (64, 64), (128, 128), (260, 346)])
@pytest.mark.parametrize(("name", "last"), [("ottt_vgg5_ws", 4), ("ottt_nf_resnet18", 32)])
def test_any_size_of_input(name, last, size):
    """VGG's pools drop an odd row; NF-ResNet's strides round up, down to one pixel at 32."""
    model = timm.create_model(name, in_chans=2, num_classes=5).eval()
    with torch.no_grad():
        features = model.forward_features(torch.rand(1, 2, *size))
    rounded = [n // last if "vgg" in name else -(-n // last) for n in size]
    assert list(features.shape[2:]) == rounded and min(rounded) >= 1
    assert model.forward_head(features).shape == (1, 5)


def test_no_weights_is_said():
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("ottt_nf_resnet50", pretrained=True)


def test_a_tag_that_is_not_the_start_is_refused(own):
    for name, pretrained, message in (
        ("test_ottt_vgg.min", None, "no weights 'min' .* did you mean mine"),
        ("test_ottt_vgg.mine", None, r"add pretrained .*, else leave \.mine out"),
        ("test_ottt_vgg.mine", False, "names weights"),
        ("test_ottt_vgg.other", "mine", "name different weights: leave one out"),
        ("test_ottt_vgg.untrained", True, "no weights 'untrained'"),
    ):
        with pytest.raises(InputError, match=message):
            zoo.create(name, 4, in_chans=2, pretrained=pretrained)
    assert zoo.create("test_ottt_vgg.untrained", 4, in_chans=2).num_classes == 4
    zoo.create("test_ottt_vgg.mine", 4, in_chans=2, pretrained="mine")
