"""Small networks that carry traces or learn through time, and batches for them."""

import torch
from torch import nn

from sj_ottt import layer
from sj_ottt.neuron import LTCRecurrent, OTTTLIFNode


def network(seed=0) -> layer.OTTTSequential:
    """A chain of two linear layers, a neuron that carries a trace between them; 3 classes."""
    torch.manual_seed(seed)
    net = layer.OTTTSequential(layer.Linear(6, 16), OTTTLIFNode(), layer.Linear(16, 3))
    nn.init.normal_(net[0].weight)
    return net


def batch(steps=5, n=4) -> tuple[torch.Tensor, torch.Tensor]:
    """x_seq [T, N, 6] and class indices [N] for `network`."""
    torch.manual_seed(1)
    return 2 * torch.rand(steps, n, 6), torch.tensor([0, 1, 2, 0])[:n]


class LTCNet(nn.Sequential):
    """A recurrent LTC layer and a linear readout of one number, in float64."""

    prediction = "last"

    def __init__(self, start="zero", features=8, seed=0):
        torch.manual_seed(seed)
        super().__init__(LTCRecurrent(3, features, start=start), nn.Linear(features, 1))
        self.double()
        nn.init.normal_(self[0].synapse.weight)


def sequence(steps=5, n=4, features=3) -> tuple[torch.Tensor, torch.Tensor]:
    """x_seq [T, N, features] and targets [N] for `LTCNet`."""
    torch.manual_seed(1)
    return 2 * torch.rand(steps, n, features).double(), torch.rand(n).double()


def squared(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of `LTCNet`: half the squared error, summed over the batch."""
    return 0.5 * (output.squeeze(1) - target).square().sum()
