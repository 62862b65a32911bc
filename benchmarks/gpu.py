"""Everything that is said of a GPU, in one command: `python -m benchmarks gpu`.

It needs nothing but the checkout. Rows are written as they come, the ones that matter most first,
so that a run that is cut short has still something to say; a side that fails, or whose gradient in
float64 is not its reference's, gets a row that says so, and the rest goes on.
"""

import argparse
import csv
import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import BEGUN, gpu_sides, kernel, networks
from benchmarks.gpu_sides import Case, Side
from sj_ottt._ops import lif_fused, lif_gpu, trace
from sj_ottt._ops.lif import lif_step

BPTT, OTTT, FLOOR = "spikingjelly BPTT", "spikingjelly OTTT-A", "bare convolutions"
RATIOS = {"to BPTT": BPTT, "to OTTT": OTTT, "to floor": FLOOR}
COLUMNS = ("what", "network", "batch", "T", "dtype", "run", "value", "unit", *RATIOS, "MiB", "note")
T_GRAPH, ONE = "sj_ottt, chunk T, graph", "sj_ottt, chunk 1"
T_EAGER, LAST_GRAPH = "sj_ottt, chunk T", "sj_ottt, chunk T, graph, channels last"
AUTO_GRAPH, ONE_GRAPH = "sj_ottt, chunk auto, graph", "sj_ottt, chunk 1, graph"
MEMOPT = "spikingjelly BPTT, memopt"
FLOORS = {FLOOR: False, f"{FLOOR}, all steps as one batch": True}
FIRST = (
    (Case("vgg", 1), (T_GRAPH, BPTT, OTTT, AUTO_GRAPH, ONE, MEMOPT)),
    (Case("vgg", 128), (T_GRAPH, BPTT, LAST_GRAPH, OTTT, AUTO_GRAPH, ONE_GRAPH, ONE, MEMOPT)),
    (Case("nf_resnet34", 128), (T_GRAPH, OTTT, LAST_GRAPH, ONE)),
)
SECOND = (
    (Case("vgg", 128, torch.bfloat16), (T_GRAPH, LAST_GRAPH, BPTT)),
    (Case("nf_resnet34", 128, torch.bfloat16), (T_GRAPH, LAST_GRAPH, OTTT)),
    (Case("vgg", 1, torch.bfloat16), (T_GRAPH, BPTT)),
)
LAST = ((Case("vgg", 16), (T_GRAPH, BPTT, AUTO_GRAPH, T_EAGER, ONE, OTTT)),)
MEMORY = (ONE, BPTT, T_EAGER, MEMOPT)
TIMES = (2, 8, 32)


class Report:
    """Rows of a CSV file, each written and printed at once.

    Args:
        path: The file.
        seconds: After so many since the program's start, it ends, whatever is going on.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._seconds = path, seconds
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS, restval="", lineterminator="\n")
        self._writer.writeheader()
        self._timer = threading.Timer(max(0.0, self.left()), self._stop)
        self._timer.daemon = True
        self._timer.start()

    def left(self) -> float:
        """Return how many seconds are left."""
        return self._seconds - (time.perf_counter() - BEGUN)

    def close(self) -> None:
        """End the report."""
        self._timer.cancel()
        self._file.close()
        print(f"written: {self.path}", flush=True)

    def _stop(self) -> None:
        words = f"stopped: {self._seconds:g} s are over (--seconds); written: {self.path}"
        print(words, flush=True)
        os._exit(0)  # all rows are on the disk

    def row(self, **values: object) -> None:
        """Write a row; what is left out is empty."""
        self._writer.writerow(values)
        self._file.flush()
        shown = "  ".join(str(values[name]) for name in COLUMNS if values.get(name, "") != "")
        print(f"{time.perf_counter() - BEGUN:6.1f} s  {shown}", flush=True)

    def has_time(self, what: str, needed: float) -> bool:
        """Whether so many seconds are left for another part; where not, a row says so."""
        enough = self.left() > needed
        if not enough:
            self.row(what=what, note=f"left out: {self._seconds:g} s are nearly over (--seconds)")
        return enough

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
    card = name.removeprefix("NVIDIA ").lower()
    stem = f"gpu{'-quick' if args.quick else ''}-{card}-{torch.__version__}"
    file = re.sub(r"[^A-Za-z0-9._-]+", "-", stem) + ".csv"
    report = Report(Path(args.results) / file, args.seconds)
    report.row(
        what="card",
        run=f"torch {torch.__version__}",
        note=f"{name}; cudnn.benchmark for all sides; convolutions of float32 take TF32",
    )
    _bandwidth(report, args)
    with report.attempt(what="host"):
        _host_time(report)
    for case, names in FIRST[: 1 if args.quick else None]:
        _measure_case(report, case, names)
    if not args.quick:
        _bytes_a_neuron(report)
        for case, names in SECOND:
            _measure_case(report, case, names)
        _memory_against_time(report)
        _short_trainings(report)
        for case, names in LAST:
            _measure_case(report, case, names)
    report.close()


def _bandwidth(report: Report, args: argparse.Namespace) -> None:
    with report.attempt(what="kernel"):
        for row in kernel.kernel(args):
            values = {"run": row["run"], "dtype": row["dtype"], "value": row["GB/s"]}
            report.row(what="kernel", **values, unit="GB/s", **{"to floor": row["ratio"]})


def _host_time(report: Report, calls: int = 300) -> None:
    """Write what a call of the neuron takes the host: the device has next to nothing to do."""
    for package in tuple(lif_gpu.COMPILERS):
        name = f"neuron, kernel by {package}"
        with report.attempt(what="host", run=name), kernel.compiled_by(package):
            _time_calls(report, name, lif_fused.fused_lif_step, calls)
    _time_calls(report, "neuron, operations", lif_step, calls)


def _time_calls(report: Report, name: str, step: Callable[..., Tensor], calls: int) -> None:
    """Write the host's time for a call, second time round."""
    x = torch.randn(64, device=kernel.DEVICE, requires_grad=True)
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
        report.row(what="host", run=f"{name}, {what}", value=value, unit="us")


def _measure_case(report: Report, case: Case, names: Sequence[str]) -> None:
    """Time all sides of a case in turn, and look at what ours spends its time on."""
    where = case.columns()
    sides = gpu_sides.sides_of(case.network)
    runs: dict[str, Callable[[], object]] = {}
    memory: dict[str, float] = {}
    for name in [name for name in names if name in sides]:
        side = sides[name]
        if not report.has_time(f"step, {case}, {name}", 6):
            break
        with report.attempt(what="step", **where, run=name):
            side.check(kernel.DEVICE)
            run = side.ready(case, kernel.DEVICE)
            for _ in range(2 if "auto" in name else 1):
                run()
            memory[name] = _peak(run) if not side.graph else float("nan")
            runs[name] = run
    if not runs:
        return
    x = torch.randn(case.batch, 3, case.size, case.size, device=kernel.DEVICE)
    for name, together in FLOORS.items():
        with report.attempt(what="step", **where, run=name):
            run = _floor(case, x, together)
            run()
            runs[name] = run
    with report.attempt(what="step", **where):
        _times(report, runs, memory, where)
    for name in [T_GRAPH] if T_GRAPH in runs and case.dtype == torch.float32 else []:
        if report.has_time(f"profile, {case}", 5):
            with report.attempt(what="profile", **where, run=name):
                _profile(report, name, runs[name], where)


def _floor(case: Case, x: torch.Tensor, together: bool) -> Callable[[], None]:
    with torch.device(kernel.DEVICE):
        model = gpu_sides.ours(case.network)
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
    where: dict[str, object],
    seconds: float = 3.0,
) -> None:
    """Time runs in turn, for so many seconds, and write the median of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + min(seconds, report.left() - 2)
    for round_ in range(60):
        for name, run in runs.items():
            _wait()
            start = time.perf_counter()
            run()
            _wait()
            times[name].append(time.perf_counter() - start)
        if round_ > 2 and time.perf_counter() > end:
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


def _bytes_a_neuron(report: Report) -> None:
    """Write how peak memory grows with the batch, and with the steps of a chunk."""
    if not report.has_time("memory", 8):
        return
    where = {"what": "memory", "network": "vgg", "dtype": "float32"}
    neurons = networks.count_neurons(gpu_sides.ours("vgg"), torch.zeros(1, 3, 32, 32))
    sides = gpu_sides.sides_of("vgg")
    with report.attempt(**where), _small_workspaces():
        peaks = [_peak_of(sides[ONE], Case("vgg", batch)) for batch in (128, 256)]
        each = f"{2**20 * (peaks[1] - peaks[0]) / 128 / neurons:.2f}"
        report.row(**where, T=6, run=ONE, value=each, unit="bytes/neuron")
        peaks = [_peak_of(sides[T_EAGER], Case("vgg", 128, steps=steps)) for steps in (4, 8)]
        each = f"{2**20 * (peaks[1] - peaks[0]) / 4 / 128 / neurons:.2f}"
        report.row(**where, run=T_EAGER, value=each, unit="bytes/neuron/step of a chunk")


def _memory_against_time(report: Report) -> None:
    """Write peak memory against T."""
    where = {"what": "memory", "network": "vgg", "dtype": "float32", "batch": 32}
    sides = gpu_sides.sides_of("vgg")
    with _small_workspaces():
        for name in MEMORY:
            for steps in TIMES:
                if not report.has_time(f"memory, {name}, T={steps}", 6):
                    return
                with report.attempt(**where, run=name, T=steps):
                    mib = _peak_of(sides[name], Case("vgg", 32, steps=steps))
                    report.row(**where, run=name, T=steps, MiB=f"{mib:.0f}")


def _small_workspaces() -> AbstractContextManager[None]:
    """Return a block in which convolutions take no memory for speed's sake."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False)


def _peak_of(side: Side, case: Case) -> float:
    run = side.ready(case, kernel.DEVICE)
    run()
    return _peak(run)


def _short_trainings(report: Report) -> None:
    """Write what a short training reaches: with kernels and without, eager and as a graph."""
    for name, options in (
        ("float32, graph", {"cuda_graph": True}),
        ("bfloat16, graph", {"cuda_graph": True, "dtype": torch.bfloat16}),
        ("float32, PyTorch's operations", {"backend": "torch", "epochs": 6}),
        ("float32", {"epochs": 6}),
    ):
        if not report.has_time("training", 12):
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
