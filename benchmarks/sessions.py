"""Across sessions: a model of one session on recordings of another, fine-tuned or not."""

import argparse
import statistics
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from sj_ottt.data import write_event_dataset
from sj_ottt.run import evaluation, training
from sj_ottt.run.config import TrainConfig

# Two cameras record the same kinds of objects, with another background rate, threshold mismatch,
# speed, position and size.
SESSIONS = {
    "a": {},
    "b": {
        "noise_hz": 5,
        "leak_hz": 0.2,
        "mismatch": 0.15,
        "rounds": 2,
        "position": (3, -3),
        "zoom": 0.8,
    },
}
FEW = (5, 20)  # recordings of session B of each class
IN_SESSION_A = 1000
BASE = {"model": "ottt_vgg5_ws", "steps": 6, "optimizer": "sgd", "shift": 2, "val_fraction": 0}
FIRST = {**BASE, "epochs": 6, "batch_size": 32, "lr": 0.05}
SECOND = {**BASE, "epochs": 20, "batch_size": 10, "lr": 0.02}


def sessions(args: argparse.Namespace) -> list[dict]:
    """Accuracy on session B of a model of session A, as it is, fine-tuned, and one from scratch.

    1,000 of scikit-learn's digits are recorded in session A, the other 797 in session B (547 of
    them to test on), by simulated cameras that differ in noise, mismatch, speed, position and size.
    Finished runs are not run again: the folder --runs keeps them.
    """
    accuracies: dict[str, list[float]] = {}
    for seed in args.seeds:
        root = Path(args.runs) / f"seed-{seed}"
        data = {name: _record(root / f"session-{name}", name, seed) for name in SESSIONS}
        first = {**FIRST, "data": str(data["a"]), "out": str(root / "a"), "seed": seed}
        in_session = _train(first)["test_accuracy"]
        accuracies.setdefault("session A's model on session A", []).append(in_session)
        (row,) = evaluation.evaluate(root / "a", str(data["b"]))
        accuracies.setdefault("session A's model, as it is", []).append(row["accuracy"])
        for few in FEW:
            for name, start in (("fine-tuned", str(root / "a")), ("from scratch", None)):
                options = {
                    **SECOND,
                    "data": str(data["b"]),
                    "out": str(root / f"{name.replace(' ', '-')}-{few}"),
                    "seed": seed,
                    "pretrained": start,
                    "train_samples": few * 10,
                }
                row_name = f"{name} on {few} recordings a class"
                accuracies.setdefault(row_name, []).append(_train(options)["test_accuracy"])
    return [_row(name, values) for name, values in accuracies.items()]


def _row(name: str, values: list[float]) -> dict:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    accuracy = f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"
    return {"model": name, "accuracy": accuracy, "seeds": len(values)}


def _record(root: Path, name: str, seed: int) -> Path:
    """Record the digits of session ``name`` where that is not done, and return their folder."""
    if (root / "dataset.json").exists():
        return root
    digits = load_digits()
    images, labels = digits.images / 16, digits.target
    order = np.random.default_rng(seed).permutation(len(images))
    first, second = order[:IN_SESSION_A], order[IN_SESSION_A:]
    chosen = first if name == "a" else second
    n_train = 800 if name == "a" else 250
    parts = {"train": chosen[:n_train], "test": chosen[n_train:]}
    names = [str(digit) for digit in range(10)]
    for part, rows in parts.items():
        camera = {**SESSIONS[name], "seed": seed}
        write_event_dataset(root, images[rows], labels[rows], names, split=part, **camera)
    return root


def _train(options: dict) -> dict:
    out = Path(options["out"])
    return training.train(TrainConfig(**options), resume=(out / "last.pt").exists())
