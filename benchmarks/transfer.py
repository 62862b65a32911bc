"""Real recordings: a network from the zoo against the same one from scratch, on few of them."""

import argparse
import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path

import matplotlib
import numpy as np
import torch
import yaml

from benchmarks.folds import stratified
from sj_ottt._parallel import ordered_map
from sj_ottt.data import EventFolder
from sj_ottt.errors import InputError
from sj_ottt.run import training
from sj_ottt.run.config import TrainConfig
from sj_ottt.zoo.folders import entry_named

FEW = {"alphabet 0": (1,), "alphabet 1": (1,), "nmnist": (1, 5, 20, 100)}
NMNIST = "nmnist_small"
# At their sensors' 32 or 34 pixels the last stage of an NF-ResNet would see the corners alone.
FRAMES = {"steps": 4, "size": (64, 64), "shift": 4}
OPTIONS = {**FRAMES, "batch_size": 12, "chunk": 4}
FROM_SCRATCH = {"optimizer": "adam", "lr": 2e-3}  # from weights: what is usual there
PARTS = methodcaller("partition", "=")
SHOWN = 1000  # recordings shown in a training, each as often as it takes
LEAST_EPOCHS = 6


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        data: Of `FEW`; "alphabet 0" learns from the first recording of each character.
        few: Recordings of each class.
        model: Architecture.
        start: "scratch", or the weights: a tag of the zoo or a file.
        seed: Of the weights, of the order, and of what is learnt from and tested on.
        options: Of `sj-ottt train`, NAME=VALUE each, in the place of `OPTIONS` and the usual ones.
        digest: Of the weights' file; other weights under the same name make another training.
    """

    data: str
    few: int
    model: str
    start: str
    seed: int
    options: tuple[str, ...] = ()
    digest: str = ""

    @property
    def name(self) -> str:
        """A name for its folder."""
        start = "-".join(filter(None, (Path(self.start).stem, self.digest, *self.options)))
        parts = (self.data.replace(" ", "-"), self.few, self.model, start, f"seed-{self.seed}")
        return "/".join(map(str, parts))


def transfer(args: argparse.Namespace) -> list[dict]:
    """Accuracy on real recordings after learning from few of them, from the zoo and from scratch.

    The alphabet's 36 characters are learnt from one recording each and tested on the others;
    N-MNIST from 1 to 100 of each digit, and tested on a fifth of all, which it is not learnt from.
    A training shows about a thousand recordings, or all of them six times where that is more. A
    finished one is not run again, and one that was stopped goes on: the folder --runs keeps them.
    """
    cells = list(dict.fromkeys(wanted(args)))
    one = partial(run, shared=Path(args.data), runs=Path(args.runs), in_turn=args.jobs < 2)
    found: dict[Cell, float] = {}
    accuracies = ordered_map(one, cells, what="trainings", workers=args.jobs)
    for cell, accuracy in zip(cells, accuracies, strict=True):
        found[cell] = accuracy
        print(f"{cell.name}: {100 * accuracy:.1f}%", flush=True)
    rows = summary(found)
    plot(rows, Path(args.runs) / "transfer.png")
    return rows


def wanted(args: argparse.Namespace) -> Iterator[Cell]:
    """Yield the trainings that the command line asks for.

    --models names architectures, each with =WEIGHTS behind it where it starts from some besides.
    """
    for seed in args.seeds:
        for data in args.sets or FEW:
            for few in FEW[data]:
                for entry in args.models:
                    model, _, weights = entry.partition("=")
                    for start in ("scratch", weights):
                        asked = few in (args.few or FEW[data]) and start in (args.starts or [start])
                        if start and asked:
                            if start == "scratch":
                                yield Cell(data, few, model, start, seed, tuple(args.from_scratch))
                                continue
                            options = tuple(args.fine_tuning), digest(model, start)
                            yield Cell(data, few, model, start, seed, *options)


def digest(model: str, start: str) -> str:
    """Return the first digits of the SHA-256 of weights, a tag of the zoo or a file."""
    if not Path(start).is_file():
        return entry_named(f"{model}.{start}").sha256[:8]
    return hashlib.sha256(Path(start).read_bytes()).hexdigest()[:8]


def run(cell: Cell, shared: Path, runs: Path, in_turn: bool = True) -> float:
    """Return the test accuracy of a training, 0 to 1; run it where that is not done.

    Args:
        cell: The training.
        shared: Folder of both data sets.
        runs: Folder of the trainings.
        in_turn: Whether no other one runs beside it, and all cores are its own.
    """
    if not in_turn:
        torch.set_num_threads(1)
    result = result_of(cell, runs)
    out = result.parent
    parts = split(cell, shared)
    folder = out / "data"
    for part, files in parts.items():
        for label, file in files:
            link = folder / part / label / f"{file.parent.parent.name}-{file.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(file.resolve())
    epochs = max(LEAST_EPOCHS, round(SHOWN / len(parts["train"])))
    start = None if cell.start == "scratch" else cell.start
    given = {name: yaml.safe_load(value) for name, _, value in map(PARTS, cell.options)}
    options = {
        **OPTIONS,
        **(FROM_SCRATCH if start is None else {}),
        "model": cell.model,
        "pretrained": start,
        "data": str(folder),
        "out": str(out),
        "seed": cell.seed,
        "epochs": epochs,
        "val_fraction": 0,
        **given,
    }
    config = TrainConfig(**options)
    if result.exists():
        found = json.loads(result.read_text())
        if TrainConfig(**found["config"]) != config:
            raise InputError(f"{out}: trained with other options; give another folder as --runs")
        return float(found["test_accuracy"])
    found = training.train(config, resume=(out / "last.pt").exists())
    for checkpoint in out.glob("*.pt"):  # of all trainings of the table, they would take 60 GB
        checkpoint.unlink()
    return float(found["test_accuracy"])


def result_of(cell: Cell, runs: Path) -> Path:
    """Return the file that a finished training leaves."""
    return runs / cell.name / "result.json"


def split(cell: Cell, shared: Path) -> dict[str, list[tuple[str, Path]]]:
    """Return (class, file) of the recordings to learn from and of those to test on."""
    if cell.data != "nmnist":
        root, which = shared / "alphabet", int(cell.data[-1])
        files = sorted((file.parent.name, file) for file in root.glob("*/*.npz"))
        learnt = [file.stem.endswith(str(which)) for _, file in files]
        return {
            "train": [file for file, chosen in zip(files, learnt, strict=True) if chosen],
            "test": [file for file, chosen in zip(files, learnt, strict=True) if not chosen],
        }
    data = EventFolder(shared / NMNIST, 1, split=None)
    every = [
        (data.classes[t], data.root / f) for t, f in zip(data.targets, data.files, strict=True)
    ]
    fold = stratified(data.targets, 5, seed=cell.seed)
    order = np.random.default_rng(cell.seed).permutation(len(every))
    chosen: dict[str, list[tuple[str, Path]]] = {name: [] for name in data.classes}
    for i in order[fold[order] > 0]:
        label, file = every[i]
        if len(chosen[label]) < cell.few:
            chosen[label].append((label, file))
    return {
        "train": [file for files in chosen.values() for file in files],
        "test": [file for file, k in zip(every, fold, strict=True) if k == 0],
    }


def summary(found: dict[Cell, float]) -> list[dict]:
    """Return mean and standard deviation over the seeds of each kind of training, in percent."""
    grouped: dict[tuple, list[float]] = {}
    weights = Counter(model for model, _ in {(c.model, c.digest) for c in found if c.digest})
    for cell, accuracy in found.items():
        which = [cell.start] if cell.digest and weights[cell.model] > 1 else []
        start = " ".join(("zoo" if cell.digest else "scratch", *which, *cell.options))
        key = (cell.data.split()[0], cell.few, cell.model, start)
        grouped.setdefault(key, []).append(100 * accuracy)
    return [
        {
            "data": data,
            "recordings a class": few,
            "model": model,
            "start": start,
            "accuracy": f"{statistics.mean(values):.1f}",
            "sd": f"{statistics.stdev(values) if len(values) > 1 else 0:.1f}",
            "trainings": len(values),
        }
        for (data, few, model, start), values in sorted(grouped.items())
    ]


def plot(rows: list[dict], path: Path) -> None:
    """Draw accuracy against the number of recordings, a panel for each data set."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sets = sorted({row["data"] for row in rows})
    models = sorted({row["model"] for row in rows})
    figure, panels = plt.subplots(
        1, len(sets), figsize=(4.2 * len(sets), 3.6), layout="constrained", squeeze=False
    )
    for axes, data in zip(panels[0], sets, strict=True):
        for model in models:
            of = [row for row in rows if (row["data"], row["model"]) == (data, model)]
            for start in sorted({row["start"] for row in of}):
                scratch = start.startswith("scratch")
                line = [row for row in of if row["start"] == start]
                axes.errorbar(
                    [row["recordings a class"] for row in line],
                    [float(row["accuracy"]) for row in line],
                    [float(row["sd"]) for row in line],
                    color=f"C{models.index(model)}",
                    linestyle="--" if scratch else "-",
                    marker="x" if scratch else "o",
                    capsize=3,
                    label=f"{model}, {start}",
                )
        axes.set(title=data, xlabel="recordings a class", ylabel="test accuracy, %")
        axes.set_xscale("log")
        ticks = sorted({row["recordings a class"] for row in rows if row["data"] == data})
        axes.set_xticks(ticks, ticks)
    panels[0, 0].legend(frameon=False, fontsize="x-small")
    figure.savefig(path, dpi=120)
