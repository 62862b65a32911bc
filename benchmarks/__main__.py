"""Side-by-side measurements against SpikingJelly: `python -m benchmarks step memory`.

Every figure is a ratio within one process, the runs interleaved, because machines are noisy. A
figure is refused when the two sides do not compute the same gradient.
"""

import argparse
import csv
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from spikingjelly.activation_based.learning import online_learning as sj_learning
from torch import nn

from benchmarks.measure import interleaved_medians, peak_bytes, slope
from sj_ottt import layer, learning, neuron

SIDES = {
    "sj_ottt": (neuron, layer, learning.ottt_online_training),
    "spikingjelly": (sj_neuron, sj_layer, sj_learning.ottt_online_training),
}
VGG = ((64, 128), (256, 256), (512, 512), (512, 512))
TINY = ((8,), (8,))


def make_neuron(neurons):
    """A neuron of one library; ours keeps its trace as the timm models do."""
    extra = {"trace_dtype": "packed"} if neurons is neuron else {}
    return neurons.OTTTLIFNode(**extra)


def vgg(neurons, layers, stages=VGG) -> nn.Module:
    """The paper's VGG for CIFAR size, written with one library's classes."""
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    channels = 3
    for i, widths in enumerate(stages):
        modules += [layers.AvgPool2d(2)] if i > 0 else []
        for width in widths:
            modules += [layers.WSConv2d(channels, width, 3, padding=1), make_neuron(neurons)]
            nn.init.constant_(modules[-2].gain, 2.74)  # stands for the factor behind the neuron
            channels = width
    modules += [layers.AdaptiveAvgPool2d(1), layers.Flatten(), layers.Linear(channels, 10)]
    return layers.OTTTSequential(*modules)


def bptt(model: nn.Module) -> nn.Sequential:
    """The same chain for BPTT: SpikingJelly's multi-step LIF nodes, the reset detached."""
    modules = [
        sj_neuron.LIFNode(2.0, False, 1.0, None, surrogate.Sigmoid(), True)
        if isinstance(m, sj_neuron.OTTTLIFNode)
        else m
        for m in model
    ]
    net = nn.Sequential(*modules)
    sj_functional.set_step_mode(net, "m")
    return net


def trainer(side: str, n: int, steps: int, online: bool = False) -> Callable[[], None]:
    """One training batch of a side, ready to be called again and again."""
    neurons, layers, train = SIDES[side]
    model = vgg(neurons, layers)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    x = torch.randn(n, 3, 32, 32).unsqueeze(1).repeat(1, steps, 1, 1, 1)
    target = torch.randint(0, 10, (n, steps))

    def run() -> None:
        train(model, optimizer, x, target, lambda y, c: F.cross_entropy(y, c) / steps, online)
        learning.reset_state(model)

    return run


def bptt_trainer(n: int, steps: int) -> Callable[[], None]:
    """One BPTT batch on the same network, SpikingJelly's layers."""
    model = bptt(vgg(sj_neuron, sj_layer))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    x = torch.randn(n, 3, 32, 32).unsqueeze(0).repeat(steps, 1, 1, 1, 1)
    target = torch.randint(0, 10, (n,)).repeat(steps)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), target).backward()
        optimizer.step()
        learning.reset_state(model)

    return run


def check_equal() -> None:
    """Refuse to measure two sides that do not compute the same thing."""
    grads = {}
    for side, (neurons, layers, train) in SIDES.items():
        model = vgg(neurons, layers, TINY).double()
        torch.manual_seed(1)
        x = 8 * torch.randn(2, 4, 3, 8, 8).double()
        target = torch.randint(0, 10, (2, 4))
        train(model, torch.optim.SGD(model.parameters(), 0.0), x, target, F.cross_entropy, False)
        grads[side] = [p.grad for p in model.parameters()]
    for a, b in zip(*grads.values(), strict=True):
        if not b.norm() > 0 or (a - b).norm() > 1e-9 * b.norm():
            raise SystemExit(
                "benchmarks: the gradients of the two sides differ; no figure is given"
            )


def step(args: argparse.Namespace) -> list[dict]:
    """Seconds a batch: ours (OTTT_A, OTTT_O) against SpikingJelly's OTTT_A and BPTT."""
    rows = []
    for n in args.batch:
        runs = {
            "sj_ottt OTTT-A": trainer("sj_ottt", n, args.steps),
            "sj_ottt OTTT-O": trainer("sj_ottt", n, args.steps, online=True),
            "spikingjelly OTTT-A": trainer("spikingjelly", n, args.steps),
            "spikingjelly BPTT": bptt_trainer(n, args.steps),
        }
        seconds = interleaved_medians(runs, args.repeats)
        reference = seconds["spikingjelly OTTT-A"]
        rows += [
            {"batch": n, "run": name, "seconds": round(s, 4), "ratio": round(s / reference, 3)}
            for name, s in seconds.items()
        ]
    return rows


def memory(args: argparse.Namespace) -> list[dict]:
    """Peak bytes per neuron and sample above the parameters, and the peak against T."""
    neurons = sum(
        m.v[0].numel() for m in _warm(vgg(neuron, layer)) if isinstance(m, neuron.OTTTLIFNode)
    )
    sizes = [16, 32, 48]  # beyond the point where the weights themselves set the peak
    makers = {
        "sj_ottt OTTT-A": lambda n, t: trainer("sj_ottt", n, t),
        "spikingjelly OTTT-A": lambda n, t: trainer("spikingjelly", n, t),
        "spikingjelly BPTT": bptt_trainer,
    }
    rows = []
    for name, make in makers.items():
        peaks = [peak_bytes(make(n, args.steps)) for n in sizes]
        over_t = [peak_bytes(make(2, t)) / 2**20 for t in (2, 8)]
        rows.append(
            {
                "run": name,
                "bytes/neuron": round(slope(sizes, peaks) / neurons, 1),
                "MiB at T=2": round(over_t[0], 1),
                "MiB at T=8": round(over_t[1], 1),
            }
        )
    return rows


def _warm(model: nn.Module) -> nn.Module:
    model(torch.zeros(1, 3, 32, 32))
    return model


def print_table(rows: list[dict]) -> None:
    """Print rows of one shape as an aligned table."""
    widths = {k: max(len(str(k)), *(len(str(row[k])) for row in rows)) for k in rows[0]}
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print("  ".join(str(row[k]).ljust(widths[k]) for k in widths))


def main() -> None:
    """Run the benchmarks that were asked for."""
    what = {"step": step, "memory": memory}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="+", choices=what)
    parser.add_argument("--steps", type=int, default=6, help="T (default: %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--csv", action="store_true", help="write benchmarks/results/*.csv as well")
    args = parser.parse_args()
    check_equal()
    device = f"cpu{torch.get_num_threads()}"
    print(f"{platform.machine()}, {device}, torch {torch.__version__}, T = {args.steps}")
    for name in args.what:
        rows = what[name](args)
        print(f"\n{name}: {what[name].__doc__.splitlines()[0]}")
        print_table(rows)
        if args.csv:
            path = Path(__file__).parent / "results" / f"{name}-{device}-{torch.__version__}.csv"
            path.parent.mkdir(exist_ok=True)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
