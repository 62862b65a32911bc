"""Training in half precision on a CPU: time, and how far the gradient is from float32's."""

import argparse
from contextlib import nullcontext
from functools import partial

import timm
import torch
from torch import Tensor, nn

from benchmarks.measure import interleaved_medians
from sj_ottt.learning import train_step

STEPS = 4
FULL, HALF, SMALL = torch.float32, torch.bfloat16, torch.float16
# Model, batch, pixels and precisions; float16 would take a large network minutes.
CASES = (
    ("ottt_nf_resnet34.saccade", 12, 64, (FULL, HALF)),
    ("ottt_vgg11_ws", 12, 32, (FULL, HALF)),
    ("ottt_vgg5_ws", 2, 34, (FULL, HALF, SMALL)),
)


def half(args: argparse.Namespace) -> list[dict]:
    """Seconds of a training batch by precision, all steps as one chunk, 2 channels, T = 4.

    The cosine is that between all weight gradients and float32's.
    """
    rows = []
    for name, n, side, dtypes in CASES:
        torch.manual_seed(0)
        shipped = "." in name  # without its weights, a deep network is silent
        model = timm.create_model(name, pretrained=shipped, num_classes=10, in_chans=2)
        x_seq = torch.randn(STEPS, n, 2, side, side)
        target = torch.arange(n) % 10
        batch = partial(_gradient, model, x_seq, target)
        grads = {dtype: batch(dtype) for dtype in dtypes}
        runs = {str(dtype): partial(batch, dtype) for dtype in dtypes}
        seconds = interleaved_medians(runs, args.repeats)
        for dtype in dtypes:
            s = seconds[str(dtype)]
            cosine = torch.cosine_similarity(grads[dtype], grads[FULL], 0)
            rows.append(
                {
                    "network": name,
                    "precision": str(dtype).removeprefix("torch."),
                    "seconds": f"{s:.3f}",
                    "ratio": f"{s / seconds[str(FULL)]:.2f}",
                    "cosine": f"{cosine:.3f}",
                }
            )
    return rows


def _gradient(model: nn.Module, x_seq: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    """Return all gradients of a batch as one vector; the weights stand still."""
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu") if dtype == SMALL else None
    with nullcontext() if dtype == FULL else torch.autocast("cpu", dtype):
        train_step(model, still, x_seq, target, scaler=scaler, chunk=STEPS)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
