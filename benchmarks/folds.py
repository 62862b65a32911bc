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

    Train and test parts are thrown together; the folds have the same share of each class. Runs that
    are finished are not run again, and one that was stopped goes on: the folder --runs keeps them.
    """
    data = EventFolder(args.data, 1, split=None)
    fold = stratified(data.targets, args.folds, seed=0)
    table, right = [], 0
    for k in range(args.folds):
        result = _run(data, fold == k, k, args)
        right += round(result["test_accuracy"] * result["n_test"])
        table.append(_row(k + 1, result["n_test"], result["test_accuracy"]))
    spread = statistics.stdev(float(row["accuracy"]) for row in table)
    table.append(_row(f"all (sd {spread:.1f})", len(data), right / len(data)))
    return table


def _row(name: object, n: int, accuracy: float) -> dict:
    return {"fold": name, "recordings": n, "accuracy": f"{100 * accuracy:.1f}"}


def stratified(targets: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Return the fold of each sample [n], each class dealt out evenly."""
    order = np.lexsort((np.random.default_rng(seed).permutation(len(targets)), targets))
    fold = np.empty(len(targets), np.int64)
    fold[order] = np.arange(len(targets)) % n_folds
    return fold


def _run(data: EventFolder, tests: np.ndarray, k: int, args: argparse.Namespace) -> dict:
    out = Path(args.runs) / f"fold-{k}"
    with tempfile.TemporaryDirectory() as folder:
        for file, label, test in zip(data.files, data.targets, tests, strict=True):
            class_folder = Path(folder) / ("test" if test else "train") / data.classes[label]
            class_folder.mkdir(parents=True, exist_ok=True)
            source = (data.root / file).resolve()
            (class_folder / f"{file.replace('/', '-')}").symlink_to(source)
        overrides = {"data": folder, "out": str(out), "seed": k}
        if args.epochs:
            overrides["epochs"] = args.epochs
        config = TrainConfig.from_sources(args.recipe, overrides)
        return training.train(config, resume=(out / "last.pt").exists())
