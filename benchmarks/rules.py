"""Learning rules side by side on one data set: one recipe, one budget, several seeds."""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.measure import interleaved_medians, peak_bytes, slope
from benchmarks.networks import count_neurons
from sj_ottt import learning
from sj_ottt.learning.rules import RULES
from sj_ottt.run import training
from sj_ottt.run.config import TrainConfig

ROWS: dict[str, dict[str, Any]] = {
    "OTTT-A": {"rule": "ottt"},
    "OTTT-O": {"rule": "ottt", "update": "online"},
    "OTTT-K, K = 2": {"rule": "ottt", "backward_steps": 2},
    "SLTT": {"rule": "sltt"},
    "SLTT-K, K = 2": {"rule": "sltt", "backward_steps": 2},
    "NDOT-A": {"rule": "ndot"},
    "NDOT-O": {"rule": "ndot", "update": "online"},
    "NDOT-A, code": {"rule": "ndot", "rule_variant": "code"},
    "NDOT-O, code": {"rule": "ndot", "rule_variant": "code", "update": "online"},
    "BPTT": {"rule": "bptt"},
    "VGG-F, OTTT-A": {"rule": "ottt", "model": "ottt_vgg5f_ws"},
    "VGG-F, OTTT-O": {"rule": "ottt", "update": "online", "model": "ottt_vgg5f_ws"},
    # The OTTT paper's Table 3. 0.1 is its learning rate for 128 samples; for one, the recipes' rate
    # for 32 samples scaled by the batch size.
    "OTTT-A, batch 128": {"rule": "ottt", "batch_size": 128, "lr": 0.1},
    "OTTT-O, batch 128": {"rule": "ottt", "update": "online", "batch_size": 128, "lr": 0.1},
    "OTTT-A, batch 1": {"rule": "ottt", "batch_size": 1, "lr": 0.003},
    "OTTT-O, batch 1": {"rule": "ottt", "update": "online", "batch_size": 1, "lr": 0.003},
}
# A rule that has no row yet gets one.
ROWS |= {
    name.upper(): {"rule": name}
    for name in RULES
    if name not in {row["rule"] for row in ROWS.values()}
}


def rules(args: argparse.Namespace) -> list[dict]:
    """Test accuracy over seeds, time per sample and bytes per neuron of each learning rule.

    Runs that are finished are not run again, and one that was stopped goes on: the folder --runs
    keeps them, and refuses those of another recipe, data set or budget. Several processes may
    share the rows and seeds between them (--rows, --seeds). The time is that of training batches
    in one interleaved run at the end, not that of the runs.
    """
    names = args.rows or list(ROWS)
    results = {name: [_run(name, seed, args) for seed in args.seeds] for name in names}
    configs = {name: TrainConfig.from_sources(args.recipe, ROWS[name]) for name in names}
    sizes = {name: found[0]["data"]["frame_size"] for name, found in results.items()}
    steps = {name: _training_step(configs[name], sizes[name]) for name in names}
    batches = {name: configs[name].optimisation.batch_size for name in names}
    seconds = interleaved_medians(
        {name: (lambda name=name: steps[name](batches[name])) for name in names}, args.repeats
    )
    table = []
    for name in names:
        accuracy = [100 * result["test_accuracy"] for result in results[name]]
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        table.append(
            {
                "rule": name,
                "accuracy": f"{statistics.mean(accuracy):.1f} ± {spread:.1f}",
                "seeds": len(accuracy),
                "ms/sample": f"{1000 * seconds[name] / batches[name]:.2f}",
                "bytes/neuron": f"{_bytes_per_neuron(steps[name], configs[name], sizes[name]):.1f}",
            }
        )
    return table


def _run(name: str, seed: int, args: argparse.Namespace) -> dict:
    slug = "".join(c if c.isalnum() else "_" for c in name.lower())
    out = Path(args.runs) / f"{slug}-{seed}"
    overrides = {**ROWS[name], "seed": seed, "out": str(out)}
    for option in ("data", "epochs"):
        if getattr(args, option):
            overrides[option] = getattr(args, option)
    config = TrainConfig.from_sources(args.recipe, overrides)
    return training.train(config, resume=(out / "last.pt").exists())


def _training_step(cfg: TrainConfig, size: list[int]) -> Callable[[int], object]:
    """Return what trains the recipe's network on n random samples of ``size`` (height, width)."""
    learning_options = cfg.learning
    model = timm.create_model(
        cfg.network.model,
        in_chans=2,
        rule=learning_options.rule,
        rule_variant=learning_options.rule_variant,
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.0)

    def train(n: int) -> object:
        x_seq, target = torch.randn(cfg.frames.steps, n, 2, *size), torch.zeros(n).long()
        return learning.train_step(
            model,
            optimizer,
            x_seq,
            target,
            update=learning_options.update,
            backward_steps=learning_options.backward_steps,
        )

    return train


def _bytes_per_neuron(train: Callable[[int], object], cfg: TrainConfig, size: list[int]) -> float:
    """Return the slope of the peak over the batch size, divided by the network's neurons."""
    neurons = count_neurons(
        timm.create_model(cfg.network.model, in_chans=2), torch.zeros(1, 2, *size)
    )
    sizes = [8, 16, 24]
    return slope(sizes, [peak_bytes(lambda n=n: train(n)) for n in sizes]) / neurons
