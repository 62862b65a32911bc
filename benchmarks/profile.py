"""Where the time of a training batch goes: what explains the ratios of `step`."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator

from spikingjelly.activation_based.base import MemoryModule
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import sides

PARTS = {
    "aten::convolution": "convolutions",
    "aten::mkldnn_convolution": "convolutions",
    "aten::convolution_backward": "convolutions",
    "aten::mm": "convolutions",
    "aten::addmm": "convolutions",
    "_TracedProduct": "synapses besides",
    "neurons": "neurons",
    "_FromState": "neurons",
    "_FusedLIF": "neurons",
    "_Scan": "neurons",
    "pooling": "pooling",
    "_AvgPool2d": "pooling",
    "_Standardize": "standardization",
    "Optimizer.step": "optimizer",
}
"""The part that an operation belongs to, by the start of the names of it and what called it."""
COLUMNS = (*dict.fromkeys(PARTS.values()), "rest")
BATCHES = 3


def profiled(args: argparse.Namespace) -> list[dict]:
    """Percent of a training batch by what it was spent on, one thread."""
    rows = []
    cases = [("vgg", sides.VGG, n, 32, args.steps) for n in args.batch]
    if args.nf_resnet:
        cases.append(("nf_resnet34", sides.NF_RESNET34, 8, 64, 4))
    for network, entries, n, size, steps in cases:
        for name, side in entries.items():
            if not name.startswith("sj_ottt OTTT-A"):
                continue
            run = side.ready(n, size, steps, "cpu", prepare=_name_modules)
            run()
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                for _ in range(BATCHES):
                    run()
            time: Counter[str] = Counter()
            for event in seen.events():
                time[_part(event)] += event.self_cpu_time_total
            row = {"network": network, "batch": n, "T": steps, "run": name}
            row |= {"seconds": f"{time.total() / 1e6 / BATCHES:.3f}"}
            rows.append(row | {p: f"{time[p] / time.total():.0%}" for p in COLUMNS})
    return rows


def _part(event: FunctionEvent) -> str:
    """Return the part of the innermost caller that one is known of."""
    for name in _names(event):
        for start, part in PARTS.items():
            if name.startswith(start):
                return part
    return "rest"


def _names(event: FunctionEvent | None) -> Iterator[str]:
    while event is not None:
        yield event.name.removeprefix("autograd::engine::evaluate_function: ")
        event = event.cpu_parent


def _name_modules(model: nn.Module) -> None:
    """Give what neurons and poolings do outside of named functions their names."""
    for module in model.modules():
        named = "neurons" if isinstance(module, MemoryModule) else "pooling"
        if named == "neurons" or "Pool" in type(module).__name__:
            module.forward = _recorded(module.forward, named)


def _recorded(forward: Callable, name: str) -> Callable:
    def run(*args: object, **keywords: object) -> object:
        with record_function(name):
            return forward(*args, **keywords)

    return run
