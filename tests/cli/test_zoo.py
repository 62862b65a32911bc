"""`sj-ottt zoo`: a run goes into a zoo and comes back, and what cannot be right is refused."""

import json
import os
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file

from sj_ottt import InputError, learning, zoo
from sj_ottt.cli.main import main
from sj_ottt.run import training
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.evaluation import load_trained
from sj_ottt.run.zoo_export import export_run
from sj_ottt.run.zoo_verify import verify
from sj_ottt.zoo.cards import read_card
from tests.helpers import write_recordings
from tests.models.test_authors import TINY, checkpoint, vgg_state
from tests.packed_images import image_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run: (its folder, its data, its result)."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_recordings(folder / "bands", {"train": 8, "test": 3})
    config = TrainConfig(
        model="test_ottt_vgg", data=str(data), out=str(folder / "run"), steps=3, epochs=8,
        batch_size=8, lr=0.3, device="cpu", split_by="duration", size=(20, 16), readout="membrane",
    )  # fmt: skip
    return folder / "run", data, training.train(config)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's zoo, empty."""
    monkeypatch.setenv("SJ_OTTT_ZOO", str(tmp_path / "own"))
    return tmp_path / "own"


def run_ok(capsys, *argv):
    code = main(["zoo", *map(str, argv)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def fails(capsys, *argv):
    code = main(["zoo", *map(str, argv)])
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("sj-ottt: error: ") and err.count("\n") == 1
    return err


@pytest.mark.slow
def test_a_run_goes_into_a_folder_and_comes_back(trained, tmp_path, capsys):
    run, data, result = trained
    assert result["test_accuracy"] > 0.5
    shelf = tmp_path / "my zoo"
    argv = ("export", run, "--to", shelf, "--tag", "bands", "--about", "Bands.", "--note", "a=b")
    out = run_ok(capsys, *argv, "--license", "mit")
    assert f'pretrained_cfg_overlay=dict(file="{shelf}/test_ottt_vgg.bands.safetensors")' in out
    assert sorted(os.listdir(shelf)) == [
        "manifest.json", "test_ottt_vgg.bands.md", "test_ottt_vgg.bands.safetensors",
    ]  # fmt: skip
    # The overlay's file alone says its classes and its channels.
    overlay = {"file": str(shelf / "test_ottt_vgg.bands.safetensors")}
    model = timm.create_model("test_ottt_vgg", pretrained=True, pretrained_cfg_overlay=overlay)
    assert model.readout == "membrane" and 'input_size=(2, 20, 16)), readout="membrane"' in out
    best = load_trained(run, "cpu").model
    assert all(map(torch.equal, model.parameters(), best.parameters()))
    x_seq = 3 * torch.randn(3, 2, 2, 20, 16)
    torch.testing.assert_close(learning.predict(model, x_seq), learning.predict(best, x_seq))
    cfg = model.pretrained_cfg
    assert tuple(cfg["input_size"]) == (2, 20, 16) and tuple(cfg["pool_size"]) == (5, 4)
    assert list(cfg["label_names"]) == ["left", "middle", "right"] and cfg["license"] == "mit"

    card = read_card(zoo.zoo_entries(shelf)["test_ottt_vgg.bands"])
    assert str(tmp_path) not in card.text and str(data.parent) not in card.text
    assert "Bands." in card.text and card.provenance["a"] == "b" and card.trained_on == "bands"
    assert card.provenance["samples"] == result["n_train"]
    assert card.provenance["options"]["lr"] == 0.3 and "torch" in card.provenance["versions"]
    (figure,) = card.results
    assert figure.value == pytest.approx(result["test_accuracy"], abs=1e-6)
    assert figure.samples == 9 and figure.readout == "membrane"
    assert figure.input == {"steps": 3, "size": [20, 16], "split_by": "duration"}

    out = run_ok(capsys, "verify", "test_ottt_vgg.bands", "--zoo", shelf, "--data", data)
    assert f"{100 * result['test_accuracy']:.2f}%" in out and "agrees" in out
    listed = run_ok(capsys, "list", "--zoo", shelf).splitlines()
    (row,) = [line.split() for line in listed if "bands" in line]
    assert row == [
        "test_ottt_vgg.bands", "2", "3", "0.0", f"{100 * result['test_accuracy']:.2f}%", "bands",
    ]  # fmt: skip
    assert run_ok(capsys, "show", "test_ottt_vgg", "--zoo", shelf) == card.text
    assert "fashion_events" in listed[1]

    # What the card says is compared: the same weights with another figure.
    wrong = card.text.replace(f"value: {figure.value}", "value: 0.123")
    (shelf / "test_ottt_vgg.bands.md").write_text(wrong)
    argv = ("verify", "test_ottt_vgg.bands", "--zoo", shelf, "--data", data)
    code = main(["zoo", *map(str, argv)])
    out, err = capsys.readouterr()
    assert code == 2 and "DIFFERS" in out and "not what its card says" in err


@pytest.mark.slow
def test_exported_into_the_users_zoo_it_has_a_name(trained, own, tmp_path, capsys):
    run, data, _ = trained
    out = run_ok(capsys, "export", run, "--tag", "bands", "--float16")
    assert 'timm.create_model("test_ottt_vgg.bands", pretrained=True)' in out
    tensors = load_file(own / "test_ottt_vgg.bands.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    config = TrainConfig(
        model="test_ottt_vgg", pretrained="bands", data=str(data), out=str(tmp_path / "again"),
        size=(20, 16), device="cpu",
    )  # fmt: skip
    model = training.TrainingRun(config).model
    assert torch.equal(model.fc.weight, tensors["fc.weight"].float())
    (row,) = verify("test_ottt_vgg.bands", [str(data)])
    others = write_recordings(tmp_path / "others", {"train": 1, "test": 5}, ("one", "two"))
    assert row.agrees
    for argv, message in (
        (("export", run, "--tag", "bands"), "has a test_ottt_vgg.bands already"),
        (("export", run, "--tag", "../bands"), "tag='../bands': give letters"),
        (("export", run, "--tag", "/bands"), "tag='/bands': give letters"),
        (("export", run, "--tag", "a.b"), "tag='a.b': give letters"),
        (("export", run, "--tag", "x", "--note", "commit"), "--note commit: give KEY=TEXT"),
        (("export", data, "--tag", "x"), "is not the folder of a finished run"),
        (("show", "../bands"), "there are no weights '../bands'"),
        (("show", "test_ottt_vgg.band"), "did you mean test_ottt_vgg.bands?"),
        (("verify", "test_ottt_vgg.bands"), "is of bands, the first 9 samples of its test part"),
        (("verify", "ottt_nf_resnet34"), "is of tiny_imagenet.npz, the first 1,000 samples"),
        (("verify", "test_ottt_vgg", "--data", others), "has the classes one, two, which"),
        (("verify", "test_ottt_vgg", "--data", "a", "b"), "the figures of test_ottt_vgg.bands"),
    ):
        assert message in fails(capsys, *argv)
    run_ok(capsys, "export", run, "--tag", "bands", "--replace")
    tensors = load_file(own / "test_ottt_vgg.bands.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert not [name for name in os.listdir(own) if name.endswith(".tmp")]

    file = own / "test_ottt_vgg.bands.safetensors"
    moved = file.rename(tmp_path / "elsewhere.safetensors")
    file.symlink_to(moved)
    assert "is a link" in fails(capsys, "verify", "test_ottt_vgg.bands", "--data", data)
    assert "is a link" in fails(capsys, "export", run, "--tag", "bands", "--replace")
    assert moved.exists()
    file.unlink()
    shutil.copy(moved, file)
    data_before = bytearray(file.read_bytes())
    data_before[-3] ^= 4
    file.write_bytes(data_before)
    assert "SHA-256 differs" in fails(capsys, "verify", "test_ottt_vgg.bands", "--data", data)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["direct", "saccade"])
def test_a_run_on_images_goes_into_a_zoo_too(own, tmp_path, encoding):
    """Its statistics are part of what its figure is measured with."""
    config = image_run(tmp_path, epochs=2, shift=0, cutout=0, flip=0, encoding=encoding)
    result = training.train(config)
    entry = export_run(tmp_path / "run", "drawings")
    (figure,) = read_card(entry).results
    assert figure.data.endswith(".npz") and figure.samples == result["n_test"]
    channels = 1 if encoding == "direct" else 2
    assert entry.cfg["input_size"][0] == len(entry.cfg["mean"]) == channels
    assert figure.input.get("encoding", "direct") == encoding
    (row,) = verify(entry.name, [config.dataset.data])
    assert row.value == pytest.approx(result["test_accuracy"])


def test_an_authors_checkpoint_is_imported(own, tmp_path, capsys):
    torch.manual_seed(0)
    net = vgg_state(TINY, 3, 4)
    file = checkpoint(tmp_path / "c.pth", net)
    out = run_ok(capsys, "import", file, "--model", "test_ottt_vgg", "--tag", "ottt_a_in1k")
    assert str(own / "test_ottt_vgg.ottt_a_in1k.safetensors") in out
    assert 'timm.create_model("test_ottt_vgg.ottt_a_in1k", pretrained=True)' in out
    assert "has no figures" in fails(capsys, "verify", "test_ottt_vgg.ottt_a_in1k")
    assert " -  not stated" in run_ok(capsys, "list")
    assert "imported_from: c.pth" in run_ok(capsys, "show", "test_ottt_vgg.ottt_a_in1k")
    argv = ("import", file, "--model", "test_ottt_vgg", "--tag", "ottt_a_in1k")
    assert "--replace" in fails(capsys, *argv)
    run_ok(capsys, *argv, "--replace")
    out = run_ok(capsys, *argv, "--to", tmp_path / "b")
    assert f"SJ_OTTT_ZOO={tmp_path / 'b'}" in out


def test_a_name_that_ships_is_not_taken(tmp_path):
    (shipped,) = [name for name in zoo.zoo_entries(zoo.shipped_folder()) if "vgg5_ws" in name]
    cfg = {"input_size": [2, 8, 8], "num_classes": 4}
    with pytest.raises(InputError, match="ships with the package; choose another tag"):
        zoo.add_to_zoo(tmp_path, shipped, b"", "", cfg)
    with pytest.raises(InputError, match=r"manifest\.json"):
        (tmp_path / "manifest.json").write_text(json.dumps({"../x.y": {}}))
        zoo.add_to_zoo(tmp_path, "test_ottt_vgg.x", b"", "", cfg)


def test_a_damaged_card_is_named(tmp_path, capsys):
    cfg = {"input_size": [2, 8, 8], "num_classes": 4}
    entry = zoo.add_to_zoo(tmp_path / "z", "test_ottt_vgg.x", b"", "no card", cfg)
    facts = "trained_on: a\nsha256: b\nprovenance: {}\nresults: "
    row = "{data: a, split: test, samples: 1, metric: accuracy, tolerance: 0.1, input: {}, value: "
    for text, message in (
        ("no card", "is not a card"),
        ("---\n{\n---\n", "is not a card"),
        ("---\n- 1\n---\n", "is not a card"),
        ('---\nsha256: !!int ""\n---\n', "is not a card"),
        ("---\nsha256: a\nsha256: b\n---\n", "line 3: the key 'sha256' is given twice"),
        (f"---\n{facts}[{row}high}}]\n---\n", "value and tolerance must be numbers"),
        (f"---\n{facts}[{row}1.5}}]\n---\n", "value and tolerance must be numbers"),
        (f"---\n{facts}[{row}0.5, other: 1}}]\n---\n", "other"),
        (f"---\n{facts}[{row}0.5}}]\n---\n".replace("accuracy", "mAP"), "metric 'mAP' is unknown"),
        (f"---\n{facts}[{row}0.5}}]\n---\n".replace("samples: 1", "samples: 0"), "samples must be"),
    ):
        entry.card.write_text(text)
        assert message in fails(capsys, "show", "test_ottt_vgg.x", "--zoo", tmp_path / "z")
    assert main(["zoo", "list", "--zoo", str(tmp_path / "z")]) == 0
    assert "warning" in capsys.readouterr().err
    entry.card.write_text(f"---\n{facts}[{row}0.5}}]\n---\n")
    assert "other weights" in fails(capsys, "verify", "test_ottt_vgg.x", "--zoo", tmp_path / "z")
    entry.card.unlink()
    assert "is missing" in fails(capsys, "show", "test_ottt_vgg.x", "--zoo", tmp_path / "z")
