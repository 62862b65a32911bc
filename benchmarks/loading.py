"""How fast recordings and frames are simulated, put into the cache and read from it."""

import argparse
import itertools
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import interleaved_medians
from sj_ottt.data import (
    EVENT_DTYPE,
    Compose,
    DropEvents,
    EventFolder,
    JitterTime,
    NormalizeFrames,
    RandomFlip,
    RandomRotation,
    RandomShift,
    Saccade,
    apply_to_batch,
    saccade_events,
    write_events,
)
from sj_ottt.data.loading import BatchLoader, Pass, to_device

SIZE, STEPS = (48, 48), 10
EVENTS = 10_000  # of a recording: twice as many as N-MNIST's have
TRANSFORMS = {
    "counts": [],
    "normalized": [NormalizeFrames()],
    "flip, rotation, shift": [RandomFlip(), RandomRotation(10), RandomShift(3), NormalizeFrames()],
    "all augmentations": [
        DropEvents(0.3),
        JitterTime(0.5),
        RandomFlip(),
        RandomRotation(10),
        RandomShift(3),
        NormalizeFrames(),
    ],
}
CAMERAS = {
    "contrast and mismatch": {},
    "and leak": {"leak_hz": 0.1},
    "and shot noise": {"noise_hz": 5},
    "and a refractory time": {"refractory_us": 5_000},
    "all of them": {"leak_hz": 0.1, "noise_hz": 5, "refractory_us": 5_000},
}


def simulating(args: argparse.Namespace) -> list[dict]:
    """Milliseconds to simulate a recording of 34 x 34 pixels and 300 ms, of a noise image.

    The image of 28 x 28 pixels gives about four times the events of an N-MNIST recording.
    """
    image = np.random.default_rng(0).random((28, 28))
    runs = {
        name: lambda camera=camera: saccade_events(image, **camera)
        for name, camera in CAMERAS.items()
    }
    seconds = interleaved_medians(runs, args.repeats)
    return [
        {"effects": name, "events": len(runs[name]()), "ms": f"{1000 * s:.1f}"}
        for name, s in seconds.items()
    ]


def saccades(args: argparse.Namespace) -> list[dict]:
    """Samples per second that Saccade makes events of, of noise images on --device."""
    runs = {}
    for (n, channels, side), steps in itertools.product(
        ((128, 1, 28), (128, 3, 64), (1, 3, 64)), (1, 4, 10)
    ):
        images = torch.rand(n, channels, side, side, device=args.device)
        runs[n, f"{channels} x {side} x {side}", steps] = partial(Saccade(steps), images)
    seconds = interleaved_medians(runs, args.repeats)
    return [
        {"batch": n, "image": image, "T": steps, "samples/s": f"{n / s:.0f}"}
        for (n, image, steps), s in seconds.items()
    ]


def loading(args: argparse.Namespace) -> list[dict]:
    """Samples per second, T = 10, 48 x 48 pixels: read from the cache in batches of 32, and built.

    Samples are changed one by one where they are loaded, or whole batches on --device. Each takes
    all of --samples recordings of random events. The loader's processes live on from one repetition
    to the next, as from epoch to epoch.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_random(root / "data", args.samples)
        data = _open(root, "kept")
        runs = {}
        for (name, chain), workers in itertools.product(TRANSFORMS.items(), args.workers):
            dataset = _open(root, "kept", transform=Compose(chain))
            loader = BatchLoader(dataset, batch_size=32, workers=workers).one_pass()
            runs[name, workers] = lambda loader=loader: sum(len(y) for _, y in loader)
            if chain:
                loader = BatchLoader(data, batch_size=32, workers=workers).one_pass()
                runs[f"{name}, by the batch", workers] = partial(
                    _by_the_batch, loader, chain, torch.device(args.device)
                )
        for workers in args.workers:
            runs["building the cache", workers] = lambda workers=workers: _build(root, workers)
        seconds = interleaved_medians(runs, args.repeats)
        return [
            {"what": what, "workers": workers, "samples/s": f"{len(data) / s:.0f}"}
            for (what, workers), s in seconds.items()
        ]


def _by_the_batch(loader: Pass, chain: list, device: torch.device) -> None:
    for batch in loader:
        apply_to_batch(chain, to_device(batch, device)[0])


def _write_random(root: Path, n: int) -> None:
    """Write n recordings of random events, in two classes."""
    rng = np.random.default_rng(0)
    events = np.empty(EVENTS, EVENT_DTYPE)
    for i in range(n):
        events["t"] = np.sort(rng.integers(0, 300_000, EVENTS))
        events["y"] = rng.integers(0, SIZE[0], EVENTS)
        events["x"] = rng.integers(0, SIZE[1], EVENTS)
        events["p"] = rng.integers(0, 2, EVENTS)
        (root / str(i % 2)).mkdir(parents=True, exist_ok=True)
        write_events(root / str(i % 2) / f"{i}.npz", events)


def _open(root: Path, cache: str, **kwargs) -> EventFolder:
    return EventFolder(root / "data", STEPS, sensor_size=SIZE, cache_dir=root / cache, **kwargs)


def _build(root: Path, workers: int) -> None:
    _open(root, "fresh", workers=workers)
    shutil.rmtree(root / "fresh")
