"""Side-by-side measurements against SpikingJelly: `python -m benchmarks step memory`.

Times that are compared come from one process, the runs interleaved, because machines are noisy.
Where a side does not compute what its reference computes, no figure is given.
"""

import argparse
import csv
import importlib
import platform
from pathlib import Path

import torch

from benchmarks import networks, sides
from benchmarks.measure import interleaved_medians, peak_bytes, slope

RESULTS = Path(__file__).parent / "results"
TIMES = (2, 4, 8, 16, 32, 64)
WHERE = (
    {"simulating": "loading", "saccades": "loading"}
    | {
        name: name
        for name in (
            *("kernel", "gpu", "rules", "fptt", "loading", "long", "folds", "sessions", "scaling"),
            *("backends", "half", "reading", "small_maps", "soak", "transfer"),
        )
    }
    | {"profiled": "profile"}
)
"""The module of each benchmark that is not here, imported when it is asked for: some need packages
that others do not."""


def step(args: argparse.Namespace) -> list[dict]:
    """Seconds per training batch; ratios to SpikingJelly's OTTT-A and to the faster floor."""
    rows = []
    vgg = {**sides.VGG, **(sides.COMPILED_VGG if args.compile else {})}
    cases = [("vgg", vgg, networks.our_vgg, n, 32, args.steps) for n in args.batch]
    if args.nf_resnet:
        cases.append(("nf_resnet34", sides.NF_RESNET34, networks.our_nf_resnet, 8, 64, 4))
    for network, entries, build, n, size, steps in cases:
        for name, side in entries.items():
            side.check(name, 8 if network == "vgg" else 32, args.device)
        runs = {name: side.ready(n, size, steps, args.device) for name, side in entries.items()}
        x = torch.randn(n, 3, size, size, device=args.device)
        model = build().to(args.device)
        runs["bare convolutions"] = networks.bare_products(model, x, steps)
        together = x.repeat(steps, 1, 1, 1)
        runs["bare convolutions, all steps together"] = networks.bare_products(model, together, 1)
        seconds = interleaved_medians(runs, args.repeats)
        reference = seconds["spikingjelly OTTT-A"]
        floor = min(s for name, s in seconds.items() if name.startswith("bare"))
        for name, s in seconds.items():
            rows.append(
                {
                    "network": network,
                    "batch": n,
                    "T": steps,
                    "run": name,
                    "seconds": f"{s:.4f}",
                    "ratio": f"{s / reference:.2f}",
                    "to the floor": f"{s / floor:.2f}",
                }
            )
    return rows


def memory(args: argparse.Namespace) -> list[dict]:
    """Peak memory above the parameters: bytes per neuron and sample, and MiB against T."""
    neurons = networks.count_neurons(networks.our_vgg(), torch.zeros(1, 3, 32, 32))
    sizes = [32, 64, 96]  # beyond the point where the weights themselves set the peak
    rows, each = [], {}
    for name, side in sides.VGG.items():
        side.check(name, 8, "cpu")
        peaks = [peak_bytes(side.ready(n, 32, args.steps, "cpu")) for n in sizes]
        over_time = {t: peak_bytes(side.ready(2, 32, t, "cpu")) / 2**20 for t in TIMES}
        each[name] = slope(sizes, peaks) / neurons
        row = {"run": name, "bytes/neuron": f"{each[name]:.1f}", "a step of a chunk": ""}
        if name.endswith("chunk T"):
            more = each[name] - each[name.removesuffix(", chunk T")]
            row["a step of a chunk"] = f"{more / (args.steps - 1):.1f}"
        rows.append(row | {f"T={t}": f"{mib:.1f}" for t, mib in over_time.items()})
    return rows


def plot_memory(rows: list[dict], path: Path) -> None:
    """Draw peak memory against T, as the paper's Figure 2."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for row, marker in zip(rows, "os+xD^vd", strict=True):
        axes.plot(TIMES, [float(row[f"T={t}"]) for t in TIMES], marker=marker, label=row["run"])
    axes.set(xlabel="time steps T", ylabel="peak above the parameters, MiB")
    axes.set_xscale("log", base=2)
    axes.set_xticks(TIMES, TIMES)
    axes.set_ylim(bottom=0)
    axes.set_title("one training batch of the paper's VGG, batch 2", fontsize="medium")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


def print_table(rows: list[dict]) -> None:
    """Print rows of one shape as an aligned table."""
    widths = {k: max(len(str(k)), *(len(str(row[k])) for row in rows)) for k in rows[0]}
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print("  ".join(str(row[k]).ljust(widths[k]) for k in widths).rstrip())


def _check_choices(parser: argparse.ArgumentParser, args: argparse.Namespace, name: str) -> None:
    """Refuse an unknown part of a benchmark, whose names its module has."""
    known = {
        "reading": ("recordings", "FORMATS", "formats"),
        "rules": ("rules", "ROWS", "rows"),
        "transfer": ("transfer", "FEW", "sets"),
    }
    if name in known:
        module, table, option = known[name]
        choices = getattr(importlib.import_module(f"benchmarks.{module}"), table)
        for given in getattr(args, option) or ():
            if given not in choices:
                parser.error(f"--{option}: {given} is none of {', '.join(choices)}")


def main() -> None:
    """Run the benchmarks that were asked for."""
    names = ("step", "memory", *WHERE)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="+", choices=names, metavar=f"{{{','.join(names)}}}")
    parser.add_argument(
        "--device", default="cpu", help="step, saccades, loading (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=6, help="T (default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, nargs="+", help="of the VGG (default: 1 16 on a CPU, 128 on a GPU)"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--nf-resnet", action="store_true", help="step: NF-ResNet-34 as well")
    parser.add_argument("--compile", action="store_true", help="step: torch.compile as well")
    parser.add_argument("--recipe", help="rules, folds: a file of examples/recipes")
    parser.add_argument("--data", help="rules, folds: the data set; transfer: the folder of both")
    parser.add_argument("--epochs", type=int, help="rules, folds (default: the recipe's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="rules, sessions")
    parser.add_argument("--rows", nargs="+", help="rules: some of them")
    parser.add_argument("--runs", help="rules, folds, sessions (default: runs/ and the name)")
    parser.add_argument("--folds", type=int, default=10, help="folds (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=2000, help="loading (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 1, 2], help="loading (default: 0 1 2)"
    )
    parser.add_argument(
        "--events", type=int, help="long (default: 300 million), reading (default: 10 million)"
    )
    parser.add_argument("--scratch", help="long: folder for a file of 8 bytes an event")
    parser.add_argument("--formats", nargs="+", help="reading: some")
    parser.add_argument("--rivals", help="reading: a Python that has the decoders by others")
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="MODEL[=WEIGHTS]", help="transfer: networks"
    )
    parser.add_argument("--sets", nargs="+", help="transfer: some of them")
    parser.add_argument("--few", type=int, nargs="+", help="transfer: recordings a class")
    parser.add_argument("--starts", nargs="+", help="transfer: scratch, or some of the WEIGHTS")
    parser.add_argument("--quick", action="store_true", help="gpu: a first look, in a minute")
    parser.add_argument(
        "--seconds", type=float, default=500, help="gpu: end then (default: %(default)s)"
    )
    parser.add_argument("--results", default=str(RESULTS), help="gpu: folder for its files")
    parser.add_argument(
        "--fine-tuning", nargs="+", default=[], metavar="NAME=VALUE", help="transfer: from WEIGHTS"
    )
    parser.add_argument(
        "--from-scratch", nargs="+", default=[], metavar="NAME=VALUE", help="transfer: without them"
    )
    parser.add_argument("--jobs", type=int, default=1, help="transfer: trainings at a time")
    parser.add_argument("--minutes", type=float, default=120, help="soak (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=1_000_000, help="soak: events a second")
    parser.add_argument("--csv", action="store_true", help="write benchmarks/results/ as well")
    args = parser.parse_args()
    if {"rules", "folds"} & set(args.what) and not (args.recipe and args.data):
        parser.error("rules and folds need --recipe and --data")
    if "transfer" in args.what and not (args.models and args.data):
        parser.error("transfer needs --models and --data")
    args.batch = args.batch or ([1, 16] if args.device == "cpu" else [128])
    for name in args.what:
        run = {"step": step, "memory": memory}.get(name) or getattr(
            importlib.import_module(f"benchmarks.{WHERE[name]}"), name
        )
        _check_choices(parser, args, name)
        if name == "gpu":
            run(args)
            continue
        on_gpu = name == "kernel" or (name in ("step", "saccades") and args.device != "cpu")
        device = "gpu" if on_gpu else f"cpu{torch.get_num_threads()}"
        stem = f"{name}-{Path(args.recipe).stem}" if name in ("rules", "folds") else name
        rows = run(argparse.Namespace(**{**vars(args), "runs": args.runs or f"runs/{stem}"}))
        print(f"\n{name}, {platform.machine()}, {device}, torch {torch.__version__}")
        print(run.__doc__.splitlines()[0])
        print_table(rows)
        if args.csv:
            path = RESULTS / f"{stem}-{device}-{torch.__version__}.csv"
            path.parent.mkdir(exist_ok=True)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            if name == "memory":
                plot_memory(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
