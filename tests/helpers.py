"""What several test files share."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from sj_ottt.data.recordings.windows import Window
from sj_ottt.run.checkpoint import load_checkpoint

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
    (root / "dataset.json").write_text('{"sensor_size": [16, 16]}')
    return root


def weights(out, name="last") -> dict[str, torch.Tensor]:
    return load_file(Path(out) / f"{name}.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def assert_same_run(first, second):
    """The two folders hold the same result, bit for bit, but for the time it took."""
    for name in ("last", "best"):
        assert same(weights(first, name), weights(second, name))
    a, b = load_checkpoint(first), load_checkpoint(second)
    for key in ("history", "epoch", "data_digest"):
        assert a[key] == b[key]
    moments = [state["optimizer"]["state"] for state in (a, b)]
    assert all(same(moments[0][i], moments[1][i]) for i in moments[0])
    results = [json.loads((Path(out) / "result.json").read_text()) for out in (first, second)]
    for result in results:
        del result["seconds"], result["config"]["out"]
    assert results[0] == results[1]
    assert not [p for p in Path(second).iterdir() if p.name.startswith(".")]


def overlap(a: Window, b: Window) -> bool:
    """Whether two windows share a moment of the same recording."""
    return a.recording == b.recording and max(a.start, b.start) < min(
        a.start + a.length, b.start + b.length
    )
