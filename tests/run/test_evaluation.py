"""A run's best model, loaded again and measured."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sj_ottt.errors import InputError
from sj_ottt.learning.rules import rule_of
from sj_ottt.neuron import OTTTLIFNode
from sj_ottt.run import evaluation, training
from sj_ottt.run.checkpoint import read_model, write_model
from sj_ottt.run.config import TrainConfig
from tests.helpers import write_recordings


def test_evaluate_cuts_the_recordings_anew(finished):
    out, result = finished
    rows = evaluation.evaluate(out, steps=[1, 4], device="cpu")
    assert [row["steps"] for row in rows] == [1, 4]
    assert rows[1]["accuracy"] == result["test_accuracy"]
    assert all(row["n"] == 9 and row["ms"] > 0 for row in rows)
    (row,) = evaluation.evaluate(out, split="train", batch_size=7, device="cpu")
    assert row["n"] == 30 and row["steps"] == 4


def test_evaluate_refuses_what_does_not_fit(finished, tmp_path):
    out, _ = finished
    with pytest.raises(InputError, match="does not exist"):
        evaluation.evaluate(tmp_path)
    for classes in (("left", "middle"), ("left", "middle", "wrong")):
        data = write_recordings(tmp_path / classes[-1], {"train": 1, "test": 1}, classes)
        with pytest.raises(InputError, match=f"classes left, middle.*{out}"):
            evaluation.evaluate(out, str(data))
    for steps in ([], [0], [4, -1]):
        with pytest.raises(InputError, match="steps"):
            evaluation.evaluate(out, steps=steps)


def test_evaluate_refuses_a_changed_model(finished, tmp_path):
    source, target = finished[0] / "best.safetensors", tmp_path / "best.safetensors"
    data = bytearray(source.read_bytes())
    target.write_bytes(data[:-10])
    with pytest.raises(InputError, match="damaged"):
        evaluation.evaluate(tmp_path)
    data[-3] ^= 1
    target.write_bytes(data)
    with pytest.raises(InputError, match="changed after training"):
        evaluation.evaluate(tmp_path)
    save_file(load_file(source), target)
    with pytest.raises(InputError, match="not written by"):
        evaluation.evaluate(tmp_path)


@pytest.mark.parametrize("readout", ["exact", "membrane"])
def test_what_belongs_to_the_model_is_loaded_with_it(options, readout):
    changes = {"epochs": 1, "rule": "ndot", "rule_variant": "code", "readout": readout}
    training.train(TrainConfig(**{**options, **changes}))
    model = evaluation.load_trained(options["out"], "cpu").model
    assert (model.prediction == "last") == (readout == "membrane")
    assert model.readout == readout and rule_of(model).name == "ottt"
    assert {node.variant for node in model.modules() if isinstance(node, OTTTLIFNode)} == {"code"}


def test_a_run_with_dropout_behind_neurons_is_opened_again(options, tmp_path):
    """Also one of when each of these dropouts had a number in the names of what follows it."""
    changes = {"model": "ottt_vgg5_ws", "epochs": 1, "spike_drop_rate": 0.1, "drop_rate": 0.1}
    training.train(TrainConfig(**{**options, **changes}))
    trained = evaluation.load_trained(options["out"], "cpu")
    tensors, info = read_model(trained.path)
    old = {name.replace("layer3.4.", "layer3.5."): value for name, value in tensors.items()}
    assert old.keys() != tensors.keys()
    (tmp_path / "old").mkdir()
    write_model(tmp_path / "old" / "best.safetensors", old, info)
    config = TrainConfig(**{**options, **changes, "pretrained": str(tmp_path / "old")})
    for model in (
        evaluation.load_trained(tmp_path / "old", "cpu").model,
        training.TrainingRun(config).model,
    ):
        assert all(map(torch.equal, model.parameters(), trained.model.parameters()))


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_gpu_that_is_there(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert evaluation.resolve_device("auto") == torch.device(device)
