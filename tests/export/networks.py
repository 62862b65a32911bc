"""Networks to export, and a reader of NIR graphs that is written from NIR's equations alone."""

import math

import nir
import torch
from torch import nn
from torch.nn import functional as F

from sj_ottt import layer
from sj_ottt.neuron import OTTTLIFNode


class Residual(nn.Module):
    """Everything that is folded: γ, batch norm, a factor on a branch, one on the sum, a mean."""

    def __init__(self, neuron=OTTTLIFNode, twice=False):
        super().__init__()
        self.stem = layer.WSConv2d(2, 6, 3, padding=1)
        self.stem_pool = layer.AvgPool2d(3, stride=2, padding=1)
        self.act = layer.OTTTSequential(neuron(), layer.Scale(2.74))
        self.branch = layer.OTTTSequential(
            layer.Conv2d(6, 6, 3, padding=1, groups=2),
            nn.BatchNorm2d(6),
            neuron(),
            layer.AvgPool2d(2),
            layer.WSConv2d(6, 8, 1, bias=False),
        )
        self.shortcut = layer.OTTTSequential(
            layer.AvgPool2d(2), nn.BatchNorm2d(6), layer.Conv2d(6, 8, 1)
        )
        self.factor = nn.Parameter(torch.tensor(0.6))
        self.late = neuron()
        self.fc = layer.Linear(8 * 4, 3)
        self.twice = twice

    def forward(self, x):
        x = self.stem_pool(self.stem(x))
        z = self.act(x)
        branch = self.branch(z)
        out = 0.3 * self.factor * branch + self.shortcut(z)
        if self.twice:
            out = out + branch - out / 4
        return self.fc(torch.flatten(self.late(out / 1.3), 1))


def randomised(model: nn.Module) -> nn.Module:
    """Return the model in evaluation with batch norms and biases that are not the usual ones."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dim() == 1:
            nn.init.uniform_(
                tensor, *((0.5, 2.0) if name.endswith(("var", "weight")) else (-0.3, 1.0))
            )
    return model.eval()


def run_nir(graph, x_seq, dt: float, exact: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Run a NIR graph: outputs [T, N, ...], and the spikes of each neuron [T, N, ...]."""
    sources = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    order, waiting = [], list(graph.nodes)
    while waiting:
        name = next(n for n in waiting if all(s in order for s in sources[n]))
        order.append(name)
        waiting.remove(name)
    v, outputs, spikes = {}, [], {}
    for x in x_seq:
        given = {}
        for name in order:
            node = graph.nodes[name]
            total = (
                sum((given[s] for s in sources[name][1:]), given[sources[name][0]])
                if sources[name]
                else x
            )
            given[name] = _node(node, total, v, dt, exact)
            if isinstance(node, nir.LIF | nir.IF):
                spikes.setdefault(name, []).append(given[name])
        (out,) = [given[n] for n in order if isinstance(graph.nodes[n], nir.Output)]
        outputs.append(out)
    return torch.stack(outputs), {name: torch.stack(s) for name, s in spikes.items()}


def _node(node, x, v, dt, exact):
    numbers = {k: torch.as_tensor(a) for k, a in vars(node).items() if hasattr(a, "dtype")}
    if isinstance(node, nir.Conv2d):
        names = ("stride", "padding", "dilation")
        options = {name: [int(i) for i in getattr(node, name)] for name in names}
        return F.conv2d(x, numbers["weight"], numbers["bias"], **options)
    if isinstance(node, nir.Affine | nir.Linear):
        return F.linear(x, numbers["weight"], numbers.get("bias"))
    if isinstance(node, nir.SumPool2d):
        kernel = [int(k) for k in node.kernel_size]
        stride = [int(s) for s in node.stride]
        return F.avg_pool2d(x, kernel, stride, divisor_override=1)
    if isinstance(node, nir.Flatten):
        return x.flatten(1)
    if isinstance(node, nir.LIF | nir.LI | nir.IF | nir.I):
        return _membrane(node, numbers, x, v, dt, exact)
    assert isinstance(node, nir.Input | nir.Output)
    return x


def _membrane(node, numbers, x, v, dt, exact):
    last = v.get(id(node), numbers.get("v_reset", torch.zeros(())) if _soft(node) is False else 0.0)
    driven = numbers["r"] * x
    if isinstance(node, nir.IF | nir.I):
        u = last + driven
    else:
        driven = driven + numbers["v_leak"]
        share = 1 - torch.exp(-dt / numbers["tau"]) if exact else dt / numbers["tau"]
        u = last + share * (driven - last)
    if isinstance(node, nir.LI | nir.I):
        v[id(node)] = u
        return u.float()
    spike = (u >= numbers["v_threshold"]).to(u)
    left = u - numbers["v_threshold"] if _soft(node) else numbers["v_reset"]
    v[id(node)] = torch.where(spike > 0, left, u)
    return spike.float()


def _soft(node) -> bool | None:
    reset = node.metadata.get("reset")
    return None if reset is None else reset == "subtract"


NEURONS = {
    "soft": {},
    "hard": {"v_reset": 0.0},
    "hard to 0.1": {"v_reset": 0.1, "tau": 3.0},
    "decay_input": {"decay_input": True, "tau": 1.5, "v_threshold": 0.4},
    "no leak": {"tau": math.inf},
}
