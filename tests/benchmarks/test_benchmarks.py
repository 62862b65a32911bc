"""The benchmarks measure what they say: sides that agree, runs that are not repeated."""

import argparse
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    folds,
    fptt,
    gpu,
    gpu_sides,
    kernel,
    loading,
    networks,
    profile,
    rules,
    sessions,
    sides,
)
from benchmarks.__main__ import print_table
from sj_ottt import InputError
from sj_ottt._ops import lif_gpu
from sj_ottt.run import training
from tests.helpers import write_recordings

SIDES = [("vgg", name, side, 8) for name, side in sides.VGG.items()]
SIDES += [("nf_resnet34", name, side, 32) for name, side in sides.NF_RESNET34.items()]


@pytest.mark.parametrize(("network", "name", "side", "size"), SIDES)
def test_sides_compute_the_same(network, name, side, size):
    side.check(name, size, "cpu")


def test_a_side_that_computes_something_else_is_refused():
    def halved(model, optimizer, x, y):
        out = sides.OURS(model, optimizer, x, y)
        with torch.no_grad():
            next(model.parameters()).mul_(1.001)
        return out

    side = replace(sides.VGG["sj_ottt OTTT-A"], train=halved)
    with pytest.raises(SystemExit, match="halved differs from its reference"):
        side.check("halved", 8, "cpu")


def test_the_floor_has_every_product_once_per_step(monkeypatch):
    model = networks.our_vgg(tiny=True)
    run = networks.bare_products(model, torch.randn(2, 3, 8, 8), steps=3)
    calls = []
    real = torch.nn.functional.conv2d
    monkeypatch.setattr(networks.F, "conv2d", lambda *a: calls.append(1) or real(*a))
    run()
    assert len(calls) == 2 * 3 and not any(m._forward_hooks for m in model.modules())


def test_a_profile_tells_the_parts_of_a_batch_apart(monkeypatch):
    name = "sj_ottt OTTT-A, chunk T"
    tiny = replace(sides.VGG[name], build=partial(sides.VGG[name].build, tiny=True))
    monkeypatch.setattr(sides, "VGG", {name: tiny, "spikingjelly OTTT-A": tiny})
    (row,) = profile.profiled(argparse.Namespace(batch=[2], steps=3, nf_resnet=False))
    shares = {part: int(row[part].removesuffix("%")) for part in profile.COLUMNS}
    assert sum(shares.values()) == pytest.approx(100, abs=len(shares) / 2)
    missing = [part for part, share in shares.items() if share == 0]
    assert not missing and shares["rest"] < 50
    assert shares["convolutions"] < 90  # at this size the products are not all there is


@pytest.mark.slow
def test_rules_are_not_run_twice(tmp_path, monkeypatch, capsys):
    data = write_recordings(tmp_path / "data", {"train": 4, "test": 2})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: test_ottt_vgg\nsteps: 2\nbatch_size: 4\nlr: 0.1\n")
    fixed = lambda runs, repeats: dict.fromkeys(runs, 0.008)  # noqa: E731
    monkeypatch.setattr(rules, "interleaved_medians", fixed)
    args = argparse.Namespace(
        recipe=str(recipe),
        repeats=1,
        rows=["OTTT-O", "SLTT-K, K = 2"],
        seeds=[0, 1],
        epochs=1,
        data=str(data),
        runs=str(tmp_path / "runs"),
    )
    table = rules.rules(args)
    assert [row["rule"] for row in table] == args.rows and table[0]["seeds"] == 2
    assert table[0]["ms/sample"] == "2.00" and float(table[0]["bytes/neuron"]) > 4
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["ottt_o-0", "ottt_o-1", "sltt_k__k___2-0", "sltt_k__k___2-1"]
    monkeypatch.setattr(training.TrainingRun, "run_epoch", None)
    assert rules.rules(args) == table
    print_table(table)
    assert "±" in capsys.readouterr().out
    args.epochs = 2
    with pytest.raises(InputError, match="epochs was 1, now 2"):
        rules.rules(args)


def test_simulating_has_each_effect():
    rows = loading.simulating(argparse.Namespace(repeats=1))
    events = {row["effects"]: row["events"] for row in rows}
    assert events["and a refractory time"] < events["contrast and mismatch"]
    assert events["contrast and mismatch"] < events["and shot noise"]
    assert len(events) == 5 and all(float(row["ms"]) > 0 for row in rows)


def test_saccades_are_timed_alone_and_in_batches():
    rows = loading.saccades(argparse.Namespace(repeats=1, device="cpu"))
    assert len(rows) == 9 and all(float(row["samples/s"]) > 0 for row in rows)
    assert rows[4] | {"samples/s": ""} == {
        "batch": 128, "image": "3 x 64 x 64", "T": 4, "samples/s": ""
    }  # fmt: skip


@pytest.mark.slow
def test_loading_visits_every_sample(monkeypatch):
    opened = []
    real = loading._open

    def spy(*args, **kwargs):
        opened.append((kwargs.get("workers"), real(*args, **kwargs)))
        return opened[-1][1]

    monkeypatch.setattr(loading, "_open", spy)
    args = argparse.Namespace(samples=5, workers=[0, 2], repeats=1, device="cpu")
    table = loading.loading(args)
    assert sorted(row["workers"] for row in table) == [0] * 8 + [2] * 8
    assert all(float(row["samples/s"]) > 0 for row in table)
    assert all(len(data) == 5 and data[0][0].shape == (10, 2, 48, 48) for _, data in opened[:1])
    # The cache is built anew each time, once to warm up.
    assert [workers for workers, _ in opened if workers is not None] == [0, 2, 0, 2]


@pytest.mark.slow
def test_fptt_sides_agree_at_first_and_memory_is_what_autograd_keeps(monkeypatch):
    for name, side in fptt.SIDES.items():
        fptt.check(side, name)

    def doubled(model, optimizer):
        train = fptt.bptt(model, optimizer)
        return lambda x, y: [train(x, y) for _ in range(2)]

    with pytest.raises(SystemExit, match="doubled's first update differs"):
        fptt.check(doubled, "doubled")
    x = torch.ones(1000, requires_grad=True)
    # The square keeps x, which is 4,000 bytes, twice; the exponential its own result.
    assert fptt.graph_bytes(lambda: (x * x).sum().backward()) == 4000
    assert fptt.graph_bytes(lambda: (x * x).exp().sum().backward()) == 8000
    monkeypatch.setattr(fptt, "TIMES", (4, 8))
    monkeypatch.setattr(fptt, "STEPS", 2)
    rows = {row["run"]: row for row in fptt.fptt(argparse.Namespace(repeats=1))}
    flat, grown = rows["sj_ottt FPTT"], rows["BPTT"]
    assert flat["MiB, T=4"] == flat["MiB, T=8"] and rows["spikingjelly FPTT"]["ratio"] == "1.00"
    assert float(grown["MiB, T=8"]) > 1.5 * float(grown["MiB, T=4"])


@pytest.mark.slow
def test_folds_test_on_every_recording_once(tmp_path, monkeypatch):
    targets = np.repeat([0, 1, 2], [11, 7, 5])
    fold = folds.stratified(targets, 4, seed=0)
    assert max(np.bincount(fold)) - min(np.bincount(fold)) <= 1
    for label in range(3):
        counts = np.bincount(fold[targets == label], minlength=4)
        assert counts.max() - counts.min() <= 1
    data = write_recordings(tmp_path / "data", {"train": 4, "test": 2})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: test_ottt_vgg\nsteps: 2\nbatch_size: 4\nval_fraction: 0\n")
    seen, train = [], training.train

    def spy(config, *, resume):
        run = training.TrainingRun(config)
        parts = [{Path(f).name for f in part.files} for part in (run.data.augmented, run.data.test)]
        assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 18
        seen.extend(parts[1])
        return train(config, resume=resume)

    monkeypatch.setattr(training, "train", spy)
    args = argparse.Namespace(
        data=str(data), recipe=str(recipe), folds=3, epochs=1, runs=str(tmp_path / "runs")
    )
    table = folds.folds(args)
    assert len(seen) == len(set(seen)) == 18 and table[-1]["recordings"] == 18
    right = sum(float(row["accuracy"]) * row["recordings"] for row in table[:-1])
    assert float(table[-1]["accuracy"]) == pytest.approx(right / 18, abs=0.1)
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training.TrainingRun, "run_epoch", None)
    assert folds.folds(args) == table


def test_sessions_differ_and_share_no_object(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        sessions, "write_event_dataset", lambda root, images, *_, **k: calls.append((images, k))
    )
    seen = {}
    for name in "ab":
        calls.clear()
        sessions._record(tmp_path / name, name, seed=0)
        seen[name] = sum(len(images) for images, _ in calls)
        (first, kwargs), (test, _) = calls
        assert kwargs.items() >= sessions.SESSIONS[name].items()
        seen[name + " images"] = {image.tobytes() for image in (*first, *test)}
        assert len(seen[name + " images"]) == seen[name]
    assert (seen["a"], seen["b"]) == (1000, 797)
    assert not seen["a images"] & seen["b images"]


@pytest.mark.parametrize("network", ["vgg", "nf_resnet34"])
def test_networks_of_the_gpu_benchmark_take_colour_images(network):
    case = gpu_sides.Case(network, 1)
    model = gpu_sides.ours(network, False)
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, case.size, case.size)).shape == (1, 10)


def test_the_host_is_timed_with_each_package_that_launches_kernels(monkeypatch):
    """Without a GPU the calls are those of a CPU, and a package that is missing is said to be."""
    rows, packages = [], []

    class Report:
        attempt = gpu.Report.attempt

        def row(self, **values):
            rows.append(values)
            packages.append(lif_gpu._package(0)[0])

    monkeypatch.setattr(kernel, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(gpu, "_wait", lambda: None)
    monkeypatch.setattr(lif_gpu, "COMPILERS", {"CuPy": lambda *_: 1, "cuda-bindings": lambda *_: 2})
    gpu._host_time(Report(), calls=2)
    assert packages == ["CuPy"] * 2 + ["cuda-bindings"] * 2 + ["CuPy"] * 2
    assert {row["run"].split(", ")[1] for row in rows} == {
        "kernel by CuPy",
        "kernel by cuda-bindings",
        "operations",
    }
    assert all(float(row["value"]) > 0 for row in rows)

    def fails(*_):
        raise ImportError("No module named 'cuda'")

    monkeypatch.setitem(lif_gpu.COMPILERS, "cuda-bindings", fails)
    refused = pytest.raises(InputError, match="cuda-bindings: No module")
    with refused, kernel.compiled_by("cuda-bindings"):
        lif_gpu.kernel("lif_forward", ("SCALAR=float", "TRACE=Packed"), (), 0)
    assert lif_gpu._package(0)[0] == "CuPy"  # the rest of the benchmark has its kernels
    lif_gpu._package.cache_clear()
