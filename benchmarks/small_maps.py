"""Convolutions of few places, as a library's convolution and as one matrix product."""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import interleaved_medians
from sj_ottt._ops.im2col import Patches
from sj_ottt.layer.synapse import fast_format

KERNEL, ONE = (3, 3), (1, 1)
# Channels in and out, side of the input, stride: of NF-ResNets at 64 pixels and of the paper's VGG.
LAYERS = (
    *((512, 512, 2, 1), (256, 512, 4, 2), (256, 256, 4, 1)),
    *((512, 512, 4, 1), (512, 512, 8, 1), (256, 512, 8, 1), (128, 128, 8, 1)),
)
BATCHES = (1, 6, 16, 64)


def small_maps(args: argparse.Namespace) -> list[dict]:
    """Milliseconds of output and both gradients: PyTorch's convolution and the matrix product.

    The convolution has the layout in which it is the faster one; its weight lies so already.
    """
    rows = []
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
                        "dtype": str(dtype).removeprefix("torch."),
                        "batch": n,
                        **{f"{name}, ms": f"{1e3 * s:.2f}" for name, s in seconds.items()},
                        "ratio": f"{seconds['matrix'] / seconds['convolution']:.2f}",
                        "taken": "matrix" if patches.pay(dtype) else "convolution",
                    }
                )
    return rows


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
