"""Train a spiking network on still images, shown at every time step.

python examples/train_static_images.py [--update online]
"""

import argparse

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import sj_ottt  # registers the models in timm  # noqa: F401
from sj_ottt.learning import CrossEntropyMSE, predict, train_step

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--steps", type=int, default=6, help="time steps T")
parser.add_argument("--update", choices=("accumulate", "online"), default="accumulate")
parser.add_argument(
    "--limit", type=int, default=1400, help="train on the first n images, at most 1400"
)
args = parser.parse_args()

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 4 - 2
images = F.interpolate(images, size=(16, 16), mode="bilinear")
labels = torch.tensor(digits.target)
x_train, y_train = images[:1400][: args.limit], labels[:1400][: args.limit]
x_test, y_test = images[1400:], labels[1400:]  # images that were not trained on

model = timm.create_model("ottt_vgg5_ws", num_classes=10, in_chans=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
loss_fn = CrossEntropyMSE(mse_weight=0.05)  # the paper's loss on images

for epoch in range(args.epochs):
    total = 0.0
    for batch in torch.randperm(len(x_train)).split(50):
        loss, _ = train_step(
            model,
            optimizer,
            x_train[batch],
            y_train[batch],
            loss_fn=loss_fn,
            update=args.update,
            steps=args.steps,
        )
        total += loss.item() * len(batch)
    schedule.step()
    accuracy = (predict(model, x_test, steps=args.steps).argmax(1) == y_test).float().mean()
    print(f"epoch {epoch + 1}: loss {total / len(x_train):.3f}, test accuracy {accuracy:.4f}")
