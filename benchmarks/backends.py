"""A CPU's kernels against PyTorch's operations: neurons, weights, and whole training batches."""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import timm
import torch

from benchmarks.measure import interleaved_medians
from sj_ottt._ops import standardize
from sj_ottt.learning import train_step
from sj_ottt.models import calibrate
from sj_ottt.neuron import OTTTLIFNode, set_backend

LAYER = (16, 128, 32, 32)
WEIGHT = (512, 512, 3, 3)
FULL, HALF = torch.float32, torch.bfloat16
# Model, pixels, batch, time steps, chunk and precision.
CASES = (
    *(("ottt_vgg11_ws", 32, n, 6, chunk, FULL) for n in (1, 16) for chunk in (1, 6)),
    ("ottt_vgg11_ws", 32, 16, 6, 1, HALF),
    *(("ottt_nf_resnet34", 64, 8, 4, chunk, FULL) for chunk in (1, 4)),
)


def backends(args: argparse.Namespace) -> list[dict]:
    """Milliseconds by backend; the ratio is that of the kernels to PyTorch's operations."""
    rows = [
        _row("a layer of neurons", LAYER[0], 1, 1, FULL, _layer, args.repeats),
        _row("a standardized weight", 1, 1, 1, FULL, _weight(), args.repeats),
    ]
    for name, pixels, n, steps, chunk, dtype in CASES:
        run = _training_batch(name, pixels, n, steps, chunk, dtype)
        rows.append(_row(name, n, steps, chunk, dtype, run, args.repeats))
    return rows


def _row(
    name: str,
    n: int,
    steps: int,
    chunk: int,
    dtype: torch.dtype,
    run: Callable[[str], None],
    repeats: int,
) -> dict:
    runs = {backend: partial(_run, run, backend) for backend in ("torch", "cpp")}
    seconds = interleaved_medians(runs, repeats)
    row = {"what": name, "batch": n, "T": steps, "chunk": chunk}
    row |= {"precision": str(dtype).removeprefix("torch.")}
    row |= {backend: f"{1000 * s:.1f}" for backend, s in seconds.items()}
    return row | {"ratio": f"{seconds['cpp'] / seconds['torch']:.2f}"}


def _run(run: Callable[[str], None], backend: str) -> None:
    """Run by a backend, which is that of neurons alone: the weights' kernel goes with it."""
    without = patch.object(standardize, "_has_kernel", return_value=False)
    with without if backend == "torch" else nullcontext():
        run(backend)


def _layer(backend: str) -> None:
    """A time step of neurons, and its gradient."""
    node = OTTTLIFNode(backend=backend, trace_dtype="packed")
    x = torch.ones(LAYER, requires_grad=True)
    spike, _ = node(x)
    spike.backward(torch.ones_like(spike))


def _weight() -> Callable[[str], None]:
    """Return what standardizes a weight, and takes its gradient, in memory that is there."""
    weight = torch.randn(WEIGHT, requires_grad=True)
    gain = torch.ones(WEIGHT[0], 1, 1, 1, requires_grad=True)
    room, grad = torch.empty(WEIGHT), torch.randn(WEIGHT)

    def run(_: str) -> None:
        made = standardize.scaled_weight_standardization(weight, gain, 1e-4, room)
        torch.autograd.grad(made, (weight, gain), grad)

    return run


def _training_batch(
    name: str, pixels: int, n: int, steps: int, chunk: int, dtype: torch.dtype
) -> Callable[[str], None]:
    """Return what trains a calibrated model on a batch, by a backend; the weights stand still."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, in_chans=3)
    x_seq, target = torch.rand(steps, n, 3, pixels, pixels), torch.arange(n) % 10
    calibrate(model, torch.rand(4, 3, pixels, pixels))
    still = torch.optim.SGD(model.parameters(), lr=0.0)

    def run(backend: str) -> None:
        set_backend(model, backend)
        with nullcontext() if dtype == FULL else torch.autocast("cpu", dtype):
            train_step(model, still, x_seq, target, chunk=chunk)

    return run
