"""Fine-tuning: what is frozen stays, rates fall with depth, rare classes count, runs stop early."""

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sj_ottt import InputError
from sj_ottt.learning import CrossEntropyMSE
from sj_ottt.run import finetune, training, training_run
from sj_ottt.run.build import build_model
from sj_ottt.run.checkpoint import load_checkpoint
from sj_ottt.run.config import TrainConfig
from tests.helpers import write_recordings


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("bands"), {"train": 10, "test": 3})


@pytest.fixture
def options(recordings, tmp_path):
    return {
        "model": "test_ottt_vgg", "data": str(recordings), "out": str(tmp_path / "run"),
        "steps": 3, "epochs": 2, "batch_size": 9, "lr": 0.05, "device": "cpu",
    }  # fmt: skip


def moved(options, epoch=None):
    """Names of the parameters that a run changed, from its first checkpoint to its last."""
    start = training.TrainingRun(TrainConfig(**options))
    before = {k: v.clone() for k, v in start.model.state_dict().items()}
    training.train(TrainConfig(**options))
    after = load_checkpoint(options["out"])["model"]
    return {k for k in before if not torch.equal(before[k], after[k])}


@pytest.mark.slow
@pytest.mark.parametrize("update", ["accumulate", "online"])
@pytest.mark.parametrize("rule", ["ottt", "bptt"])
def test_frozen_parts_stay(options, rule, update):
    if (rule, update) == ("bptt", "online"):
        pytest.skip("BPTT has no online update")
    options |= {"freeze": "stem,layer2", "rule": rule, "update": update, "weight_decay": 0.1}
    changed = moved(options)
    assert {name.split(".")[0] for name in changed} == {"layer3", "fc"}


@pytest.mark.parametrize("how", [{"freeze": "layer1"}, {"head_epochs": 1}, {}])
def test_statistics_of_what_is_frozen_stay(options, how):
    names = {"model": "test_ltc_cnn", "rule": "bptt", "size": (16, 16), "epochs": 1}
    run = training.TrainingRun(TrainConfig(**{**options, **names, **how}))
    norms = {name: m for name, m in run.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    run.run_epoch()
    changed = {k for k, norm in norms.items() if not torch.equal(norm.running_mean, before[k])}
    outside = {name for name in norms if not name.startswith("layer1")}
    assert outside and outside != set(norms)
    expected = {"freeze": outside, "head_epochs": set()}.get(next(iter(how), ""), set(norms))
    assert changed == expected


@pytest.mark.slow
def test_start_from_a_run(options, tmp_path):
    """From a run's folder or its file; a classifier of other classes starts fresh."""
    training.train(TrainConfig(**options))
    trained = load_checkpoint(options["out"])["best"]["model"]
    for where in (options["out"], f"{options['out']}/best.safetensors"):
        start = training.TrainingRun(TrainConfig(**{**options, "pretrained": where, "seed": 5}))
        state = start.model.state_dict()
        assert all(torch.equal(trained[k], v) for k, v in state.items())
    two = write_recordings(tmp_path / "two", {"train": 4, "test": 2}, classes=("a", "b"))
    other = {**options, "pretrained": options["out"], "data": str(two)}
    state = training.TrainingRun(TrainConfig(**other)).model.state_dict()
    assert state["fc.weight"].shape == (2, 16)
    assert all(torch.equal(trained[k], v) for k, v in state.items() if not k.startswith("fc"))
    result = training.train(TrainConfig(**{**other, "out": str(tmp_path / "b")}))
    again = TrainConfig(**{**other, "out": str(tmp_path / "b")})
    assert training.train(again, resume=True)["history"] == result["history"]
    gone = f"{tmp_path}/nowhere/best.safetensors"
    for changes, message in (
        ({"pretrained": gone}, "nowhere/best.safetensors: no such weight file"),
        ({"model": "test_ottt_nf_resnet"}, "does not fit"),
    ):
        with pytest.raises(InputError, match=message):
            training.train(TrainConfig(**{**other, "out": str(tmp_path / "c"), **changes}))


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"rule": "fptt", "model": "test_ltc_cnn"}])
def test_the_checkpoint_of_an_averaging_run_is_no_start(options, changes):
    """Its weights are not those that were tested."""
    options |= {"epochs": 1, **changes}
    training.train(TrainConfig(**options))
    for name in ("last.pt", "best.safetensors", "last.safetensors"):
        config = TrainConfig(**{**options, "pretrained": f"{options['out']}/{name}"})
        if name == "last.pt":
            with pytest.raises(InputError, match=r"last\.pt is the .* give best\.safetensors or"):
                training.TrainingRun(config)
        else:
            training.TrainingRun(config)


def test_a_checkpoint_without_an_average_is_a_start(options):
    training.train(TrainConfig(**{**options, "epochs": 1}))
    config = TrainConfig(**{**options, "pretrained": f"{options['out']}/last.pt"})
    state = training.TrainingRun(config).model.state_dict()
    trained = load_checkpoint(options["out"])["model"]
    assert all(torch.equal(trained[k], v) for k, v in state.items())


def test_a_run_of_a_model_with_a_tag_goes_on(options):
    """From before it was refused without its weights."""
    options |= {"model": "ottt_vgg5_ws.fashion_events", "epochs": 1}
    data = training.TrainingRun(TrainConfig(**{**options, "model": "ottt_vgg5_ws"})).data
    assert build_model(TrainConfig(**options), data, resumed=True).num_classes == 3


def test_stem_is_the_first_convolution():
    for name in ("test_ottt_vgg", "test_ottt_nf_resnet"):
        model = timm.create_model(name)
        finetune.freeze(model, ["stem"])
        frozen = [k for k, p in model.named_parameters() if not p.requires_grad]
        assert frozen and all(k.startswith((model.first_conv, "stem")) for k in frozen)
        assert f"{model.first_conv}.weight" in frozen


@pytest.mark.slow
def test_the_classifier_first(options):
    options["head_epochs"] = 2
    assert {name.split(".")[0] for name in moved(options)} == {"fc"}
    out = options["out"]
    options |= {"head_epochs": 1, "out": out + "2", "freeze": "layer1"}
    assert {name.split(".")[0] for name in moved(options)} == {"layer2", "layer3", "fc"}


@pytest.mark.slow
def test_rates_fall_with_depth(options):
    model = timm.create_model("test_ottt_nf_resnet")
    groups = finetune.parameter_groups(model, 0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scales) == len(names)
    assert scales["fc.weight"] == 1.0
    depth = [scales[k] for k in scales if k.endswith(("conv1.weight", "stem.0.weight"))]
    assert sorted(depth, reverse=True) == depth and len(set(depth)) == len(depth)
    assert min(scales.values()) == scales[f"{model.first_conv}.weight"] < 0.5
    (whole,) = finetune.parameter_groups(model, 1)
    assert [id(p) for p in whole["params"]] == [id(p) for p in model.parameters()]

    # In a run, a layer's first update shrinks by its scale.
    options |= {"epochs": 1, "schedule": "constant", "optimizer": "adam", "batch_size": 30}
    options["val_fraction"] = 0
    start = training.TrainingRun(TrainConfig(**options)).model.state_dict()
    for decay in (1.0, 0.1):
        out = f"{options['out']}{decay}"
        training.train(TrainConfig(**{**options, "out": out, "layer_decay": decay}))
        after = load_checkpoint(out)["model"]
        # Adam's first step is the learning rate itself.
        step = {
            k: (after[k] - start[k]).abs().max().item() for k in ("fc.weight", "layer3.1.weight")
        }
        assert step["fc.weight"] == pytest.approx(0.05, rel=1e-2)
        assert step["layer3.1.weight"] == pytest.approx(0.05 * decay, rel=1e-2)


def test_class_weights():
    weights = finetune.class_weights(np.array([0, 0, 0, 1, 3, 3]), 4)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2.0, 0.0, 1.0]))
    torch.manual_seed(0)
    logits, target = torch.randn(6, 4).double(), torch.tensor([0, 0, 0, 1, 3, 3])
    weighted = CrossEntropyMSE(0.3, weights)
    by_hand = 0.0
    for x, y in zip(logits, target, strict=True):
        square = ((x - F.one_hot(y, 4)) ** 2).mean()
        by_hand += weights[y] * (0.7 * -x.log_softmax(0)[y] + 0.3 * square) / 6
    torch.testing.assert_close(weighted(logits, target), by_hand)
    torch.testing.assert_close(weighted(logits, F.one_hot(target, 4).double()), by_hand)
    # Also with one sample, where a mean over weights would cancel them.
    alone = CrossEntropyMSE(0.3)(logits[3:4], target[3:4])
    torch.testing.assert_close(weighted(logits[3:4], target[3:4]), 2 * alone)
    ones = CrossEntropyMSE(0.3, torch.ones(4))
    torch.testing.assert_close(ones(logits, target), CrossEntropyMSE(0.3)(logits, target))


def test_class_weights_reach_the_loss(options):
    options |= {"class_weights": True, "train_samples": 5, "val_fraction": 0}
    run = training.TrainingRun(TrainConfig(**options))
    assert run.loss_fn.class_weights.tolist() == pytest.approx([5 / 6, 5 / 6, 5 / 3])


def test_dropout_behind_neurons(options):
    run = training.TrainingRun(TrainConfig(**{**options, "spike_drop_rate": 0.3}))
    assert [m.p for m in run.model.modules() if type(m).__name__ == "Dropout"] == [0.3] * 3


@pytest.mark.slow
def test_early_stop(options, monkeypatch):
    accuracies = iter([0.5, 0.7, 0.7, 0.6, 0.7, 0.9])
    real = training_run.measure

    def scripted(model, loader, *args):
        validates = sum(len(target) for _, target in loader) == 6
        return (next(accuracies), 0.0) if validates else real(model, loader, *args)

    monkeypatch.setattr(training_run, "measure", scripted)
    options |= {"epochs": 9, "early_stop": 3, "val_fraction": 0.2}
    result = training.train(TrainConfig(**options))
    assert result["epochs"] == 5 and result["best_epoch"] == 5
    again = training.train(TrainConfig(**options), resume=True)  # it is finished
    assert again == json.loads(json.dumps(result))
    assert not finetune.stopped_early([], 1)
    rows = [{"val_accuracy": v} for v in (0.1, 0.2, 0.1)]
    assert finetune.stopped_early(rows, 1) and not finetune.stopped_early(rows, 2)
    assert not finetune.stopped_early(rows, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "layer9"}, "no part 'layer9' with weights; did you mean layer"),
        ({"freeze": "layer1.1"}, "no part 'layer1.1' with weights"),
        ({"freeze": "layer1,layer2,layer3,fc"}, "leaves nothing to learn"),
        ({"freeze": "layer1,,fc"}, "freeze must be names with commas between them"),
        ({"early_stop": 2, "val_fraction": 0}, "set val_fraction above 0"),
        (
            {"model": "test_ottt_nf_resnet", "spike_drop_rate": 0.1},
            "model test_ottt_nf_resnet has no option spike_drop_rate",
        ),
        ({"model": "ottt_vgg5_ws.fashion_event"}, "no weights 'fashion_event' .* did you mean"),
        ({"model": "ottt_vgg5_ws.fashion_events"}, r"names weights: .* \(--pretrained\)"),
        ({"layer_decay": 0}, "layer_decay must be a number above 0, up to 1"),
    ],
)
def test_bad_input(options, changes, message):
    with pytest.raises(InputError, match=message):
        training.train(TrainConfig(**{**options, **changes}))
