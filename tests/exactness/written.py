"""Networks as people write them, each a program of `cases` too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_ottt import neuron

__all__ = ["Attention", "Tied", "UNet"]


class UNet(nn.Module):
    """A U-Net as people write it: skips that are joined, transposed convolutions, an output map."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.spike1, self.spike2, self.spike3 = (
            neuron.OTTTLIFNode(v_threshold=v) for v in (0.9, 0.7, 0.8)
        )
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Conv2d(8, 1, 1)
        for module in (self.down1, self.down2, self.up, self.out):
            nn.init.normal_(module.weight, mean=0.1, std=0.3)
        self.double()
        self.parts = dict(self.named_children())

    def forward(self, x: Tensor) -> Tensor:
        first = self.spike1(self.down1(x))
        second = self.spike2(self.down2(F.avg_pool2d(first, 2)))
        up = self.spike3(self.norm(self.up(second)))
        return self.out(torch.cat([first, up], dim=1))


class Tied(nn.Module):
    """An autoencoder whose decoder has the encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(10, 8, bias=False)
        nn.init.normal_(self.encoder.weight, mean=0.1, std=0.4)
        self.spike = neuron.OTTTLIFNode(v_threshold=0.9)
        self.double()
        self.parts = dict(self.named_children())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.spike(self.encoder(x)), self.encoder.weight.t())


class Attention(nn.Module):
    """Spikes that multiply spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        for module in (self.query, self.key, self.out):
            nn.init.normal_(module.weight, mean=0.2, std=0.4)
        self.q, self.k = (neuron.OTTTLIFNode(v_threshold=v) for v in (0.9, 0.8))
        self.double()
        self.parts = dict(self.named_children())

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(self.query(x)), self.k(self.key(x))
        return self.out(q @ k.transpose(1, 2) / 6)
