"""The training run: its result, the same bits at each repetition, and bad input."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sj_ottt.errors import InputError
from sj_ottt.run import build, evaluation, training, training_run
from sj_ottt.run.checkpoint import load_checkpoint, read_model, write_model
from sj_ottt.run.config import TrainConfig
from tests.helpers import CLASSES, assert_same_run, same, weights, write_recordings
from tests.run.helpers import interrupt_after, train

# The result


def test_result_says_how_it_came_about(finished, recordings):
    out, result = finished
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["test_accuracy"] > 0.8
    assert 0 <= result["last_test_accuracy"] <= 1 and 0 < result["train_accuracy"] <= 1
    assert (result["n_train"], result["n_val"], result["n_test"]) == (24, 6, 9)
    assert result["epochs"] == 6 and 1 <= result["best_epoch"] <= 6
    assert result["seconds"] > 0 and result["parameters"] > 0
    assert result["config"]["data"] == str(recordings) and result["config"]["lr"] == 0.02
    assert {"python", "torch", "timm", "spikingjelly", "sj_ottt", "numpy"} <= set(
        result["versions"]
    )
    for name in ("curves.png", "frames.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"


def test_best_model_is_the_latest_of_the_best_on_validation(finished):
    out, result = finished
    accuracies = [row["val_accuracy"] for row in result["history"]]
    best = max(range(6), key=lambda i: (accuracies[i], i))
    assert result["best_epoch"] == best + 1
    assert result["val_accuracy"] == accuracies[best]
    rows = evaluation.evaluate(out, device="cpu")
    assert [row["accuracy"] for row in rows] == [result["test_accuracy"]]


@pytest.mark.slow
def test_without_validation_the_last_model_is_the_best(options):
    result = train(options, val_fraction=0, epochs=1)
    assert result["best_epoch"] == 1 and result["val_accuracy"] is None and result["n_val"] == 0
    assert same(weights(options["out"]), weights(options["out"], "best"))


def test_model_file_loads_in_timm_and_says_what_it_is(finished):
    out, _ = finished
    path = out / "best.safetensors"
    model = timm.create_model("test_ottt_vgg", num_classes=3, in_chans=2, checkpoint_path=str(path))
    assert same(model.state_dict(), load_file(path))
    with safe_open(path, "pt") as file:
        about = {key: json.loads(value) for key, value in file.metadata().items()}
    assert about["model"] == "test_ottt_vgg" and about["classes"] == list(CLASSES)
    assert about["num_classes"] == 3 and about["in_chans"] == 2 and about["steps"] == 4
    assert about["size"] == [16, 16] and about["split_by"] == "count" and about["normalize"] is True


@pytest.mark.slow
def test_a_model_sees_recordings_as_it_learned_on_them(options):
    """Also after a resume, and by its file alone."""
    framing = {"frames": "surface", "tau_us": 9e3, "crop": (12, 14), "hot_pixels": 30.0}
    result = train(options, **framing)
    again = train(options, resume=True, **framing)
    assert again == json.loads(json.dumps(result))
    assert result["data"]["frame_size"] == [12, 14] and result["data"]["tau_us"] == 9e3
    trained = evaluation.load_trained(options["out"], "cpu")
    data = trained.dataset(None, "test", 3)
    assert data.framing.frames == "surface" and data.frame_size == (12, 14)
    assert (data.framing.tau_us, data.framing.hot_pixels) == (9e3, 30.0)
    row = evaluation.evaluate(options["out"], device="cpu")[0]
    assert row["accuracy"] == result["test_accuracy"]


AUGMENTED = {"flip": 0.5, "rotate": 8.0, "drop_events": 0.3, "time_jitter": 0.8, "cutmix": 0.6}


def test_augmentations_are_of_the_training_part_only(options, monkeypatch):
    run = training.TrainingRun(TrainConfig(**{**options, **AUGMENTED}))
    names = [type(step).__name__ for step in run.data.augmented.transform.transforms]
    assert names == [
        "DropEvents", "JitterTime", "RandomFlip", "RandomRotation", "RandomShift",
        "NormalizeFrames",
    ]  # fmt: skip
    for part in (run.data.test, run.data.validation.dataset):
        assert [type(step).__name__ for step in part.transform.transforms] == ["NormalizeFrames"]
    assert run.data.raw.transform is None
    assert run.data.train.dataset is run.data.augmented

    seen = []
    real = training_run.train_step

    def spy(model, optimizer, x_seq, target, **kwargs):
        seen.append(target)
        return real(model, optimizer, x_seq, target, **kwargs)

    monkeypatch.setattr(training_run, "train_step", spy)
    for _ in range(4):
        run.run_epoch()
    assert {target.dim() for target in seen} == {1, 2}
    torch.testing.assert_close(
        torch.cat([t.sum(1) for t in seen if t.dim() == 2]),
        torch.ones(sum(len(t) for t in seen if t.dim() == 2)),
    )


@pytest.mark.slow
def test_an_augmented_run_repeats_its_draws(options, tmp_path, monkeypatch):
    """A resume continues with the bits of a run that nothing disturbed."""
    options = {**options, **AUGMENTED}
    train(options)
    other = {**options, "out": str(tmp_path / "other")}
    interrupt_after(monkeypatch, "run_epoch", calls=1)
    with pytest.raises(KeyboardInterrupt):
        train(other)
    monkeypatch.undo()
    train(other, resume=True)
    assert_same_run(options["out"], other["out"])


# The same bits


@pytest.mark.slow
def test_worker_processes_and_repetition_give_the_same_bits(options, tmp_path):
    train(options, epochs=1, workers=1)
    train(options, epochs=1, workers=1, out=str(tmp_path / "again"))
    train(options, epochs=1, workers=1, seed=1, out=str(tmp_path / "other"))
    assert_same_run(options["out"], tmp_path / "again")
    assert not same(weights(options["out"]), weights(tmp_path / "other"))


@pytest.mark.slow
def test_schedule_and_optimizers(options, tmp_path):
    rates = {}
    for schedule, optimizer in (("cosine", "sgd"), ("cosine", "adamw"), ("constant", "adamax")):
        out = str(tmp_path / optimizer)
        result = train(options, schedule=schedule, optimizer=optimizer, weight_decay=0.1, out=out)
        rates[schedule] = [row["lr"] for row in result["history"]]
    assert rates["constant"] == [0.01, 0.01]
    assert 0 < rates["cosine"][1] < rates["cosine"][0] < 0.01


@pytest.mark.slow
def test_mixed_precision_and_fewer_backward_steps_learn_as_well(options, tmp_path):
    """A short run on recordings whose class is where the events are."""
    changes = {"off": {}, "bfloat16": {}, "float16": {}, "K": {"backward_steps": 2}}
    accuracy = {}
    for name, change in changes.items():
        amp = {"amp": name} if name != "K" else {}
        out = str(tmp_path / name)
        result = train(options, epochs=8, lr=0.02, out=out, **amp, **change)
        accuracy[name] = result["last_test_accuracy"]
    assert accuracy["off"] > 0.8
    assert all(value > accuracy["off"] - 0.15 for value in accuracy.values()), accuracy


@pytest.mark.slow
def test_an_ltc_model_needs_a_rule_without_traces(options):
    with pytest.raises(InputError, match="no presynaptic trace; train it with FPTT"):
        train(options, model="test_ltc_cnn")
    assert train(options, model="test_ltc_cnn", rule="bptt", epochs=1)["epochs"] == 1


def test_float16_on_a_cpu_warns(recwarn):
    """Nothing is wrong with it but the time that it takes."""
    for amp, warned in (("off", 0), ("bfloat16", 0), ("float16", 1)):
        cfg = TrainConfig(data="x", out="x", amp=amp)
        build.build_mixed_precision(cfg, torch.device("cpu"))
        assert sum("amp=bfloat16 is fast" in str(w.message) for w in recwarn) == warned
    # PyTorch warns where there is no GPU.
    build.build_mixed_precision(cfg, torch.device("cuda"))
    assert sum("amp=bfloat16 is fast" in str(w.message) for w in recwarn) == 1


# Bad input


def test_finished_run_is_not_overwritten(finished, options):
    with pytest.raises(InputError, match="--resume"):
        train(options, out=str(finished[0]))


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "result.json"])
def test_what_another_command_left_is_not_overwritten(options, name):
    out = Path(options["out"])
    out.mkdir()
    (out / name).write_text("precious")
    with pytest.raises(InputError, match=rf"{name} is there already.* move it .*--out"):
        train(options)
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ottt_vgg5ws"}, "did you mean ottt_vgg5_ws"),
        ({"model": "resnet18"}, "unknown model 'resnet18'"),
        ({"model": "test_ottt_vgg", "pretrained": True}, "no pretrained weights"),
        ({"model": "test_ottt_vgg", "pretrained": "moon"}, "no weights 'moon'"),
        ({"data": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"device": "toaster"}, "toaster"),
        ({"shift": -1}, "shift must be"),
        ({"rule_variant": "code"}, "rule_variant=code does not go with rule"),
    ],
)
def test_bad_input_names_itself_and_leaves_nothing(options, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        train(options, **changes)
    assert "\n" not in str(caught.value)
    assert not Path(options["out"]).exists()


@pytest.mark.slow
def test_exploding_loss_stops_the_run_which_may_then_start_again(options):
    with pytest.raises(InputError, match="loss of time step"):
        train(options, lr=1e38, optimizer="sgd", schedule="constant", drop_rate=0)
    train(options, epochs=1)


def test_folder_that_cannot_be_made(options, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run"):
        train(options, out=str(tmp_path / "file" / "run"))


# Two stages


@pytest.mark.slow
def test_a_second_stage_starts_from_the_first_and_stays_near(finished, options, tmp_path):
    first, _ = finished
    start = load_file(first / "best.safetensors")
    away = {}
    for pull in (0.0, 3.0):
        train(options, out=str(tmp_path / str(pull)), pull_to=str(first), pull=pull, lr=0.01)
        end = load_file(tmp_path / str(pull) / "last.safetensors")
        away[pull] = sum((end[k] - v).norm() for k, v in start.items())
    assert 0 < away[3.0] < 0.5 * away[0.0]
    with pytest.raises(InputError, match="does not fit test_ottt_nf_resnet"):
        train(options, out=str(tmp_path / "x"), pull_to=str(first), model="test_ottt_nf_resnet")
    with pytest.raises(InputError, match=r"best\.safetensors does not exist"):
        train(options, out=str(tmp_path / "y"), pull_to=str(tmp_path))
    with pytest.raises(InputError, match="pull_to and pretrained both"):
        both = {"model": "ottt_vgg5_ws", "pretrained": True, "pull_to": str(first)}
        train(options, out=str(tmp_path / "x"), **both)
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()


def test_a_resumed_run_is_pulled_to_the_same_weights(finished, options, tmp_path):
    first = shutil.copytree(finished[0], tmp_path / "first")
    cfg = TrainConfig(**options, pull_to=str(first), pull=1.0)
    run = training_run.TrainingRun(cfg)
    run.out.mkdir()
    run.save()
    state = load_checkpoint(run.out)
    training_run.TrainingRun(cfg, state)
    tensors, info = read_model(first / "best.safetensors")
    changed = {name: value + 1 for name, value in tensors.items()}
    write_model(first / "best.safetensors", changed, info)
    with pytest.raises(InputError, match=r"weights in .*first are not those .* put them back"):
        training_run.TrainingRun(cfg, state)
    del state["pull_digest"]  # as one from before there was any
    training_run.TrainingRun(cfg, state)


def test_early_stop_needs_samples_to_validate_on(tmp_path):
    data = write_recordings(tmp_path / "few", {"train": 1, "test": 1})
    cfg = TrainConfig(
        data=str(data), model="test_ottt_vgg", steps=1, early_stop=1, out=str(tmp_path / "run"),
        device="cpu",
    )  # fmt: skip
    with pytest.raises(InputError, match="too few samples to keep some aside"):
        training.train(cfg)
