"""Learning rules side by side on recordings: one recipe, one budget, several seeds."""

import argparse
import json
import statistics
from pathlib import Path

import timm
import torch

from benchmarks.measure import peak_bytes, slope
from benchmarks.networks import count_neurons
from sj_ottt import engine, learning
from sj_ottt.config import TrainConfig

RECIPE = Path(__file__).parents[1] / "examples" / "recipes" / "nmnist_small.yaml"
ROWS = {
    "OTTT-A": {"rule": "ottt"},
    "OTTT-O": {"rule": "ottt", "update": "online"},
    "OTTT-K, K = 2": {"rule": "ottt", "backward_steps": 2},
    "SLTT": {"rule": "sltt"},
    "SLTT-K, K = 2": {"rule": "sltt", "backward_steps": 2},
    "NDOT-A": {"rule": "ndot"},
    "NDOT-O": {"rule": "ndot", "update": "online"},
    "NDOT-A, code": {"rule": "ndot", "rule_variant": "code"},
    "BPTT": {"rule": "bptt"},
}


def rules(args: argparse.Namespace) -> list[dict]:
    """Test accuracy over seeds, seconds per epoch, and bytes per neuron of each learning rule.

    Runs that are finished are not run again, and one that was stopped goes on: the folder --runs
    keeps them. Several processes may share the rows between them (--rows).
    """
    table = []
    for name in args.rows or ROWS:
        results = [_run(name, seed, args) for seed in args.seeds]
        accuracy = [100 * result["test_accuracy"] for result in results]
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        table.append(
            {
                "rule": name,
                "accuracy": f"{statistics.mean(accuracy):.1f} ± {spread:.1f}",
                "seeds": len(accuracy),
                "s/epoch": f"{statistics.median(r['seconds'] / r['epochs'] for r in results):.1f}",
                "bytes/neuron": f"{_bytes_per_neuron(ROWS[name]):.1f}",
            }
        )
    return table


def _run(name: str, seed: int, args: argparse.Namespace) -> dict:
    slug = "".join(c if c.isalnum() else "_" for c in name.lower())
    out = Path(args.runs) / f"{slug}-{seed}"
    overrides = {**ROWS[name], "seed": seed, "out": str(out), "epochs": args.epochs}
    if args.data:
        overrides["data"] = args.data
    if (out / "result.json").exists():
        return json.loads((out / "result.json").read_text())
    config = TrainConfig.from_sources(RECIPE, overrides)
    return engine.train(config, resume=(out / "last.pt").exists())


def _bytes_per_neuron(row: dict) -> float:
    """Slope of the peak over the batch size, T = 6, for the recipe's network."""
    model = timm.create_model("ottt_vgg5_ws", in_chans=2)
    kwargs = {k: v for k, v in row.items() if k in ("update", "backward_steps")}
    neurons = count_neurons(model, torch.zeros(1, 2, 34, 34))
    sizes = [8, 16, 24]

    def batch(n: int) -> int:
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        x_seq, target = torch.randn(6, n, 2, 34, 34), torch.zeros(n).long()
        return peak_bytes(
            lambda: learning.train_step(model, optimizer, x_seq, target, rule=row["rule"], **kwargs)
        )

    return slope(sizes, [batch(n) for n in sizes]) / neurons
