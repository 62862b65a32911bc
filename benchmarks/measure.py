"""How things are measured: interleaved medians, and live bytes counted by watching storages."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


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


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations inside the context made and that still live.

    Storages that are gone after an operation are no longer counted; `peak` is the largest sum seen.
    Memory that an operation uses and frees within itself is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run one operation and count the storages that it made."""
        out = func(*args, **(kwargs or {}))
        # A view of a tensor from outside, or an update in place of one, makes no memory.
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in given or storage._cdata in self._live:
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._live = {k: v for k, v in self._live.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_iter(tree) if isinstance(x, torch.Tensor)]


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the largest number of bytes that are alive at once in tensors made by `run`."""
    with PeakBytes() as mode:
        run()
    return mode.peak


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the least-squares slope of y over x."""
    return statistics.linear_regression(xs, ys).slope
