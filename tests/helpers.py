"""What several test files share."""

from pathlib import Path

import numpy as np

CLASSES = ("left", "middle", "right")


def write_recordings(root: Path, per_class: dict[str, int], classes=CLASSES) -> Path:
    """Write npz recordings of 16 x 16 pixels: events in a vertical band, the class says where."""
    rng = np.random.default_rng(0)
    for split, count in per_class.items():
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                n = 240
                x = np.clip(rng.normal(3 + 5 * label, 1.5, n).round(), 0, 15)
                y = rng.integers(0, 16, n)
                x[:2], y[:2] = (0, 15), (0, 15)  # the corners, so that every sensor is as large
                np.savez(
                    folder / f"{index}.npz",
                    t=np.sort(rng.integers(0, 100_000, n)),
                    x=x.astype(np.int64),
                    y=y,
                    p=rng.integers(0, 2, n),
                )
    return root
