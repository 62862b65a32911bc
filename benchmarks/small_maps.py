"""Convolutions of few places, as a library's convolution and as one matrix product."""

import argparse
from collections.abc import Callable
from functools import partial
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import interleaved_medians
from sj_ottt._ops.im2col import Patches
from sj_ottt.layer.synapse import fast_format
from sj_ottt.learning import train_step

KERNEL, ONE = (3, 3), (1, 1)
# Channels in and out, side of the input, stride: of NF-ResNets at 64 pixels and of the paper's VGG.
LAYERS = (
    *((512, 512, 2, 1), (256, 512, 4, 2), (256, 256, 4, 1)),
    *((512, 512, 4, 1), (512, 512, 8, 1), (256, 512, 8, 1), (128, 128, 8, 1)),
)
BATCHES = (1, 6, 16, 64)
NETWORK, BATCH, STEPS = "ottt_nf_resnet34", 8, 4


def small_maps(args: argparse.Namespace) -> list[dict]:
    """Milliseconds of output and both gradients: PyTorch's convolution and the matrix product.

    The convolution has the layout in which it is the faster one; its weight lies so already. The
    first rows are a training batch of NF-ResNet-34, 64 x 64, T = 4, as one chunk.
    """
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        batch = _training_batch(dtype)
        runs = {"convolution": partial(_without_matrices, batch), "matrix": batch}
        seconds = interleaved_medians(runs, args.repeats)
        rows.append(
            {"channels": NETWORK, "places": ""} | _row(dtype, BATCH, seconds) | {"taken": ""}
        )
    for channels, out_channels, side, stride in LAYERS:
        for dtype in (torch.float32, torch.bfloat16):
            for n in BATCHES:
                x = torch.randn(n, channels, side, side, dtype=dtype)
                weight = torch.randn(out_channels, channels, *KERNEL, dtype=dtype)
                patches = Patches(x.shape, KERNEL, (stride, stride), ONE, ONE)
                runs = {
                    "convolution": _convolution(x, weight, stride),
                    "matrix": _matrix(x, weight, patches),
                }
                seconds = interleaved_medians(runs, args.repeats)
                rows.append(
                    {
                        "channels": f"{channels} to {out_channels}",
                        "places": " x ".join(map(str, patches.places)),
                        **_row(dtype, n, seconds),
                        "taken": "matrix" if patches.pay(dtype) else "convolution",
                    }
                )
    return rows


def _row(dtype: torch.dtype, batch: int, seconds: dict[str, float]) -> dict:
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        **{f"{name}, ms": f"{1e3 * s:.2f}" for name, s in seconds.items()},
        "ratio": f"{seconds['matrix'] / seconds['convolution']:.2f}",
    }


def _training_batch(dtype: torch.dtype) -> Callable[[], object]:
    model = timm.create_model(NETWORK, pretrained=False, num_classes=10, in_chans=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x_seq, target = torch.randn(STEPS, BATCH, 2, 64, 64), torch.arange(BATCH)

    def run() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            train_step(model, optimizer, x_seq, target, chunk=STEPS)

    return run


def _without_matrices(run: Callable[[], object]) -> None:
    with mock.patch.object(Patches, "pay", return_value=False):
        run()


def _convolution(x: Tensor, weight: Tensor, stride: int) -> Callable[[], object]:
    layout = fast_format(weight, x)
    x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    grad = torch.ones_like(F.conv2d(x, weight, None, stride, 1))
    how = None, [stride, stride], ONE, ONE, False, [0, 0], 1

    def run() -> None:
        F.conv2d(x, weight, None, stride, 1)
        for wanted in ([False, True, False], [True, False, False]):
            torch.ops.aten.convolution_backward(grad, x, weight, *how, wanted)

    return run


def _matrix(x: Tensor, weight: Tensor, patches: Patches) -> Callable[[], object]:
    weight = weight.contiguous(memory_format=torch.channels_last)
    grad = torch.ones_like(patches.product(x, weight, None))

    def run() -> None:
        patches.product(x, weight, None)
        patches.weight_gradient(grad, x)
        patches.gradient(grad, weight)

    return run
