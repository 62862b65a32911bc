"""A run's best model in other programs labels the same recordings the same way."""

import argparse
import json

import numpy as np
import pytest
import torch

from sj_ottt import InputError
from sj_ottt.cli import export as cli
from sj_ottt.cli.main import main
from sj_ottt.export import READERS
from sj_ottt.export.checkpoints import FORMATS, export_checkpoint
from sj_ottt.learning import predict
from sj_ottt.run.checkpoint import ModelInfo
from sj_ottt.run.evaluation import load_trained


def test_the_command_offers_every_format_and_reader():
    parser = argparse.ArgumentParser()
    cli.add(parser)
    choices = {action.dest: action.choices for action in parser._actions}
    assert choices["to"] == FORMATS and choices["reader"] == tuple(READERS)


def recordings(run):
    """What the model sees of the run's test recordings, [T, N, 2, H, W], and its predictions."""
    trained = load_trained(run, "cpu")
    dataset = trained.dataset(None, "test", trained.info.frames.steps)
    x_seq = torch.stack([dataset[i][0] for i in range(len(dataset))], 1)
    return trained, x_seq, predict(trained.model, x_seq)


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
def test_an_exported_run_labels_the_same_recordings_the_same_way(to, run, tmp_path, capsys):
    trained, x_seq, expected = recordings(run)
    assert len(expected.argmax(1).unique()) == 3
    path = tmp_path / "folder" / f"model.{to}"
    args = ["export", "--checkpoint", str(run), "--to", to, "--out", str(path)]
    if to != "torch":
        pytest.importorskip({"nir": "nir", "onnx": "onnxruntime"}[to])
    assert main(args) == 0
    printed = capsys.readouterr().out
    assert str(path) in printed and "left, middle, right" in printed
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    found, said = {"nir": _in_nir, "onnx": _in_onnx, "torch": _in_torch}[to](path, x_seq)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert ModelInfo.from_metadata(said, path) == trained.info


def _in_nir(path, x_seq):
    import nir

    from tests.export.networks import run_nir

    graph = nir.read(path)
    out, _ = run_nir(graph, x_seq, 1e-4, False)
    own = {"made_by", "reader", "dt", "step"}
    said = {k: json.loads(v) for k, v in graph.metadata.items() if k not in own}
    return out.sum(0), said


def _in_onnx(path, x_seq):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {"x_seq": x_seq.numpy()})
    said = session.get_modelmeta().custom_metadata_map
    return torch.from_numpy(np.asarray(found)), {k: json.loads(v) for k, v in said.items()}


def _in_torch(path, x_seq):
    extra = {"sj_ottt.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    return program(x_seq), json.loads(extra["sj_ottt.json"])


@pytest.mark.slow
def test_the_example_holds_the_labels_against_each_other(run, capsys):
    pytest.importorskip("nir")
    pytest.importorskip("onnxruntime")
    import check_export

    check_export.main(["--checkpoint", str(run)])
    printed = capsys.readouterr().out
    assert "onnxruntime  9 of 9 labels are the same" in printed
    for name in check_export.READERS:
        assert f"{name:12} not installed" in printed or f"{name:12} 9 of 9 labels" in printed


@pytest.mark.slow
def test_arguments_that_do_not_belong_together_are_refused(run, tmp_path, capsys):
    out = tmp_path / "model"
    for kwargs, words in (
        ({"to": "onxx"}, r'to="onxx" is unknown.*did you mean'),
        ({"to": "onnx", "reader": "norse"}, r'reader="norse" goes with to="nir" only'),
        ({"to": "nir", "steps": 4}, "steps=4: a NIR graph takes one time step"),
        ({"to": "torch", "steps": 0}, "steps=0: give a whole number from 1 on"),
        ({"to": "torch", "steps": "all"}, "steps=all: give a whole number"),
    ):
        with pytest.raises(InputError, match=words):
            export_checkpoint(run, out=out, **kwargs)
    args = ["export", "--checkpoint", str(run), "--out", str(out), "--to"]
    assert main([*args, "onnx", "--steps", "2.5"]) == 2
    assert "--steps 2.5: give a whole number" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written.*choose another file"):
        export_checkpoint(run, "nir", tmp_path / "file" / "model")
    assert not out.exists()
