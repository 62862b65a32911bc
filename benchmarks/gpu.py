"""Everything that is said of a GPU, in one command: `python -m benchmarks gpu`.

It needs nothing but the checkout. Rows are written as they come, the ones that matter most first,
so that a run that is cut short has still something to say; a side that fails, or whose gradient in
float64 is not its reference's, gets a row that says so, and the rest goes on.
"""

import argparse
import csv
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import gpu_sides, kernel, networks
from benchmarks.gpu_sides import Case, Side
from sj_ottt._ops import lif_cuda, trace
from sj_ottt._ops.lif import lif_step

BPTT, OTTT, FLOOR = "spikingjelly BPTT", "spikingjelly OTTT-A", "bare convolutions"
RATIOS = {"to BPTT": BPTT, "to OTTT": OTTT, "to floor": FLOOR}
COLUMNS = ("what", "network", "batch", "T", "dtype", "run", "value", "unit", *RATIOS, "MiB", "note")
CASES = (
    Case("vgg", 1, torch.float32),
    Case("vgg", 128, torch.float32),
    Case("nf_resnet34", 128, torch.float32),
    Case("vgg", 128, torch.bfloat16),
    Case("nf_resnet34", 128, torch.bfloat16),
    Case("vgg", 1, torch.bfloat16),
    Case("vgg", 16, torch.float32),
    Case("vgg", 16, torch.bfloat16),
)
TIMES = (2, 4, 8, 16, 32)


class Report:
    """Rows of a CSV file, each written and printed at once.

    Args:
        path: The file.
        seconds: When no new part is begun any more.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._begun, self._seconds = path, time.perf_counter(), seconds
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS, restval="", lineterminator="\n")
        self._writer.writeheader()

    def row(self, **values: object) -> None:
        """Write a row; what is left out is empty."""
        self._writer.writerow(values)
        self._file.flush()
        shown = "  ".join(str(values[name]) for name in COLUMNS if values.get(name, "") != "")
        print(f"{time.perf_counter() - self._begun:6.1f} s  {shown}", flush=True)

    def has_time(self, what: str) -> bool:
        """Whether there is time for another part; where there is not, a row says so."""
        left = time.perf_counter() - self._begun < self._seconds
        if not left:
            self.row(what=what, note=f"left out: {self._seconds:g} s are over (--seconds)")
        return left

    @contextmanager
    def attempt(self, **where: object) -> Iterator[None]:
        """Write what goes wrong inside into a row, and go on."""
        try:
            yield
        except (Exception, SystemExit) as error:
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.row(**where, note=f"failed: {type(error).__name__}: {words}"[:300])
        torch.cuda.empty_cache()


def gpu(args: argparse.Namespace) -> None:
    """Kernel bandwidth, seconds and memory of training, each side by side, on one GPU."""
    name = _card()
    torch.backends.cudnn.benchmark = True
    card = re.sub(r"\W+", "-", name.removeprefix("NVIDIA ")).lower()
    stem = f"gpu-quick-{card}" if args.quick else f"gpu-{card}"
    report = Report(Path(args.results) / f"{stem}-{torch.__version__}.csv", args.seconds)
    report.row(
        what="card",
        run=f"torch {torch.__version__}",
        note=f"{name}; cudnn.benchmark for all sides; convolutions of float32 take TF32",
    )
    _bandwidth(report, args)
    with report.attempt(what="host"):
        _host_time(report)
    measure = partial(_measure_case, report, quick=args.quick)
    for case in CASES[:3]:
        measure(case)
    if not args.quick:
        for case in CASES[3:5]:
            measure(case)
        _memory(report)
        _short_trainings(report)
        for case in CASES[5:]:
            measure(case)
    print(f"written: {report.path}")


def _bandwidth(report: Report, args: argparse.Namespace) -> None:
    with report.attempt(what="kernel"):
        for row in kernel.kernel(args):
            values = {"run": row["run"], "dtype": row["dtype"], "value": row["GB/s"]}
            report.row(what="kernel", **values, unit="GB/s", **{"to floor": row["ratio"]})


def _host_time(report: Report, calls: int = 300) -> None:
    """Write what a call of the neuron takes the host: the device has next to nothing to do."""
    x = torch.randn(64, device=kernel.DEVICE, requires_grad=True)
    for name, step in (("kernel", lif_cuda.fused_lif_step), ("operations", lif_step)):
        for what in ("forward", "forward and backward"):
            with torch.set_grad_enabled(what != "forward"):
                for _ in (False, True):
                    state = {"v": torch.zeros_like(x), "trace": trace.zeros(x, "packed")}
                    _wait()
                    start = time.perf_counter()
                    for _call in range(calls):
                        spike = step(x, state, kernel.SOFT, 0.5)
                        state["v"] = state["v"].detach()
                        if what != "forward":
                            torch.autograd.grad(spike, x, spike.detach())
                    spent = time.perf_counter() - start
            value = f"{1e6 * spent / calls:.1f}"
            report.row(what="host", run=f"neuron, {name}, {what}", value=value, unit="us")


def _measure_case(report: Report, case: Case, quick: bool) -> None:
    """Time all sides of a case in turn, and look at what one of ours spends its time on."""
    if not report.has_time(f"step, {case}"):
        return
    where = case.columns()
    sides = gpu_sides.sides_of(case.network, quick)
    runs: dict[str, Callable[[], object]] = {}
    memory: dict[str, float] = {}
    for name, side in sides.items():
        with report.attempt(what="step", **where, run=name):
            side.check(kernel.DEVICE)
            run = side.ready(case, kernel.DEVICE)
            run()
            memory[name] = _peak(run) if not side.graph else float("nan")
            runs[name] = run
    x = torch.randn(case.batch, 3, case.size, case.size, device=kernel.DEVICE)
    for name, together in ((FLOOR, False), (f"{FLOOR}, all steps as one batch", True)):
        with report.attempt(what="step", **where, run=name):
            runs[name] = _floor(case, x, together)
    with report.attempt(what="step", **where):
        _times(report, runs, memory, 0.6, where)
    for name in [name for name in runs if name.startswith("sj_ottt")][: 4 if quick else 2]:
        with report.attempt(what="profile", **where, run=name):
            _profile(report, name, runs[name], where)


def _floor(case: Case, x: torch.Tensor, together: bool) -> Callable[[], None]:
    model = gpu_sides.ours(case.network).to(kernel.DEVICE)
    x = torch.cat([x] * case.steps) if together else x
    run = networks.bare_products(model, x, 1 if together else case.steps)

    def under_autocast() -> None:
        with case.autocast(kernel.DEVICE):
            run()

    return under_autocast


def _peak(run: Callable[[], object]) -> float:
    """Return how much memory a run needs on top of what is there before, in MiB."""
    _wait()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    _wait()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _times(
    report: Report,
    runs: Mapping[str, Callable[[], object]],
    memory: Mapping[str, float],
    seconds: float,
    where: dict[str, object],
) -> None:
    """Time runs in turn, for so many seconds each on average, and write the median of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    for round_ in range(60):
        for name, run in runs.items():
            _wait()
            start = time.perf_counter()
            run()
            _wait()
            if round_ > 0:
                times[name].append(time.perf_counter() - start)
        if round_ > 3 and time.perf_counter() > end:
            break
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        ratios = {
            column: f"{median / medians[base]:.3f}"
            for column, base in RATIOS.items()
            if base in medians
        }
        mib = memory.get(name, float("nan"))
        report.row(
            what="step",
            **where,
            run=name,
            value=f"{1e3 * median:.3f}",
            unit="ms",
            **ratios,
            MiB="" if mib != mib else f"{mib:.0f}",
        )


def _profile(
    report: Report, name: str, run: Callable[[], object], where: dict[str, object]
) -> None:
    """Write which kernels a run spends its time in, and how often kernels are launched."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        _wait()
    averages = found.key_averages()
    launches = sum(e.count for e in averages if "LaunchKernel" in e.key or "GraphLaunch" in e.key)
    waits = sum(e.count for e in averages if "Synchronize" in e.key) - 1  # our own
    busy = sum(e.self_device_time_total for e in averages) / 1e3
    note = f"GPU busy {busy:.2f} ms, waits for it {waits}"
    report.row(what="profile", **where, run=name, value=launches, unit="launches", note=note)
    with report.path.with_suffix(".txt").open("a", encoding="utf-8") as file:
        print(name, where, file=file)
        for order in ("self_device_time_total", "self_cpu_time_total"):
            table = averages.table(sort_by=order, row_limit=25, max_name_column_width=90)
            print(table, file=file)


def _memory(report: Report) -> None:
    """Write the peak memory of the VGG against T, and bytes for each neuron and sample."""
    neurons = networks.count_neurons(gpu_sides.ours("vgg"), torch.zeros(1, 3, 32, 32))
    for name, side in gpu_sides.sides_of("vgg", False).items():
        if side.graph or not report.has_time("memory"):
            continue
        with report.attempt(what="memory", network="vgg", run=name):
            two_batches = [
                _peak_of(side, Case("vgg", batch, torch.float32)) for batch in (128, 256)
            ]
            each = 2**20 * (two_batches[1] - two_batches[0]) / 128 / neurons
            where = {"what": "memory", "network": "vgg", "run": name, "dtype": "float32"}
            report.row(**where, T=6, value=f"{each:.1f}", unit="bytes/neuron")
            for steps in TIMES:
                mib = _peak_of(side, Case("vgg", 32, torch.float32, steps))
                report.row(**where, batch=32, T=steps, MiB=f"{mib:.0f}")


def _peak_of(side: Side, case: Case) -> float:
    run = side.ready(case, kernel.DEVICE)
    for _ in range(3):  # "auto" has measured then
        run()
    return _peak(run)


def _short_trainings(report: Report) -> None:
    """Write what a short training reaches: with kernels and without, eager and as a graph."""
    for name, options in (
        ("float32", {}),
        ("float32, PyTorch's operations", {"backend": "torch"}),
        ("float32, graph", {"cuda_graph": True}),
        ("bfloat16, graph", {"cuda_graph": True, "dtype": torch.bfloat16}),
        ("bfloat16, channels last", {"channels_last": True, "dtype": torch.bfloat16}),
    ):
        if not report.has_time("training"):
            return
        with report.attempt(what="training", run=name):
            start = time.perf_counter()
            accuracy = gpu_sides.short_training(kernel.DEVICE, **options)
            note = f"test accuracy, handwritten digits, {time.perf_counter() - start:.1f} s"
            report.row(what="training", run=name, value=f"{accuracy:.4f}", note=note)


def _card() -> str:
    """Return the name of the GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks: PyTorch sees no CUDA GPU")
    return torch.cuda.get_device_name()


def _wait() -> None:
    torch.cuda.synchronize()
