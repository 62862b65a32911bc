"""The command: what it prints, its exit codes, and which source of a value wins."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from sj_ottt import zoo
from sj_ottt.cli.main import main
from sj_ottt.errors import InputError
from sj_ottt.run import training
from sj_ottt.run.checkpoint import ModelInfo, save_checkpoint, write_model
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.sections import FrameOptions
from tests.fresh import python
from tests.helpers import write_recordings

RECIPES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("bands"), {"train": 8, "test": 2})


@pytest.fixture
def recipe(recordings, tmp_path):
    values = {
        "model": "test_ottt_vgg",
        "data": str(recordings),
        "out": str(tmp_path / "run"),
        "steps": 2,
        "epochs": 1,
        "batch_size": 8,
        "lr": 0.01,
        "device": "cpu",
    }
    return write_yaml(tmp_path / "recipe.yaml", values)


def write_yaml(path: Path, values: dict) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def fails(capsys, *argv) -> str:
    """Run a command that must fail on its input, and return its one line."""
    code = main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith("sj-ottt: error: ") and err.count("\n") == 1
    return err


@pytest.mark.slow
def test_train_eval_resume(recipe, tmp_path, capsys):
    assert main(["train", "--config", str(recipe)]) == 0
    out, err = capsys.readouterr()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"test accuracy {result['test_accuracy']:.4f} on 6 samples" in out
    for name in ("result.json", "curves.png", "frames.png", "best.safetensors"):
        path = tmp_path / "run" / name
        assert path.exists() and str(path) in out
    assert "epoch 1/1" in err and "loss=" in err and "acc=" in err

    assert main(["eval", "--checkpoint", str(tmp_path / "run"), "--steps", "1,2"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0] == ["steps", "accuracy", "samples", "ms/sample"]
    assert [row[0] for row in table[1:]] == ["1", "2"]
    assert table[2][1:3] == [f"{result['test_accuracy']:.4f}", "6"]

    argv = ["analyze", "--checkpoint", str(tmp_path / "run"), "--steps", "2"]
    assert main([*argv, "--what", "rates,synops,energy,latency", "--picojoules", "4,1"]) == 0
    out = capsys.readouterr().out
    tables = {}
    for name in ("rates", "synops", "energy", "latency"):
        path = tmp_path / "run" / "analysis" / f"{name}.csv"
        assert f"{name}: {path}  {path.with_suffix('.png')}" in out
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        with path.open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
    assert [row["neurons"] for row in tables["rates"]] == [
        "layer1.1",
        "layer2.2",
        "layer3.2",
        "mean",
    ]
    total = sum(float(row["operations"]) for row in tables["synops"][:-1])
    energy = tables["energy"][-1]
    joules = 4e-12 * float(energy["multiply_accumulates"]) + 1e-12 * float(energy["accumulates"])
    assert float(energy["joules"]) == pytest.approx(joules) and energy["accumulates"] == str(total)
    assert tables["synops"][-1] == {"layer": "total", "operations": str(total)} and total > 0
    accuracy = float(tables["latency"][1]["accuracy"])  # of float32
    assert accuracy == pytest.approx(result["test_accuracy"])

    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert f"test accuracy {result['test_accuracy']:.4f}" in capsys.readouterr().out
    line = fails(capsys, "train", "--config", recipe)
    assert "--resume" in line and "--out" in line
    line = fails(capsys, "train", "--config", recipe, "--resume", "--lr", "0.5")
    assert "lr was 0.01, now 0.5" in line


@pytest.mark.slow
def test_analyze_draws_gradients_and_refuses(tmp_path, capsys):
    """On the shipped weights, as a run would have left them."""
    run = tmp_path / "run"
    model = zoo.create("ottt_vgg5_ws", 10, in_chans=2, pretrained=True)
    info = ModelInfo(
        model="ottt_vgg5_ws",
        classes=tuple("0123456789"),
        in_chans=2,
        data=str(write_recordings(tmp_path / "bands", {"train": 1, "test": 1}, "0123456789")),
        frames=FrameOptions(steps=3, size=(34, 34)),
    )
    write_model(run / "best.safetensors", model.state_dict(), info)
    argv = ["analyze", "--checkpoint", str(run), "--samples", "8", "--device", "cpu"]
    assert main([*argv, "--what", "alignment", "--out", str(tmp_path / "out")]) == 0
    assert "  ottt  bptt  all  0." in capsys.readouterr().out
    with (tmp_path / "out" / "alignment.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["rule"] for row in rows} == {"ottt", "sltt", "ndot"}
    assert all(abs(float(row["cosine"])) <= 1 + 1e-6 for row in rows)
    assert (tmp_path / "out" / "alignment.png").read_bytes().startswith(b"\x89PNG")
    for flags, message in (
        (
            ["--what", "rate"],
            "'rate' is no instrument: use rates, synops, energy, latency, alignment",
        ),
        (["--what", "rates", "--picojoules", "4,1"], "costs belong to the instrument energy"),
        (["--what", "energy", "--picojoules", "4,-1"], "ac=-1e-12: give the joules"),
        (["--samples", "0"], "samples must be a whole number from 1 on, not 0"),
        (["--steps", "-1"], "steps must be a whole number from 1 on, not -1"),
        (["--checkpoint", tmp_path / "none"], "best.safetensors"),
    ):
        assert message in fails(capsys, *argv, *flags)
    assert not (run / "analysis").exists()


@pytest.mark.slow
def test_models_lists_the_registry(capsys):
    import timm

    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0] for line in lines[1:]}
    known = set(timm.list_models("*ottt*"))
    tiny = {name for name in known if name.startswith("test_")}
    assert tiny and known - tiny <= listed and not tiny & listed
    assert re.search(r"^ottt_vgg5_ws +0\.30M ", "\n".join(lines), re.MULTILINE)


def test_ctrl_c_says_how_to_go_on(recipe, tmp_path, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.TrainingRun, "run_epoch", interrupt)
    out = tmp_path / "my run"
    assert main(["train", "--config", str(recipe), "--out", str(out)]) == 130
    assert f"sj-ottt train --resume --out '{out}'" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["train", "--resume", "--out", str(out)]) == 0


def test_a_restart_by_torchrun_goes_on_with_no_other_run(recipe, tmp_path, capsys, monkeypatch):
    first = ["train", "--config", str(recipe), "--shift", "1"]
    assert main(first) == 0
    capsys.readouterr()
    assert "holds a run already" in fails(capsys, *first[:3])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert "shift was 1, now 0" in fails(capsys, *first[:3])
    assert main(first) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "ottt_vgg5ws"], "unknown model 'ottt_vgg5ws'; did you mean ottt_vgg5_ws"),
        (["--data", "/nowhere/recordings"], "/nowhere/recordings"),
        (["--data", "ndigit"], "ndigits"),
        (["--lr", "nan"], "lr must be a finite number above 0, not 'nan'"),
        (["--lr", "-1"], "lr must be"),
        (["--steps", "0"], "steps must be a whole number from 1 to 1000000, not '0'"),
        (["--epochs", "1.5"], "epochs must be a whole number"),
        (["--batch-size", "many"], "batch_size must be a whole number"),
        (["--size", "0", "16"], "size must be two whole numbers"),
        (["--update", "sometimes"], "update must be one of accumulate, online"),
        (["--val-fraction", "1"], "val_fraction must be"),
        (["--device", "toaster"], "device 'toaster'"),
        (["--pretrained"], "no pretrained weights for model test_ottt_vgg"),
        (["--resume"], "without --resume"),
    ],
)
def test_bad_flag(recipe, tmp_path, capsys, flags, message):
    assert message in fails(capsys, "train", "--config", recipe, *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 8", "unknown key 'batchsize'; did you mean batch_size?"),
        ("batch-size: 8", "unknown key 'batch-size'; did you mean batch_size?"),
        ("zzz: 8", "unknown key 'zzz'; known keys: data, train_samples"),
        ("1: 8", "unknown key 1"),
        ("epochs: two", "epochs must be a whole number from 1 on, not 'two'"),
        ("epochs: true", "epochs must be"),
        ("epochs: 2.0", "epochs must be"),
        ("lr: [1]", "lr must be"),
        ("lr: .nan", "lr must be"),
        ("normalize: 1", "normalize must be true or false, not 1"),
        ("model: 5", "model must be a text"),
        ("size: 16", "size must be two whole numbers"),
        ("crop: [1, 2, 3]", "crop must be two or four whole numbers"),
        ("crop: [0, 4]", "crop must be two or four whole numbers"),
        ("frames: voxels", "frames must be one of counts, surface"),
        ("tau_us: 100", 'tau_us goes with frames="surface" only'),
        ("flip: 1.5", "flip must be a number from 0 to 1"),
        ("rotate: -1", "rotate must be a number from 0 to 180"),
        ("drop_events: 1", "drop_events must be a number from 0 to below 1"),
        ("drop_events: 0.1\nframes: surface", 'drop_events goes with frames="counts" only'),
        ("hot_pixels: 0.5", "hot_pixels must be a finite number from 1 on"),
        ("size: [16, a]", "size must be two whole numbers"),
        ("optimizer: lion", "optimizer must be one of sgd, adam, adamw"),
        ("pull_norm: l3", "pull_norm must be one of l2, l1"),
        ("rule: stdp", "rule must be one of ottt, sltt, ndot, bptt, fptt"),
        ("rule: fptt\nupdate: online", 'update=online does not go with rule="fptt"'),
        ("rule: fptt\nbackward_steps: 2", 'backward_steps=2 does not go with rule="fptt"'),
        ("rule: fptt\nparts: 7", "parts must be at most steps=6, not 7"),
        ("rule: fptt\namp: float16", "use bfloat16"),
        ("rule: fptt\nfptt_form: grad\nfptt_rho: 0.5", "fptt_form=grad has no fptt_beta"),
        ("parts: 2", 'parts=2 does not go with rule="ottt"'),
        ("fptt_alpha: 0.2", 'fptt_alpha=0.2 does not go with rule="ottt"'),
        ("rule: fptt\nfptt_alpha: 0", "fptt_alpha must be a finite number above 0"),
        ("rule: fptt\nfptt_beta: 2", "fptt_beta must be a number from 0 to 1"),
        ("rule: bptt\nupdate: online", 'update=online does not go with rule="bptt"'),
        ("rule: bptt\nbackward_steps: 2", 'backward_steps=2 does not go with rule="bptt"'),
        ("steps: 4\nbackward_steps: 5", "backward_steps must be at most steps=4, not 5"),
        ("pretrained: 3", "pretrained must be"),
        ("- epochs", "must hold `key: value` lines"),
        ("epochs: 1\n a: [", "line 2: not valid YAML"),
        ("model: !!python/object:os.system x", "not valid YAML"),
        ('epochs: !!int ""', "not valid YAML"),
        ("steps: 5\nsteps: -1", "line 2: the key 'steps' is given twice"),
    ],
)
def test_bad_recipe_names_file_and_key(tmp_path, capsys, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    line = fails(capsys, "train", "--config", path, "--out", tmp_path / "run")
    assert message in line and str(path) in line
    assert not (tmp_path / "run").exists()


def test_missing_recipe_and_bad_eval(recordings, tmp_path, capsys):
    assert "none.yaml" in fails(capsys, "train", "--config", tmp_path / "none.yaml")
    assert "best.safetensors" in fails(capsys, "eval", "--checkpoint", tmp_path)


def test_recordings_that_cannot_be_read(recordings, recipe, tmp_path, capsys):
    data = write_recordings(tmp_path / "data", {"train": 3, "test": 1})
    broken = sorted(data.glob("train/middle/*"))[1]
    broken.write_bytes(broken.read_bytes()[:200])
    assert broken.name in fails(capsys, "train", "--config", recipe, "--data", data)
    assert not (tmp_path / "run").exists()


def test_flags_go_before_the_recipe_and_that_before_defaults(tmp_path):
    path = write_yaml(tmp_path / "a.yaml", {"epochs": 3, "size": [20, 30], "pretrained": True})
    config = TrainConfig.from_sources(path, {"epochs": "4", "val_fraction": "0"})
    assert (config.optimisation.epochs, config.frames.size) == (4, (20, 30))
    assert config.network.pretrained is True
    assert config.dataset.val_fraction == 0.0
    assert config.frames.steps == FrameOptions.steps == 6
    # YAML 1.1 reads 1e-3 as text.
    path.write_text("lr: 1e-3\n")
    assert TrainConfig.from_sources(path).optimisation.lr == 0.001
    with pytest.raises(InputError, match="seed must be"):
        TrainConfig(seed=-1)


def test_a_recipe_is_judged_together_with_the_flags(tmp_path):
    """And each error is laid at the door of where it comes from."""
    path = write_yaml(tmp_path / "a.yaml", {"fptt_alpha": 0.2, "epochs": 0})
    config = TrainConfig.from_sources(path, {"rule": "fptt", "epochs": "3"})
    assert (config.fptt.fptt_alpha, config.optimisation.epochs) == (0.2, 3)
    with pytest.raises(InputError, match=r"^\S*a.yaml: epochs must be"):
        TrainConfig.from_sources(path, {"rule": "fptt"})
    with pytest.raises(InputError, match=r"^\S*a.yaml: fptt_alpha=0.2 does not go"):
        TrainConfig.from_sources(path, {"epochs": 3})
    with pytest.raises(InputError, match=r"^lr must be"):
        TrainConfig.from_sources(path, {"rule": "fptt", "epochs": 3, "lr": "x"})


def test_flags_of_a_resume_are_checked_against_the_runs_own_configuration(tmp_path, monkeypatch):
    own = TrainConfig(rule="fptt", fptt_alpha=0.5, parts=7, steps=8, out=str(tmp_path))
    save_checkpoint(tmp_path, {"config": own.flat(), "epoch": 1, "middle": {}})
    seen = []

    def stop(config, resume):
        seen.append((config, resume))
        raise InputError("seen")

    monkeypatch.setattr(training, "train", stop)
    recipe = write_yaml(tmp_path / "a.yaml", {"out": str(tmp_path), "parts": 7})
    for argv in (["--out", str(tmp_path), "--fptt-alpha", "0.5"], ["--config", str(recipe)]):
        assert main(["train", "--resume", *argv]) == 2
    assert seen == [(own, True)] * 2


def test_each_option_has_a_flag_that_reaches_training(monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(training, "configure", lambda file, overrides, resume: overrides)

    def stop(overrides, resume):
        seen.update(overrides)
        raise InputError("seen")

    monkeypatch.setattr(training, "train", stop)
    values = {
        "model": "m", "data": "d", "out": "o", "pretrained": "tag", "epochs": "2",
        "batch_size": "3", "lr": "0.1", "optimizer": "sgd", "weight_decay": "0.2",
        "schedule": "constant", "update": "online", "steps": "4", "size": ["5", "6"],
        "split_by": "duration", "shift": "1", "drop_rate": "0.3", "mse_weight": "0.4",
        "sensor_size": ["480", "640"], "camera": "0", "time_unit": "ns",
        "val_fraction": "0.2", "seed": "7", "workers": "1", "device": "cpu",
        "backward_steps": "2", "amp": "bfloat16", "rule": "ndot", "rule_variant": "code",
        "readout": "exact", "pull": "0.01", "pull_norm": "l1",
        "encoding": "rows", "cutout": "3", "train_samples": "9",
        "spike_drop_rate": "0.1", "freeze": "stem", "head_epochs": "1", "layer_decay": "0.5",
        "early_stop": "3", "clip_norm": "2", "ema": "0.9",
        "frames": "surface", "tau_us": "5000", "crop": ["1", "2", "8", "9"], "hot_pixels": "9",
        "flip": "0.5", "rotate": "10", "drop_events": "0", "time_jitter": "0", "cutmix": "1",
    }  # fmt: skip
    others = {
        "rule": "fptt", "parts": "3", "fptt_alpha": "0.2", "fptt_beta": "0.5", "fptt_rho": "0",
        "fptt_clip": "2", "fptt_form": "grad", "pull_to": "p", "accumulate": "1",
        "save_every": "5", "time_limit": "60", "on_nan": "skip", "backend": "torch",
        "chunk": "auto", "augment_on": "device",
    }  # fmt: skip
    flags = {"normalize": False} | dict.fromkeys(
        ("class_weights", "strict", "cuda_graph", "calibrate"), True
    )
    names = set(flags)
    for given in (values, others):  # which do not go together
        argv = [
            "train",
            "--no-normalize",
            "--class-weights",
            "--strict",
            "--cuda-graph",
            "--calibrate",
        ]
        for name, value in given.items():
            argv += ["--" + name.replace("_", "-"), *([value] if isinstance(value, str) else value)]
        seen.clear()
        fails(capsys, *argv)
        assert seen == {**given, **flags}
        names |= set(given)
    assert names == set(TrainConfig.option_names())


def test_help_shows_each_option_in_the_group_of_its_section(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    # A group is a title at the margin and flags below it.
    groups = dict(
        re.findall(r"^([a-z ]+):\n((?:\n|  .*\n)+)", capsys.readouterr().out, re.MULTILINE)
    )
    flags = {
        title: re.findall(r"^  --([a-z-]+)", text, re.MULTILINE) for title, text in groups.items()
    }
    titles = [section.title for section in TrainConfig.sections().values()]
    assert titles == [
        "data", "model", "frames", "learning rule", "optimisation", "run", "augmentation", "fptt",
    ]  # fmt: skip
    assert [title for title in flags if title in titles] == titles
    for section in TrainConfig.sections().values():
        names = [field.name.replace("_", "-") for field in dataclasses.fields(section)]
        assert flags[section.title] == names
    assert "--steps STEPS" in groups["frames"] and "(default: 6)" in groups["frames"]
    assert not {"config", "resume"} & {flag for title in titles for flag in flags[title]}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_and_shows_its_command(path):
    TrainConfig.from_sources(path)
    assert f"sj-ottt train --config examples/recipes/{path.name}" in path.read_text()


@pytest.mark.slow
def test_the_command_as_a_process(tmp_path):
    """Also what argparse refuses ends in 2, and a defect keeps its traceback."""
    for module in ("sj_ottt", "sj_ottt.cli.main"):
        run = python("-m", module, "eval", "--checkpoint", tmp_path)
        assert run.returncode == 2 and run.stdout == ""
        assert run.stderr.startswith("sj-ottt: error: ") and run.stderr.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main(["train", "--nonsense"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0


def test_a_defect_keeps_its_traceback(recipe, monkeypatch):
    def defect(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(training, "train", defect)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--config", str(recipe)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--head-epoch", "3"], "unknown: --head-epoch 3; did you mean --head-epochs?"),
        (["train", "DIR"], "sj-ottt train: error: unknown: DIR; see --help"),
        (["data", "slice", "a", "--label-from-folder", "--out", "b", "--windw=1s"], "--window?"),
        (["eval", "--checkpoint", "a", "--split", "tst"], "choose from"),
        (["analyze", "--checkpoint", "a", "--split", "tst"], "choose from"),
        (["analyze", "--checkpoint", "a", "--picojoules", "4.6"], "two numbers like 4.6,0.9"),
    ],
)
def test_wrong_flags(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_more_head_epochs_than_epochs(recipe, capsys):
    assert "head_epochs must be at most epochs=1" in fails(
        capsys, "train", "--config", recipe, "--head-epochs", 2
    )


def test_train_and_analyze_say_what_is_next(recipe, tmp_path, capsys):
    assert main(["train", "--config", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert f"predict   sj-ottt predict --checkpoint {tmp_path / 'run'} FILE" in out
    argv = ["analyze", "--checkpoint", str(tmp_path / "run"), "--what", "alignment"]
    assert main(argv) == 0
    path = tmp_path / "run" / "analysis" / "alignment.csv"
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == path.read_text().splitlines()[0].split(",")


@pytest.mark.slow
def test_a_closed_pipe_is_no_error():
    code = (
        "import os, sys; from sj_ottt import zoo; from sj_ottt.cli.main import main\n"
        "reading, writing = os.pipe(); os.dup2(writing, 1); os.close(reading)\n"
        "zoo.model_rows = lambda: [{'name': 'x' * 99, 'params': 1, 'weights': []}] * 9999\n"
        "sys.exit(main(['models']))"
    )
    run = python("-c", code)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.slow
def test_a_command_ends_without_a_search_for_garbage(tmp_path):
    code = (
        "import atexit, gc; from sj_ottt.cli.main import main\n"
        "gc.unfreeze(); atexit.register(lambda: print(len(gc.get_objects()) < 1000))\n"
        f"main(['eval', '--checkpoint', {str(tmp_path)!r}])"
    )
    assert python("-c", code).stdout == "True\n"
