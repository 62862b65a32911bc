"""A chain for all rules, a batch for it, and its gradients."""

import torch
import torch.nn.functional as F
from torch import nn

from sj_ottt import layer, learning, set_rule
from sj_ottt.neuron import OTTTLIFNode

STEPS = 6


def chain(node=OTTTLIFNode, container=layer.OTTTSequential, last=True) -> nn.Sequential:
    """Two convolutions and a linear layer in float64, a neuron behind each."""
    torch.manual_seed(0)
    net = container(
        layer.Conv2d(2, 6, 3, padding=1),
        node(),
        layer.AvgPool2d(2),
        layer.Conv2d(6, 8, 3),
        node(),
        layer.Flatten(),
        layer.Linear(8 * 2 * 2, 4),
        *([node()] if last else []),
    ).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.6)
    return net


def sequence() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return 1.5 * torch.randn(STEPS, 5, 2, 8, 8).double(), torch.tensor([0, 1, 2, 3, 0])


def gradients(net: nn.Module, rule: str | None = None, **kwargs) -> dict[str, torch.Tensor]:
    """Gradients of one batch through `train_step` by a rule; refuses a silent network."""
    if rule is not None:
        set_rule(net, rule)
    net.zero_grad()
    learning.train_step(net, torch.optim.SGD(net.parameters(), 0.0), *sequence(), **kwargs)
    return alive(net)


def alive(net: nn.Module) -> dict[str, torch.Tensor]:
    grads = {k: p.grad.clone() for k, p in net.named_parameters()}
    assert all(g.norm() > 0 for g in grads.values())
    return grads


def plain_loop(net: nn.Module) -> dict[str, torch.Tensor]:
    """One backward pass per step, by nothing of ours."""
    net.zero_grad()
    x_seq, target = sequence()
    for x in x_seq:
        (learning.CrossEntropyMSE()(net(x), target) / STEPS).backward()
    learning.reset_state(net)
    return alive(net)


def cosine(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    a, b = (torch.cat([g.flatten() for g in grads.values()]) for grads in (a, b))
    return F.cosine_similarity(a, b, dim=0).item()
