"""Everything that is said of a GPU, in one command: `python -m benchmarks gpu`.

It needs nothing but the checkout. Rows are written as they come, the ones that matter most first,
so that a run that is cut short has still something to say; a side that fails gets a row that says
how, and the rest goes on.
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
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import kernel, networks, sides
from sj_ottt import learning
from sj_ottt._ops import lif_cuda, trace
from sj_ottt._ops.lif import lif_step

COLUMNS = ("what", "network", "batch", "T", "dtype", "run", "value", "unit", "ratio", "note")


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

    def has_time(self, share: float = 1.0) -> bool:
        """Whether less than this share of the time is over."""
        return time.perf_counter() - self._begun < share * self._seconds

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
    torch.backends.cudnn.benchmark = True  # for all sides; convolutions of float32 take TF32
    card = re.sub(r"\W+", "-", name.removeprefix("NVIDIA ")).lower()
    stem = f"gpu-quick-{card}" if args.quick else f"gpu-{card}"
    folder = Path(args.results)
    report = Report(folder / f"{stem}-{torch.__version__}.csv", args.seconds)
    report.row(what="card", note=name, run=f"torch {torch.__version__}")
    with report.attempt(what="kernel"):
        for row in kernel.kernel(args):
            report.row(
                what="kernel",
                run=row["run"],
                dtype=row["dtype"],
                value=row["GB/s"],
                unit="GB/s",
                ratio=row["ratio"],
            )
    with report.attempt(what="host"):
        _host_time(report)
    for network, n, size, steps in (
        ("vgg", 1, 32, 6),
        ("vgg", 128, 32, 6),
        ("nf_resnet34", 128, 64, 4),
    ):
        where = {"network": network, "batch": n, "T": steps}
        with report.attempt(what="step", **where):
            runs = _runs_of_a_first_look(report, network, n, size, steps, where)
            _times(report, runs, 1.2, **where)
            with report.attempt(what="profile", **where):
                _profile(report, runs["sj_ottt OTTT-A"], folder / f"{stem}.txt", **where)
            del runs
    print(f"written: {report.path}")


def _runs_of_a_first_look(
    report: Report, network: str, n: int, size: int, steps: int, where: dict[str, object]
) -> dict[str, Callable[[], object]]:
    """Return one training batch of the sides that tell most, and of ours in half precision."""
    entries = sides.VGG if network == "vgg" else sides.NF_RESNET34
    build = networks.our_vgg if network == "vgg" else networks.our_nf_resnet
    runs: dict[str, Callable[[], object]] = {}
    for name in ("sj_ottt OTTT-A", "spikingjelly OTTT-A", "spikingjelly BPTT"):
        if name in entries:
            with report.attempt(what="step", **where, run=name):
                entries[name].check(name, 8 if network == "vgg" else 32, kernel.DEVICE)
                run = entries[name].ready(n, size, steps, kernel.DEVICE)
                run()
                runs[name] = run
    ours = partial(_ours, build, n, size, steps)
    for name, make in (
        ("sj_ottt OTTT-A, backend torch", partial(ours, backend="torch")),
        ("sj_ottt OTTT-A, channels last", partial(ours, last=True)),
        ("sj_ottt OTTT-A, bfloat16", partial(ours, dtype=torch.bfloat16)),
        ("sj_ottt OTTT-A, bfloat16, channels last", partial(ours, dtype=torch.bfloat16, last=True)),
    ):
        with report.attempt(what="step", **where, run=name):
            run = make()
            run()
            runs[name] = run
    with report.attempt(what="step", **where, run="bare convolutions"):
        x = torch.randn(n, 3, size, size, device=kernel.DEVICE)
        runs["bare convolutions"] = networks.bare_products(build().to(kernel.DEVICE), x, steps)
    return runs


def _ours(
    build: Callable[..., nn.Module],
    n: int,
    size: int,
    steps: int,
    dtype: torch.dtype = torch.float32,
    last: bool = False,
    backend: str = "auto",
) -> Callable[[], object]:
    """Return one training batch of ours, under autocast, in some memory format."""
    model = build(backend=backend).to(kernel.DEVICE)
    if last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    x = torch.randn(n, 3, size, size, device=kernel.DEVICE)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    y = torch.randint(0, 10, (n,), device=kernel.DEVICE)

    def run() -> None:
        with torch.autocast(
            torch.device(kernel.DEVICE).type, dtype, enabled=dtype != torch.float32
        ):
            learning.train_step(model, optimizer, x, y, steps=steps)

    return run


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


def _card() -> str:
    """Return the name of the GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks: PyTorch sees no CUDA GPU")
    return torch.cuda.get_device_name()


def _wait() -> None:
    torch.cuda.synchronize()


def _times(
    report: Report, runs: Mapping[str, Callable[[], object]], seconds: float, **where: object
) -> None:
    """Time runs in turn for so many seconds each, and write the median of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    for round_ in range(102):
        for name, run in runs.items():
            _wait()
            start = time.perf_counter()
            run()
            _wait()
            if round_ > 1:
                times[name].append(time.perf_counter() - start)
        if round_ > 2 and time.perf_counter() > end:
            break
    medians = {name: statistics.median(found) for name, found in times.items()}
    base = medians.get("spikingjelly BPTT", medians.get("spikingjelly OTTT-A"))
    for name, median in medians.items():
        ratio = f"{median / base:.3f}" if base else ""
        report.row(
            what="step", **where, run=name, value=f"{1e3 * median:.3f}", unit="ms", ratio=ratio
        )


def _profile(report: Report, run: Callable[[], object], path: Path, **where: object) -> None:
    """Write which kernels a run spends its time in, and how often kernels are launched."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        _wait()
    averages = found.key_averages()
    launches = sum(e.count for e in averages if "LaunchKernel" in e.key)
    waits = sum(e.count for e in averages if "Synchronize" in e.key)
    busy = sum(e.self_device_time_total for e in averages) / 1e3
    report.row(
        what="profile",
        **where,
        run="sj_ottt OTTT-A",
        value=launches,
        unit="launches",
        note=f"GPU busy {busy:.2f} ms, {waits} waits",
    )
    with path.open("a", encoding="utf-8") as file:
        print(where, file=file)
        for order in ("self_device_time_total", "self_cpu_time_total"):
            table = averages.table(sort_by=order, row_limit=25, max_name_column_width=90)
            print(table, file=file)
