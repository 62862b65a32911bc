"""Cross-validation: every recording of a folder is tested on once, by a model that never saw it."""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from sj_ottt.data import EventFolder
from sj_ottt.run import training
from sj_ottt.run.config import TrainConfig


def folds(args: argparse.Namespace) -> list[dict]:
    """Accuracy of each fold of a folder of recordings, and of all recordings together.

    The folder's own train and test parts are merged; the folds have the same share of each class.
    Finished runs are not run again, and one that was stopped goes on: the folder --runs keeps them.
    """
    data = EventFolder(args.data, 1, split=None)
    fold = stratified(data.targets, args.folds, seed=0)
    table, n_correct = [], 0
    for k in range(args.folds):
        result = _run(data, fold == k, k, args)
        n_correct += round(result["test_accuracy"] * result["n_test"])
        table.append(_row(k + 1, result["n_test"], result["test_accuracy"]))
    spread = statistics.stdev(float(row["accuracy"]) for row in table)
    table.append(_row(f"all (sd {spread:.1f})", len(data), n_correct / len(data)))
    return table


def _row(name: object, n: int, accuracy: float) -> dict:
    return {"fold": name, "recordings": n, "accuracy": f"{100 * accuracy:.1f}"}


def stratified(targets: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Return the fold of each sample, int64 [n], with every class spread evenly over the folds.

    Args:
        targets: Class indices [n].
        n_folds: How many folds there are.
        seed: Of the order in which a class's samples are dealt out.
    """
    order = np.lexsort((np.random.default_rng(seed).permutation(len(targets)), targets))
    fold = np.empty(len(targets), np.int64)
    fold[order] = np.arange(len(targets)) % n_folds
    return fold


def _run(data: EventFolder, is_test: np.ndarray, k: int, args: argparse.Namespace) -> dict:
    """Train on all recordings but those that ``is_test`` marks [n], and return the result."""
    out = Path(args.runs) / f"fold-{k}"
    with tempfile.TemporaryDirectory() as folder:
        for file, label, test in zip(data.files, data.targets, is_test, strict=True):
            class_folder = Path(folder) / ("test" if test else "train") / data.classes[label]
            class_folder.mkdir(parents=True, exist_ok=True)
            source = (data.root / file).resolve()
            (class_folder / file.replace("/", "-")).symlink_to(source)
        overrides = {"data": folder, "out": str(out), "seed": k}
        if args.epochs:
            overrides["epochs"] = args.epochs
        config = TrainConfig.from_sources(args.recipe, overrides)
        return training.train(config, resume=(out / "last.pt").exists())
