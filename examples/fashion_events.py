"""Turn Fashion-MNIST into event recordings: the set that the shipped ottt_vgg5_ws was trained on.

    python examples/fashion_events.py --out fashion_events [--images fashion_mnist.npz]
    sj-ottt train --config examples/recipes/fashion_events.yaml --data fashion_events

Every image is moved along three saccades in front of a simulated sensor of 34 × 34 pixels. Without
--images, torchvision downloads Fashion-MNIST (MIT licence).
"""

import argparse
from pathlib import Path

import numpy as np

from sj_ottt.data import write_event_dataset

CLASSES = [
    *("tshirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
]


def load(images: Path | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images [n, 28, 28] (uint8) and labels [n] of the train or the test part.

    Args:
        images: An npz file with `train_images`, `train_labels`, `test_images`, `test_labels`.
        split: "train" or "test".
    """
    if images is not None:
        with np.load(images, allow_pickle=False) as file:
            return file[f"{split}_images"], file[f"{split}_labels"]
    from torchvision.datasets import FashionMNIST

    data = FashionMNIST("downloads", train=split == "train", download=True)
    return data.data.numpy(), data.targets.numpy()


def main() -> None:
    """Write the recordings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--images", type=Path, help="npz file with the images")
    parser.add_argument("--train", type=int, default=12_000, help="the first n training images")
    parser.add_argument("--test", type=int, default=2_000, help="the first n test images")
    args = parser.parse_args()
    for split, n in (("train", args.train), ("test", args.test)):
        images, labels = load(args.images, split)
        write_event_dataset(
            args.out, images[:n], labels[:n].tolist(), CLASSES, split=split, progress=True
        )
        print(f"{min(n, len(images))} recordings in {args.out / split}")


if __name__ == "__main__":
    main()
