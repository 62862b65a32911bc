"""What people do to signals, in the forms in which they write it."""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn

from sj_ottt import layer

__all__ = ["FUNCTIONS", "MANY", "MAX_POOLS", "MODULES", "ONE", "TWO"]

ONE = {
    "a / 2": lambda a: a / 2,
    "0.7 * a": lambda a: 0.7 * a,
    "torch.mul": lambda a: torch.mul(a, 1.3),
    "-a": lambda a: -a,
    "clone": lambda a: a.clone(),
    "contiguous": lambda a: a.contiguous(),
    "to": lambda a: a.to(torch.float64),
    "flip": lambda a: torch.flip(a, [-1]),
    "roll": lambda a: a.roll(1, -1),
    "unsqueeze": lambda a: a.unsqueeze(1).squeeze(1),
    "a[:, :2]": lambda a: a[:, :2],
    "a[..., 1:]": lambda a: a[..., 1:],
    "narrow": lambda a: torch.narrow(a, 1, 0, 2),
    "repeat": lambda a: a.repeat(1, 2, *[1] * (a.dim() - 2)),
    "index_select": lambda a: a.index_select(1, torch.tensor([1, 0])),
    "constant": lambda a: a * torch.linspace(0.5, 1.5, a.shape[-1], dtype=torch.float64),
    "masked_fill": lambda a: a.masked_fill(torch.arange(a.shape[-1]) == 0, 0.0),
    "keepdim": lambda a: a.mean(1, keepdim=True).expand_as(a),
    "cumsum": lambda a: a.cumsum(1),
    "flatten": lambda a: a.flatten(1),
    "view": lambda a: a.reshape(a.shape[0], -1),
    "avg_pool2d": lambda a: F.avg_pool2d(a, 2),
    "adaptive_avg_pool2d": lambda a: F.adaptive_avg_pool2d(a, 2),
    "interpolate": lambda a: F.interpolate(a, scale_factor=2),
    "bilinear": lambda a: F.interpolate(a, size=(4, 4), mode="bilinear"),
    "pad": lambda a: F.pad(a, (1, 0, 0, 1)),
    "reflect": lambda a: F.pad(a, (1, 1, 0, 0), mode="reflect"),
    "pixel_shuffle": lambda a: F.pixel_shuffle(a, 2),
    "transpose": lambda a: a.transpose(2, 3),
    "permute": lambda a: a.permute(0, 1, 3, 2),
    "rot90": lambda a: torch.rot90(a, 1, [2, 3]),
    "matmul": lambda a: a @ torch.eye(a.shape[-1], dtype=torch.float64)[:, 1:],
}
"""Linear maps of one signal, as functions and methods."""

MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "nn.AvgPool2d": (lambda: nn.AvgPool2d(2), ONE["avg_pool2d"]),
    "layer.AvgPool2d": (lambda: layer.AvgPool2d(2), ONE["avg_pool2d"]),
    "sj AvgPool2d": (lambda: sj_layer.AvgPool2d(2), ONE["avg_pool2d"]),
    "layer.AdaptiveAvgPool2d": (lambda: layer.AdaptiveAvgPool2d(2), ONE["adaptive_avg_pool2d"]),
    "nn.Flatten": (nn.Flatten, ONE["flatten"]),
    "layer.Flatten": (layer.Flatten, ONE["flatten"]),
    "sj Flatten": (sj_layer.Flatten, ONE["flatten"]),
    "nn.Identity": (nn.Identity, lambda a: a),
    "nn.ZeroPad2d": (lambda: nn.ZeroPad2d(1), lambda a: F.pad(a, (1, 1, 1, 1))),
    "nn.Upsample": (lambda: nn.Upsample(scale_factor=2), ONE["interpolate"]),
    "nn.PixelShuffle": (lambda: nn.PixelShuffle(2), ONE["pixel_shuffle"]),
    "layer.Scale": (lambda: layer.Scale(1.7), lambda a: a * 1.7),
    "nn.Unflatten": (lambda: nn.Unflatten(1, (2, -1)), lambda a: a.unflatten(1, (2, -1))),
}
"""The same as modules, and what each does."""

TWO = {
    "a + b": operator.add,
    "torch.add": torch.add,
    "a.add(b)": lambda a, b: a.add(b),
    "sum": lambda a, b: sum([a, b]),
    "a - b / 2": lambda a, b: a - b / 2,
    "alpha": lambda a, b: torch.add(a, b, alpha=0.5),
    "torch.sub": torch.sub,
    "stack": lambda a, b: torch.stack([a, b]).sum(0),
    "mean": lambda a, b: (a + b) / 2,
    "cat": lambda a, b: torch.cat([a, b], 1),
    "cat dim": lambda a, b: torch.cat((b, a), dim=1),
    "hstack": lambda a, b: torch.hstack([a, b]),
}
"""Of two signals of one shape."""

MANY = {
    "chunk": lambda a: a.chunk(2, 1),
    "torch.chunk": lambda a: torch.chunk(a, 2, dim=1),
    "split": lambda a: a.split(a.shape[1] // 2, 1),
    "tensor_split": lambda a: torch.tensor_split(a, 2, dim=1),
}
"""Into two signals."""

FUNCTIONS = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "square": lambda a: a * a,
    "softmax": lambda a: 2 * torch.softmax(a, 1),
    "gelu": lambda a: F.gelu(a),
    "layer_norm": lambda a: F.layer_norm(a, a.shape[1:]),
}
"""No linear maps."""

MAX_POOLS: dict[str, Callable[[], nn.Module]] = {
    "nn": lambda: nn.MaxPool2d(2),
    "ours": lambda: layer.MaxPool2d(2),
    "sj": lambda: sj_layer.MaxPool2d(2),
}
