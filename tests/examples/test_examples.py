"""Each example, run as a user runs it, in a shortened form."""

import copy
import json
import re
import runpy
import sys
from pathlib import Path

import fptt_add
import numpy as np
import pytest
import torch

from sj_ottt.data import EVENT_DTYPE
from sj_ottt.run import checkpoint
from tests.fresh import python
from tests.helpers import write_recordings
from tests.recording_files import dat

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(tmp_path):
    """Run an example (or a changed copy of it) in an empty folder; return what it printed."""

    def run_(script, *args):
        done = python(script, *args, cwd=tmp_path, SJ_OTTT_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_


@pytest.mark.slow
def test_switching_the_import_changes_no_loss(run, tmp_path):
    """The script with its two import lines as they were before prints the same losses."""
    ours = (EXAMPLES / "switch_from_spikingjelly.py").read_text()
    theirs = ours.replace("from sj_ottt import layer, neuron\n", "").replace(
        "from sj_ottt.learning import ottt_online_training\n", ""
    )
    theirs = re.sub(r"^# (from spikingjelly)", r"\1", theirs, flags=re.MULTILINE)
    assert "sj_ottt" not in theirs.partition('"""')[2].partition('"""')[2]
    before = tmp_path / "before.py"
    before.write_text(theirs)
    args = ("--epochs", 1, "--limit", 300)
    losses = [
        re.search(r"loss (\S+), accuracy (\S+),", run(script, *args)).groups()
        for script in (EXAMPLES / "switch_from_spikingjelly.py", before)
    ]
    assert abs(float(losses[0][0]) - float(losses[1][0])) < 1e-4
    assert float(losses[0][0]) < 2.3  # better than chance, so something was learnt


@pytest.mark.slow
def test_finetune_own_dvs(run, tmp_path):
    """Raw recordings in which a band of events changes its place every 200 ms."""
    rng = np.random.default_rng(0)
    rows = ["file,start,end,label"]
    folder = tmp_path / "my recordings"
    folder.mkdir()
    for number in range(7):
        events = np.zeros(4 * 800, EVENT_DTYPE)
        events["t"] = np.linspace(0, 799_999, len(events)).astype(int)
        place = events["t"] // 200_000 % 2
        events["x"] = np.clip(rng.normal(4 + 8 * place, 1), 0, 15)
        events["y"], events["p"] = rng.integers(0, 16, (2, len(events))) // [[1], [8]]
        path = folder / f"{number}.dat"
        path.write_bytes(dat(events.tolist(), "% Width 16\n% Height 16\n"))
        for i in range(4):
            rows.append(f"{path.name},{200 * i}ms,{200 * (i + 1)}ms,{('left', 'right')[i % 2]}")
    labels = folder / "labels.csv"
    labels.write_text("\n".join(row for row in rows if not row.startswith("6.dat")))
    new = path.rename(tmp_path / "new.dat")
    args = (EXAMPLES / "finetune_own_dvs.py", folder, labels, new, "--epochs", 3)
    out = run(*args)
    assert re.search(r"{'train': \d+, 'test': [48]} samples", out)
    assert float(re.search(r"test accuracy (\S+)", out)[1]) == 1.0
    said = re.findall(r"^(\S+) s: (\w+) \(\d+%\)$", out, re.MULTILINE)
    assert said == [("0.0", "left"), ("0.2", "right"), ("0.4", "left"), ("0.6", "right")]
    assert run(*args).endswith(out.partition("test accuracy")[2])  # from what is there


@pytest.mark.slow
def test_finetune_nf_resnet(run, tmp_path):
    folder = write_recordings(tmp_path / "bands", {"train": 4, "test": 1})
    script = (EXAMPLES / "finetune_nf_resnet.py").read_text()
    for said, shorter in (("range(12)", "range(4)"), ("(64, 64)", "(32, 32)")):
        assert said in script
        script = script.replace(said, shorter)
    (tmp_path / "shorter.py").write_text(script)
    out = run(tmp_path / "shorter.py", folder)
    losses = [float(loss) for loss in re.findall(r"loss of the last batch (\S+)", out)]
    assert len(losses) == 4 and losses[-1] < 0.5 * losses[0]
    assert int(re.search(r"(\d) of 3 recordings labelled rightly", out)[1]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("update", ["accumulate", "online"])
def test_train_static_images(run, update):
    args = ("--epochs", 2, "--steps", 4, "--limit", 500, "--update", update)
    out = run(EXAMPLES / "train_static_images.py", *args)
    assert float(re.findall(r"test accuracy (\S+)", out)[-1]) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fptt", "bptt"])
def test_fptt_add_resumes_where_it_stopped(tmp_path, monkeypatch, capsys, rule):
    """In this process, which has the imports done."""

    def add(name, *args):
        given = (
            "--steps", 40, "--every", 2, "--hidden", 8, "--batch-size", 8, "--rule", rule,
            "--out", tmp_path / name, *args,
        )  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["fptt_add.py", *map(str, given)])
        runpy.run_path(str(EXAMPLES / "fptt_add.py"), run_name="__main__")

    def save_and_stop(out, state):
        save(out, state)
        raise KeyboardInterrupt

    add("whole", "--batches", 4)
    out = capsys.readouterr().out
    save = checkpoint.save_checkpoint
    monkeypatch.setattr(checkpoint, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        add("halves", "--batches", 4)
    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    add("halves", "--resume")
    results = []
    for name in ("whole", "halves"):
        assert (tmp_path / name / "curve.png").read_bytes()[:4] == b"\x89PNG"
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
        assert results[-1].pop("seconds") > 0 and results[-1].pop("peak_memory_mib") > 0
    assert results[0] == results[1]
    assert results[0]["parts"] == (2 if rule == "fptt" else None)
    assert [row["batch"] for row in results[0]["history"]] == [2, 4]
    assert 0 < results[0]["firing_rate"] < 1
    assert f"error {results[0]['mse']:.4f} after 4" in out
    checkpoint.save_checkpoint(tmp_path / "foreign", {"options": {"width": 2}})
    picture = (tmp_path / "whole" / "curve.png").read_bytes()
    add("whole", "--resume", "--beside", tmp_path / "halves")
    assert (tmp_path / "whole" / "curve.png").read_bytes() != picture
    for args, words in (
        (["none", "--beside", tmp_path / "nowhere"], "holds no result of this program"),
        (["foreign", "--resume"], "holds a run of another program"),
        (["whole"], "holds a run"),
        (["whole", "--batches", 4, "--resume", "--lr", 1], "was started with"),
        (["none", "--resume"], "nothing to resume"),
        (["none", "--steps", 1], "at least 2"),
        (["none", "--rule", "fptt", "--parts", 41], "x_seq has 40 time steps"),
        (["none", "--rule", "bptt", "--parts", 4], "--parts does not go with"),
        (["none", "--batches", 0], "--batches must be at least 1"),
        (["none", "--lr", -1], "--lr must be a number above 0"),
    ):
        with pytest.raises(SystemExit):
            add(*args)
        assert words in capsys.readouterr().err


def test_the_add_task_is_what_it_says():
    """A number and one marker in each half; the target is the marked sum, whose variance is 1/6."""
    x_seq, target = fptt_add.draw(21, 4000, seed=3)
    numbers, markers = x_seq[..., 0], x_seq[..., 1]
    assert torch.equal(markers[:10].sum(0), torch.ones(4000))
    assert torch.equal(markers[10:].sum(0), torch.ones(4000))
    assert markers.mean(1).min() > 0.03  # each place is drawn
    assert torch.equal((numbers * markers).sum(0), target)
    assert ((target - 1) ** 2).mean().item() == pytest.approx(1 / 6, rel=0.05)
    assert not torch.equal(fptt_add.draw(21, 4000, seed=4)[0], x_seq)


def test_the_add_tasks_bptt_has_the_last_outputs_gradient():
    """Against autograd through the same loop, with the clip written out."""
    torch.manual_seed(0)
    net = fptt_add.AddNet("ltc", 6).double()
    x_seq, target = (t.double() for t in fptt_add.draw(12, 5, seed=0))
    twin = copy.deepcopy(net)
    fptt_add.bptt_step(net, torch.optim.SGD(net.parameters(), 1.0), x_seq, target)
    loss = fptt_add.squared_error([twin(x) for x in x_seq][-1], target)
    grads = torch.autograd.grad(loss, [*twin.parameters()])
    scale = min(1.0, 1.0 / torch.stack([g.norm() for g in grads]).norm().item())
    for new, old, grad in zip(net.parameters(), twin.parameters(), grads, strict=True):
        assert grad.any()
        torch.testing.assert_close(old - new, scale * grad, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_fashion_events(run, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 6), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n).astype(np.uint8)
    np.savez(tmp_path / "images.npz", **arrays)
    out = tmp_path / "events"
    run(
        EXAMPLES / "fashion_events.py", "--images", tmp_path / "images.npz", "--out", out,
        "--train", 4,
    )  # fmt: skip
    assert len(list((out / "train").rglob("*.npz"))) == 4
    assert len(list((out / "test").rglob("*.npz"))) == 3


def test_recipes_are_valid():
    from sj_ottt.run.config import TrainConfig

    recipes = sorted((EXAMPLES / "recipes").glob("*.yaml"))
    assert len(recipes) >= 3
    for recipe in recipes:
        config = TrainConfig.from_sources(recipe)
        assert config.run.out == f"runs/{recipe.stem}"
        assert f"--config examples/recipes/{recipe.name}" in recipe.read_text()
