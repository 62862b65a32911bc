"""Resumed runs: what goes on, what is given again, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch

from sj_ottt.errors import InputError
from sj_ottt.run import evaluation, training
from sj_ottt.run.checkpoint import load_checkpoint
from tests.helpers import assert_same_run, same, weights, write_recordings
from tests.run.helpers import interrupt_after, train


@pytest.mark.slow
def test_tensorboard_has_each_point_once_after_a_resume(options, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Killed between logging an epoch and saving it: the epoch is logged again by the resume.
    interrupt_after(monkeypatch, "save", calls=2)
    with pytest.raises(KeyboardInterrupt):
        train(options)
    monkeypatch.undo()
    train(options, resume=True)
    events = EventAccumulator(str(Path(options["out"]) / "tb")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "train_accuracy", "val_accuracy", "lr"}
    history = load_checkpoint(options["out"])["history"]
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        assert [p.step for p in points] == [1, 2]
        assert [p.value for p in points] == pytest.approx([row[tag] for row in history])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["test_ottt_vgg", "test_ltc_cnn"])
def test_fptt_resumes_and_keeps_the_averages(options, tmp_path, monkeypatch, model):
    """Tested and kept is the average of the weights; what trains on is the weights themselves."""
    options = {**options, "model": model, "rule": "fptt", "fptt_alpha": 0.5, "parts": 2}
    train(options)
    again = {**options, "out": str(tmp_path / "again")}
    interrupt_after(monkeypatch, "save", calls=2)
    with pytest.raises(KeyboardInterrupt):
        train(again)
    monkeypatch.undo()
    result = train(again, resume=True)
    for name in ("last", "best"):
        assert same(weights(options["out"], name), weights(again["out"], name))
    states = [load_checkpoint(run["out"]) for run in (options, again)]
    assert same(*(state["model"] for state in states))
    for key in ("average", "dual"):
        first, second = (state["optimizer"][key] for state in states)
        assert first and same(first, second)
    built = timm.create_model(model, num_classes=3, in_chans=2)
    kept = weights(again["out"])
    for i, (name, p) in enumerate(built.named_parameters()):
        average, raw = states[1]["optimizer"]["average"][i], states[1]["model"][name]
        assert average.shape == p.shape and torch.equal(kept[name], average)
        assert name.endswith("bias") or not torch.equal(kept[name], raw), name
    # An LTC network starts at random: its test is the same each time all the same.
    rows = evaluation.evaluate(again["out"], batch_size=9, device="cpu")
    assert [row["accuracy"] for row in rows] == [result["test_accuracy"]]


@pytest.mark.slow
def test_an_average_is_kept_and_resumes_bit_for_bit(options, tmp_path, monkeypatch):
    """With two batches an update, of which the last of an epoch has one."""
    options = {**options, "ema": 0.5, "accumulate": 2, "clip_norm": 0.5}
    train(options)
    again = {**options, "out": str(tmp_path / "again")}
    interrupt_after(monkeypatch, "save", calls=2)
    with pytest.raises(KeyboardInterrupt):
        train(again)
    monkeypatch.undo()
    result = train(again, resume=True)
    assert_same_run(options["out"], again["out"])
    first, second = (load_checkpoint(run["out"]) for run in (options, again))
    assert same(first["ema"], second["ema"])
    batches = -(-result["n_train"] // options["batch_size"])
    assert batches % 2 and first["ema"]["n_averaged"] == 2 * (batches // 2 + 1)
    kept, raw = weights(again["out"]), second["model"]
    assert all(torch.equal(kept[name], second["ema"][f"module.{name}"]) for name in raw)
    assert not same(kept, raw)
    rows = evaluation.evaluate(again["out"], batch_size=9, device="cpu")
    assert [row["accuracy"] for row in rows] == [result["test_accuracy"]]


@pytest.mark.slow
def test_a_checkpoint_from_before_an_option_existed_resumes(options):
    first = train(options, epochs=1)
    path = Path(options["out"]) / "last.pt"
    state = torch.load(path, weights_only=True)
    del state["config"]["amp"], state["config"]["backward_steps"]
    del state["sha256"], state["middle"]
    torch.save(state, path)
    assert train(options, resume=True, epochs=1) == first


def test_finished_run_gives_its_result_again(finished):
    out, result = finished
    before = (out / "result.json").stat().st_mtime_ns
    config = training.configure(None, {"out": str(out)}, resume=True)
    assert training.train(config, resume=True) == json.loads(json.dumps(result))
    assert (out / "result.json").stat().st_mtime_ns == before


def test_a_result_that_is_not_the_runs_own_is_not_returned(finished, tmp_path):
    out, result = finished
    copy = shutil.copytree(out, tmp_path / "copy")
    changed = {**result, "test_accuracy": 2.0, "history": result["history"][:-1]}
    (copy / "result.json").write_text(json.dumps(changed))
    config = training.configure(None, {"out": str(copy)}, resume=True)
    again = training.train(config, resume=True)
    assert again["test_accuracy"] == result["test_accuracy"]
    assert json.loads((copy / "result.json").read_text())["history"] == result["history"]


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 0.5), ("epochs", 9), ("steps", 2), ("model", "test_ottt_nf_resnet")]
)
def test_resume_with_another_configuration_is_refused(finished, key, value):
    out, _ = finished
    config = training.configure(None, {"out": str(out), key: value}, resume=True)
    with pytest.raises(InputError, match=rf"{key} was .*, now .*{value}"):
        training.train(config, resume=True)


def test_what_does_not_change_the_numbers_may_change_on_a_resume(finished):
    """A run that ended at a NaN goes on without that batch, as the manual says."""
    out, result = finished
    changes = {"on_nan": "skip", "workers": 1, "save_every": 1.0}
    config = training.configure(None, {"out": str(out), **changes}, resume=True)
    assert training.train(config, resume=True) == json.loads(json.dumps(result))


@pytest.mark.slow
def test_resume_with_other_recordings_is_refused(options, recordings, tmp_path):
    data = write_recordings(tmp_path / "data", {"train": 4, "test": 2})
    train(options, data=str(data), epochs=1)
    next(data.glob("train/left/*.npz")).unlink()
    with pytest.raises(InputError, match="recordings"):
        train(options, data=str(data), epochs=1, resume=True)


@pytest.mark.slow
def test_resume_of_nothing_and_of_a_damaged_checkpoint(options):
    with pytest.raises(InputError, match="without --resume"):
        train(options, resume=True)
    train(options, epochs=1)
    path = Path(options["out"]) / "last.pt"
    data = path.read_bytes()
    path.with_name("previous.pt").unlink()
    for bad in (data[: len(data) // 2], b"", b"not a checkpoint"):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=r"last\.pt is damaged.*another --out"):
            train(options, epochs=1, resume=True)
    state = torch.load(_rewritten(path, data))
    del state["sha256"], state["middle"]
    torch.save({**state, "format": 99}, path)
    with pytest.raises(InputError, match="format 99"):
        train(options, epochs=1, resume=True)


def _rewritten(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
