"""A chain with every kind of layer between two neurons, and its gradients."""

from functools import partial

import torch
from torch import nn

from sj_ottt import layer, learning
from sj_ottt.neuron import OTTTLIFNode


def network(trace_dtype: str = "float32", dropout: float = 0.0) -> layer.OTTTSequential:
    """Every kind of layer between two neurons, in float64; input [N, 2, 13, 13], 4 outputs."""
    torch.manual_seed(0)
    node = partial(OTTTLIFNode, trace_dtype=trace_dtype)
    net = layer.OTTTSequential(
        layer.WSConv2d(2, 6, 3, padding=1),
        node(),
        layer.Scale(2.74),
        layer.AvgPool2d(2),
        layer.Conv2d(6, 8, 3, padding="same", padding_mode="circular"),
        node(),
        layer.Dropout(dropout),
        layer.MaxPool2d(2),
        layer.WSConv2d(8, 8, 3, padding=1, groups=2),
        node(),
        layer.AdaptiveAvgPool2d(2),
        layer.Flatten(),
        layer.WSLinear(32, 12),
        node(),
        layer.Linear(12, 4),
    ).double()
    for module in net:
        if getattr(module, "gain", None) is not None:
            nn.init.uniform_(module.gain, 3.0, 4.0)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.3)
    return net


def train(net: nn.Module, steps: int = 6, **kwargs) -> dict[str, torch.Tensor]:
    """Gradients of one batch; refuses a silent network."""
    torch.manual_seed(1)
    x_seq = 2 * torch.randn(steps, 3, 2, 13, 13).double()
    net.zero_grad()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    torch.manual_seed(2)  # dropout
    learning.train_step(net, optimizer, x_seq, torch.tensor([0, 1, 3]), **kwargs)
    grads = {k: p.grad.clone() for k, p in net.named_parameters()}
    assert all(g.norm() > 0 for g in grads.values())
    return grads


def step_by_step(net: nn.Module, steps: int = 6) -> dict[str, torch.Tensor]:
    """The same batch as a user's own loop: plain autograd at every step, no weight shared."""
    torch.manual_seed(1)
    x_seq = 2 * torch.randn(steps, 3, 2, 13, 13).double()
    net.zero_grad()
    torch.manual_seed(2)
    for x in x_seq:
        loss = learning.CrossEntropyMSE()(net(x), torch.tensor([0, 1, 3])) / steps
        loss.backward()
    learning.reset_state(net)
    return {k: p.grad.clone() for k, p in net.named_parameters()}
