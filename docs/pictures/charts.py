"""Charts of what is computed here or was measured: each reads the files that hold the figures."""

from collections.abc import Iterable, Sequence

import torch
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from docs.generated import RESULTS, TRANSFER, gpu_results, read_results
from docs.pictures.style import COLOURS, MARKERS, SERIES, chart, chart_svg, ink, legend


def trace() -> str:
    """A neuron's input, membrane, spikes and trace, as this package computes them."""
    from sj_ottt.neuron import OTTTLIFNode

    n_steps = 24
    generator = torch.Generator().manual_seed(5)
    x_seq = 1.1 * torch.rand(n_steps, 1, generator=generator)
    x_seq[9:15] *= 0.25
    node, membranes, spikes, traces = OTTTLIFNode(), [], [], []
    for x in x_seq:
        spike, left = node(x)
        membranes.append(node.v.item())
        spikes.append(spike.item())
        traces.append(left.item())

    figure, (axes,) = chart(3.3)
    times = range(1, n_steps + 1)
    blue, red, green = ink(("blue", "red", "green"))
    axes.bar(times, x_seq[:, 0].tolist(), width=0.5, color=COLOURS["line"][0], label="input I")
    axes.plot(times, membranes, color=blue, linewidth=1.6, label="membrane v, after the reset")
    axes.plot(times, traces, color=green, linewidth=2, marker="o", markersize=3.5, label="trace â")
    fired = [t for t, spike in zip(times, spikes, strict=True) if spike]
    axes.plot(fired, [2.15] * len(fired), "|", color=red, markersize=12, markeredgewidth=2.2,
              label="spikes s")  # fmt: skip
    axes.set(xlabel="time step", ylim=(0, 2.9), yticks=(0, 1, 2))
    legend(axes, ncols=2, loc="upper left")
    return chart_svg(figure)


def surrogate() -> str:
    """The sigmoid-like surrogate of the paper."""
    figure, (axes,) = chart(2.5)
    x = torch.linspace(-1.5, 1.5, 121)
    slope = 4 * torch.sigmoid(4 * x) * (1 - torch.sigmoid(4 * x))
    axes.plot(x, (x >= 0).float(), color=ink(("soft",))[0], label="spike: 1 from the threshold on")
    axes.plot(
        x,
        slope,
        color=ink(("red",))[0],
        linewidth=2,
        label="σ′, which takes the place of its slope",
    )
    axes.set(xlabel="u − V_th", ylim=(-0.05, 1.55), yticks=(0, 1))
    legend(axes, loc="upper left")
    return chart_svg(figure)


_SIDES = (
    "sj_ottt OTTT-A",
    "sj_ottt OTTT-O",
    "spikingjelly OTTT-A",
    "spikingjelly BPTT",
    "authors' arithmetic",
    "bare convolutions",
    "sj_ottt OTTT-A, chunk T",
    "spikingjelly BPTT, memopt",
)
"""What is drawn of the sides that are measured on a CPU."""


def _chosen(runs: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Return what is there of the wanted sides, or all where none of them is."""
    runs = list(runs)
    return [run for run in wanted if run in runs] or runs


def memory() -> str:
    """Peak memory against the number of time steps."""
    found = {row["run"]: row for row in read_results("memory-cpu*.csv")}
    rows = [found[run] for run in _chosen(found, _SIDES)]
    times = [name for name in rows[0] if name.startswith("T=")]
    figure, (axes,) = chart(3.3)
    for row, name, marker in zip(rows, SERIES, MARKERS, strict=False):
        axes.plot(
            [int(t[2:]) for t in times], [float(row[t]) for t in times], marker=marker,
            markersize=5, color=COLOURS[name][0], label=row["run"],
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks([int(t[2:]) for t in times], [t[2:] for t in times])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="time steps T", ylabel="peak memory, MiB", ylim=(0, None))
    legend(axes, loc="upper left")
    return chart_svg(figure)


def speed() -> str:
    """Time of a sample against the batch size."""
    rows = [row for row in read_results("step-cpu*.csv") if row["network"] == "vgg"]
    runs = _chosen(dict.fromkeys(row["run"] for row in rows), _SIDES)
    batches = sorted({int(row["batch"]) for row in rows})
    figure, (axes,) = chart(3.3)
    for i, (run, name) in enumerate(zip(runs, SERIES, strict=False)):
        times = [
            1000 * float(row["seconds"]) / int(row["batch"]) for row in rows if row["run"] == run
        ]
        width = 0.8 / len(runs)
        places = [j + (i - (len(runs) - 1) / 2) * width for j in range(len(batches))]
        axes.bar(places, times, width=0.85 * width, color=COLOURS[name][0], label=run)
    axes.set_xticks(range(len(batches)), [f"batch {n}" for n in batches])
    axes.set(ylabel="ms per sample")
    legend(axes, loc="upper right")
    return chart_svg(figure)


def rules() -> str:
    """Accuracy of the rules on three data sets, mean and deviation over the seeds."""
    sets = ("fashion_small", "cifar10_small", "nmnist_small")
    titles = ("Fashion-MNIST", "CIFAR-10", "N-MNIST")
    tables = [
        {row["rule"]: row["accuracy"] for row in read_results(f"rules-{name}-*.csv")}
        for name in sets
    ]
    names = [rule for rule in tables[0] if all(rule in table for table in tables)]
    figure, panels = chart(3.0, 3, sharey=True)
    for axes, table, title, name in zip(panels, tables, titles, SERIES, strict=False):
        means, spreads = zip(*(map(float, table[rule].split(" ± ")) for rule in names), strict=True)
        places = range(len(names))
        axes.errorbar(means, places, xerr=spreads, fmt="o", color=COLOURS[name][0], markersize=4.5,
                      capsize=2)  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_yticks(places, names)
    panels[0].invert_yaxis()
    panels[1].set_xlabel("test accuracy, %")
    return chart_svg(figure)


def learning_curves() -> str:
    """Training accuracy of the rules, epoch by epoch."""
    rows = read_results("curves-*.csv")
    figure, (axes,) = chart(3.3)
    for run, name, marker in zip(dict.fromkeys(r["rule"] for r in rows), SERIES, MARKERS,
                                 strict=False):  # fmt: skip
        mine = [row for row in rows if row["rule"] == run]
        epochs = [int(row["epoch"]) for row in mine]
        axes.plot(epochs, [float(row["accuracy"]) for row in mine], color=COLOURS[name][0],
                  marker=marker, markersize=4.5, label=run)  # fmt: skip
    axes.set(xlabel="epoch", ylabel="accuracy while training, %")
    legend(axes, loc="lower right")
    return chart_svg(figure)


def pretraining() -> str:
    """Test accuracy of the pretrainings against the samples they have seen, stage after stage."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for path in sorted(RESULTS.glob("pretrain-*.csv")):
        _, model, *rest = path.stem.split("-")
        device = next(part for part in rest if part[:3] in ("cpu", "h10", "h20"))
        points = series.setdefault((model, device.removesuffix("1").upper()), [])
        before = points[-1][0] if points else 0.0
        points += [
            (before + float(row["samples"]) / 1e6, 100 * float(row["test_accuracy"]))
            for row in read_results(path.name)
        ]
    figure, (axes,) = chart(3.3)
    for ((model, device), points), name, marker in zip(
        series.items(), SERIES, MARKERS, strict=False
    ):
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=COLOURS[name][0], marker=marker, markersize=3.5,
                  label=f"{model}, {device}")  # fmt: skip
    axes.set(xlabel="million samples", ylabel="test accuracy, %", ylim=(0, None))
    legend(axes, loc="lower right")
    return chart_svg(figure)


# Line and marker of each start; the zoo's has that of its model.
_STARTS = {"scratch": ("--", "x"), "scratch calibrate=true": (":", "v"), "zoo": ("-", None)}


def transfer() -> str:
    """Accuracy against the recordings of each class, from the zoo's weights and from scratch."""
    rows = read_results(TRANSFER)
    sets = sorted({row["data"] for row in rows})
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = chart(3.4, max(1, len(sets)))
    for axes, data in zip(panels, sets, strict=False):
        for i, (model, name, marker) in enumerate(zip(models, SERIES, MARKERS, strict=False)):
            beside = 1.04 ** (
                i - (len(models) - 1) / 2
            )  # or equal accuracies would hide each other
            for start, (line, shape) in _STARTS.items():
                mine = [
                    row
                    for row in rows
                    if (row["data"], row["model"], row["start"]) == (data, model, start)
                ]
                axes.errorbar(
                    [beside * int(row["recordings a class"]) for row in mine],
                    [float(row["accuracy"]) for row in mine],
                    [float(row["sd"]) for row in mine],
                    color=COLOURS[name][0], linestyle=line, marker=shape or marker, markersize=4.5,
                    capsize=2,
                )  # fmt: skip
        few = sorted({int(row["recordings a class"]) for row in rows if row["data"] == data})
        axes.set_xscale("log")
        axes.set_xlim(0.75 * few[0], few[-1] / 0.75)
        axes.set_xticks(few, [str(n) for n in few])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(title=data, xlabel="recordings a class")
    panels[0].set_ylabel("test accuracy, %")
    colours = [COLOURS[name][0] for name in SERIES]
    lines = [
        *(Line2D([], [], color=c, label=model) for c, model in zip(colours, models, strict=False)),
        *(
            Line2D([], [], color=COLOURS["ink"][0], linestyle=line, marker=shape or MARKERS[0],
                   markersize=4.5, label=start.replace(" calibrate=true", ", calibrated"))
            for start, (line, shape) in _STARTS.items()
        ),
    ]  # fmt: skip
    if rows:
        figure.legend(
            handles=lines, loc="outside lower center", ncols=2,
            frameon=False, fontsize=9, labelcolor=COLOURS["ink"][0],
        )  # fmt: skip
    return chart_svg(figure)


_GPU_SIDES = (
    "sj_ottt, chunk T, graph",
    "sj_ottt, chunk 1",
    "spikingjelly OTTT-A",
    "spikingjelly BPTT",
    "spikingjelly BPTT, memopt",
    "bare convolutions",
)
"""What is drawn of the many sides that `benchmarks.gpu` measures."""


def gpu_speed() -> str:
    """Time of a sample against the batch size on the last card that was measured."""
    rows = [row for path in gpu_results()[-1:] for row in read_results(path.name)]
    steps = [
        row
        for row in rows
        if (row["what"], row["network"], row["unit"]) == ("step", "vgg", "ms")
        and row["value"]
        and (not row["dtype"] or "float32" in row["dtype"])
    ]
    figure, (axes,) = chart(3.6)
    runs = list(dict.fromkeys(row["run"] for row in steps))
    for run, name, marker in zip(_chosen(runs, _GPU_SIDES), SERIES, MARKERS, strict=False):
        mine = sorted((int(r["batch"]), float(r["value"])) for r in steps if r["run"] == run)
        axes.plot(
            [n for n, _ in mine], [ms / n for n, ms in mine], color=COLOURS[name][0],
            marker=marker, markersize=4.5, label=run,
        )  # fmt: skip
    axes.set(xlabel="batch size", ylabel="ms per sample", xscale="log", yscale="log")
    if steps:
        batches = sorted({int(row["batch"]) for row in steps})
        axes.set_xticks(batches, [str(n) for n in batches])
        axes.xaxis.set_minor_locator(NullLocator())
        legend(axes)
    return chart_svg(figure)
