"""The bandwidth that the fused kernels reach, against a copy on the same device."""

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor

from sj_ottt import InputError
from sj_ottt._ops import lif_backends, lif_fused, lif_gpu, trace
from sj_ottt._ops.lif import LIF, lif_step

DEVICE = "cuda"
NEURONS = 1 << 26
SOFT = LIF(2.0, False, 1.0, None, surrogate.Sigmoid())


def kernel(args: argparse.Namespace) -> list[dict]:
    """GB/s of the fused kernels, forward and backward, and the ratio to a device copy."""
    try:
        lif_backends.check_available("cuda")
    except InputError as error:
        raise SystemExit(f"benchmarks: {error}") from None
    source = torch.empty(NEURONS, device=DEVICE)
    copy = 2 * source.nbytes / _seconds(partial(torch.empty_like(source).copy_, source))
    rows = [_row("device copy", source.dtype, copy, copy)]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, v = (torch.randn(NEURONS, device=DEVICE, dtype=dtype) for _ in range(2))
        state = {"v": v, "trace": trace.zeros(x, "packed")}
        _check(x, state)
        k_steps = x.view(4, -1)
        at_start = {"v": v[: len(x) // 4], "trace": state["trace"][: len(x) // 4]}
        # Forward: x, v, spike, v' and the trace twice; backward: two gradients, v' and the trace.
        sizes = 4 * x.nbytes + 2 * state["trace"].nbytes, 3 * x.nbytes + state["trace"].nbytes
        leaf = x.clone().requires_grad_()
        spike = lif_fused.fused_lif_step(leaf, dict(state), SOFT, SOFT.lam)
        # Four steps: x, spike and trace of each, the membrane and the trace before and after.
        scan = 2.5 * x.nbytes + 1.5 * state["trace"].nbytes
        runs = (
            lambda x=x, state=state: lif_fused.fused_lif_step(x, dict(state), SOFT, SOFT.lam),
            partial(torch.autograd.grad, spike, leaf, torch.randn_like(x), retain_graph=True),
            lambda x=k_steps, state=at_start: lif_fused.fused_lif_scan(x, dict(state), SOFT, 0.5),
        )
        names = ("forward", "backward", "forward, 4 steps")
        for name, size, run in zip(names, (*sizes, scan), runs, strict=True):
            rows.append(_row(name, dtype, size / _seconds(run), copy))
    return rows


@contextmanager
def compiled_by(package: str) -> Iterator[None]:
    """Let one package alone compile and launch the kernels, of those in `lif_gpu.COMPILERS`."""
    only = {package: lif_gpu.COMPILERS[package]}
    kept = (lif_gpu._available, lif_gpu._package, lif_gpu.kernel)
    try:
        with mock.patch.dict(lif_gpu.COMPILERS, only, clear=True):
            for function in kept:
                function.cache_clear()
            yield
    finally:  # a package that is missing must not be remembered for the others
        for function in kept:
            function.cache_clear()


def _row(name: str, dtype: torch.dtype, rate: float, copy: float) -> dict:
    dtype_name = str(dtype).removeprefix("torch.")
    return {
        "run": name,
        "dtype": dtype_name,
        "GB/s": f"{rate / 1e9:.0f}",
        "ratio": f"{rate / copy:.2f}",
    }


def _seconds(run: Callable[[], object], repeats: int = 30) -> float:
    """Return the median time of a run in seconds, by the GPU's own clock."""
    for _ in range(3):
        run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def _check(x: Tensor, state: dict[str, Tensor]) -> None:
    """Refuse spikes that are not the plain step's in float64, at both ends of the tensors."""
    for part in (slice(1000), slice(-1001, None)):
        some = {k: v[part] for k, v in state.items()}
        ours = lif_fused.fused_lif_step(x[part], dict(some), SOFT, SOFT.lam)
        theirs = lif_step(x[part].double(), some | {"v": some["v"].double()}, SOFT, SOFT.lam)
        if not torch.equal(ours.double(), theirs) or not 0 < theirs.mean() < 1:
            raise SystemExit("benchmarks: the kernel's spikes differ; no figure given")
