"""The pretraining example: what it writes, what it goes on from, and where the targets lie."""

import csv
import json
import sys

import numpy as np
import pretrain
import pytest
import teacher
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sj_ottt import InputError, zoo
from sj_ottt.data.transforms import Saccade
from sj_ottt.run.checkpoint import load_checkpoint
from sj_ottt.run.zoo_export import export_run
from sj_ottt.run.zoo_verify import verify
from sj_ottt.zoo.cards import read_card


def small_teacher(device):
    def look(images):
        pooled = F.adaptive_avg_pool2d(images, 8)
        return [pooled, F.adaptive_avg_pool2d(images, 4), images.mean((2, 3))]

    return look


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs the script on eight images, and the folder."""
    monkeypatch.setitem(pretrain.TEACHERS, "small", small_teacher)
    monkeypatch.setattr(teacher, "CHUNK", 6)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 20, 24, 3), np.uint8)
    labels = (np.arange(8) % 2).astype(np.uint8)
    data = tmp_path / "set.npz"
    both = {"train_images": images, "test_images": images}
    np.savez(data, **both, train_labels=labels, test_labels=labels, class_names=["a", "b"])

    def start(out, *options, data=data):
        command = ["pretrain", "--out", str(tmp_path / out), "--cache", str(tmp_path / "cache")]
        if "--resume" not in options:
            command += ["--data", str(data), "--model", "test_ottt_nf_resnet", "--batch", "4"]
            command += ["--teacher", "small", "--size", "32", "--steps", "2", "--samples", "16"]
        monkeypatch.setattr(sys, "argv", [*command, *options])
        pretrain.main()
        return tmp_path / out

    return start


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(run, monkeypatch):
    whole = run("whole", "--eval-every", "0")
    learn, calls = pretrain.Run.learn, []

    def stopped(self, indices):
        calls.append(indices)
        if len(calls) == 2:
            self.stop()
        return learn(self, indices)

    monkeypatch.setattr(pretrain.Run, "learn", stopped)
    parts = run("parts")
    assert load_checkpoint(parts)["samples"] == 8
    assert json.loads((parts / "provenance.json").read_text())["samples"] == 8
    run("parts", "--resume")
    one, two = (load_checkpoint(out) for out in (whole, parts))
    for name in ("student", "optimizer", "ema", "random"):
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)
    assert one["samples"] == two["samples"] == 16
    rows = list(csv.DictReader((whole / "curve.csv").open()))
    assert [int(row["samples"]) for row in rows] == [4, 8, 12, 16]


def test_the_weights_are_half_as_large_and_load_through_the_zoo(run):
    out = run("run", "--ema", "0.5")
    file = out / "weights.safetensors"
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    model = zoo.create("test_ottt_nf_resnet", 5, in_chans=2)
    model.load_pretrained(file)
    ema = load_checkpoint(out)["ema"]
    torch.testing.assert_close(
        model.layer1[0].branch[0].weight.data,
        ema["module.model.layer1.0.branch.0.weight"],
        atol=1e-3,
        rtol=1e-3,
    )
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["data"] == ["set.npz"] and facts["samples"] == 16
    assert facts["options"]["teacher"] == "small" and facts["n_test"] == 8
    assert str(out.parent) not in json.dumps(facts)  # no paths of this machine


def test_a_run_goes_into_a_zoo_whose_figures_are_measured_again(run, tmp_path):
    out = run("run", "--eval-every", "0")
    entry = export_run(out, "saccade", tmp_path / "zoo", about="Test.", notes={"commit": "abc"})
    assert entry.name == "test_ottt_nf_resnet.saccade"
    assert entry.cfg["input_size"] == [2, 32, 32] and entry.cfg["label_names"] == ["a", "b"]
    card = read_card(entry)
    assert card.trained_on == "set.npz" and card.provenance["samples"] == 16
    assert card.provenance["commit"] == "abc" and card.provenance["options"]["teacher"] == "small"
    (figure,) = card.results
    assert (figure.data, figure.samples) == ("set.npz", 8)
    assert figure.value == json.loads((out / "provenance.json").read_text())["test_accuracy"]
    with pytest.raises(InputError, match=r"is of set\.npz, the first 8 samples of its test part"):
        verify(entry.name, own=entry.folder)
    # 20 x 24 pixels are fitted by the script, and by the package in a way of its own.
    (row,) = verify(entry.name, [str(tmp_path / "set.npz")], entry.folder)
    assert 0 <= row.value <= 1 and row.figure == figure


def test_maps_lie_where_the_student_sees_the_image():
    torch.manual_seed(0)
    image = F.interpolate(torch.rand(6, 1, 8, 8), (64, 64), mode="bicubic").clamp(0, 1)
    saccade = Saccade(1, noise=0.0, thin=0.0, speed=(2.0, 2.0), threshold=(0.05, 0.05))
    draws = pretrain.centred(saccade.draw(6), saccade, 64)
    moved = pretrain.seen(image, draws)
    same = draws._replace(
        zoom=torch.ones(6), shift=torch.zeros(6, 2), flip=torch.zeros(6, dtype=torch.bool)
    )
    events, expected = saccade(image, draws)[0], saccade(moved, same)[0]

    def alike(a, b):
        return F.cosine_similarity(a.flatten(1), b.flatten(1)).min()

    middle = (..., slice(16, 48), slice(16, 48))
    assert alike(events[middle], expected[middle]) > 0.8
    assert alike(events[middle], saccade(image, same)[0][middle]) < 0.6


def test_maps_are_standardized_kept_and_read_again(tmp_path, run):
    run("first")
    data = tmp_path / "set.npz"

    def missing():
        raise InputError("asked for")

    again = teacher.TaughtImages([f"{data}:7", str(data)], tmp_path / "cache", 32, missing)
    assert len(again) == 15 and again.classes == ["a", "b"] * 2
    assert again.labels.tolist() == [0, 1, 0, 1, 0, 1, 0] + [2, 3] * 4
    images, labels, maps = again.batch(torch.tensor([9, 0, 14]))
    assert labels.tolist() == [0, 2, 3] and images.shape == (3, 1, 32, 32)
    assert [tuple(m.shape[1:]) for m in maps] == again.shapes == [(3, 8, 8), (3, 4, 4), (3,)]
    everything = again.batch(torch.arange(7, 13))[2][0]  # those that the statistics are of
    assert everything.mean((0, 2, 3)).abs().max() < 0.05
    torch.testing.assert_close(everything.std((0, 2, 3)), torch.ones(3), atol=0.05, rtol=0)
    with pytest.raises(InputError, match="asked for"):
        teacher.TaughtImages([str(data)], tmp_path / "other", 32, missing)


def test_maps_that_no_stage_can_hold_are_left_out():
    shapes = [(40, 16, 16), (112, 8, 8), (320, 4, 4), (1280,)]
    model = zoo.create("ottt_vgg5_ws", 3, in_chans=2)
    found = pretrain.targets_of(model, 64, shapes)
    last = model.feature_info[-1]["module"]
    assert {i: (target.stage, target.channels) for i, target in found.items()} == {
        0: (last, 40),
        3: (last, 1280),
    }
    deep = pretrain.targets_of(zoo.create("ottt_nf_resnet18", 3, in_chans=2), 64, shapes)
    assert [target.stage for target in deep.values()] == ["layer1", "layer2", "layer3", "layer4"]


def test_a_packed_target_is_the_same_loss():
    student = pretrain.Distillation(
        zoo.create("test_ottt_nf_resnet", 3, in_chans=2),
        [pretrain.StageTarget("layer1", 5), pretrain.StageTarget("layer2", 7, pooled=True)],
        pretrain.LabelLoss(),
    )
    outputs = student(torch.rand(2, 2, 32, 32))
    labels, maps = torch.tensor([2, 0]), [torch.randn(2, 5, 8, 8), torch.randn(2, 7)]
    packed = pretrain.PackedLoss(student, [(5, 8, 8), (7,)])
    expected = student.loss(outputs, (labels, maps))
    torch.testing.assert_close(packed(outputs, packed.pack(labels, maps)), expected)
    assert packed(outputs, packed.pack(labels, [2 * m for m in maps])) != expected


def test_a_cache_of_other_parts_is_refused(run, tmp_path, monkeypatch):
    run("run")
    monkeypatch.setattr(teacher, "CHUNK", 4)
    with pytest.raises(InputError, match=r"000_maps\.npy is not of 4 images: delete it"):
        run("again")
