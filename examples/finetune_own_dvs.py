"""Fine-tune a pretrained spiking network on your own event recordings.

    python examples/finetune_own_dvs.py MY_RECORDINGS

MY_RECORDINGS holds one folder a class, or train/ and test/ with one folder a class each; a
recording is an npz file with the arrays t (µs), x, y, p. Without an argument, the embedded
recordings of digits are used.
"""

import argparse

import timm
import torch
from torch.utils.data import DataLoader

import sj_ottt  # registers the models in timm  # noqa: F401
from sj_ottt.data import NormalizeFrames, open_dataset
from sj_ottt.learning import predict, train_step

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("data", nargs="?", default="ndigits", help="folder of recordings")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--steps", type=int, default=6, help="frames a recording")
parser.add_argument("--batches", type=int, help="stop each epoch after n batches")
args = parser.parse_args()

torch.manual_seed(0)
options = {"steps": args.steps, "size": (34, 34), "transform": NormalizeFrames()}
train = open_dataset(args.data, split="train", **options)
test = open_dataset(args.data, split="test", **options)
model = timm.create_model("ottt_vgg5_ws", pretrained=True, num_classes=len(train.classes))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for epoch in range(args.epochs):
    model.train()
    for i, (frames, labels) in enumerate(DataLoader(train, 64, shuffle=True)):
        # [N, T, 2, H, W] → [T, N, 2, H, W]; memory does not grow with T.
        loss, logits = train_step(model, optimizer, frames.transpose(0, 1), labels)
        if i + 1 == args.batches:
            break
    correct = sum(
        (predict(model, frames.transpose(0, 1)).argmax(1) == labels).sum().item()
        for frames, labels in DataLoader(test, 64)
    )
    print(f"epoch {epoch + 1}: loss {loss:.3f}, test accuracy {correct / len(test):.4f}")

torch.save(model.state_dict(), "finetuned.pt")
print("weights in finetuned.pt")
