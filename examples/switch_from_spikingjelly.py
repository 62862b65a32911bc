"""OTTT on handwritten digits: a SpikingJelly script of which two import lines were changed.

    python examples/switch_from_spikingjelly.py

The gradients, and so the losses printed, are SpikingJelly's to rounding; each layer computes its
output once a time step instead of twice.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional

# Before:
# from spikingjelly.activation_based import layer, neuron
# from spikingjelly.activation_based.learning.online_learning import ottt_online_training
from sj_ottt import layer, neuron
from sj_ottt.learning import ottt_online_training

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--limit", type=int, default=1500, help="use the first n images")
args = parser.parse_args()

torch.manual_seed(0)
STEPS, BATCH = 6, 50
digits = load_digits()
images = torch.tensor(digits.images[: args.limit], dtype=torch.float32).unsqueeze(1) / 8 - 1
labels = torch.tensor(digits.target[: args.limit])

net = layer.OTTTSequential(
    layer.WSConv2d(1, 32, 3, padding=1),
    neuron.OTTTLIFNode(),
    layer.WSConv2d(32, 64, 3, padding=1),
    neuron.OTTTLIFNode(),
    layer.AvgPool2d(2),
    layer.Flatten(),
    layer.Linear(64 * 16, 10),
)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

for epoch in range(args.epochs):
    start, total, correct = time.perf_counter(), 0.0, 0
    for i in range(0, len(images), BATCH):
        x, y = images[i : i + BATCH], labels[i : i + BATCH]
        x_seq = x.unsqueeze(1).repeat(1, STEPS, 1, 1, 1)  # [N, T, C, H, W]
        target_seq = y.unsqueeze(1).repeat(1, STEPS)  # [N, T]
        loss, y_seq = ottt_online_training(
            net, optimizer, x_seq, target_seq, lambda y, c: F.cross_entropy(y, c) / STEPS, False
        )
        functional.reset_net(net)
        total += loss.item() * len(x)
        correct += (y_seq.mean(1).argmax(1) == y).sum().item()
    print(
        f"epoch {epoch + 1}: loss {total / len(images):.6f}, accuracy "
        f"{correct / len(images):.4f}, {time.perf_counter() - start:.1f} s"
    )
