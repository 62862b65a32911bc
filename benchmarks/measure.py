"""How things are measured: interleaved medians, and live bytes counted by watching storages."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from sj_ottt.learning.passes.living import LivingBytes


def interleaved_medians(
    runs: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1
) -> dict[str, float]:
    """Time several runs in turn, so that a busy machine slows all of them alike.

    Args:
        runs: Name → what to run.
        repeats: Timed rounds.
        warm_up: Rounds before them that are not timed.

    Returns:
        Name → median seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(warm_up + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_ >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the largest number of bytes that are alive at once in tensors made by `run`."""
    with LivingBytes() as mode:
        run()
    return mode.peak


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the least-squares slope of y over x."""
    return statistics.linear_regression(xs, ys).slope
