"""The cache of event counts: one memory-mapped ``.npy`` for the recordings of one data set."""

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np

from sj_ottt._files import abandoned_siblings, atomic_write
from sj_ottt.errors import InputError

# Narrowest first: a byte holds nearly every data set, in a quarter of the space.
_COUNT_TYPES = (np.dtype("u1"), np.dtype("<u2"), np.dtype("<i4"))


def open_counts(path: Path, shape: tuple[int, ...]) -> np.memmap | None:
    """Map a cache file, read-only; None where it is missing, damaged or of another shape."""
    try:
        counts = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # however it is damaged, the cure is to build it again
        return None
    return counts if counts.shape == shape and counts.dtype in _COUNT_TYPES else None


def cached_counts(
    directory: Path,
    key: str,
    content: str,
    shape: tuple[int, ...],
    samples: Callable[[], Generator[np.ndarray, None, None]],
) -> tuple[Path, np.memmap]:
    """Return the path of the counts and the counts, building the file where that is needed.

    A kill at any moment leaves the old file, the new one or none; two processes that build at once
    write the same bytes under names of their own, and the later rename wins.

    Args:
        directory: The cache's folder, made where it is missing.
        key: Stands for the data set and its parameters.
        content: Stands for the recordings as they are now; files of the same key and another
            content are stale, and removed.
        shape: [n, T, 2, H, W].
        samples: Starts an iteration over n counts [T, 2, H, W], none negative.

    Raises:
        InputError: The folder cannot be written; or whatever ``samples`` raises. Nothing
            half-written is left behind.
    """
    path = directory / f"{key}-{content}.npy"
    counts = open_counts(path, shape)
    if counts is None:
        next(dtype for dtype in _COUNT_TYPES if _build(path, shape, dtype, samples()))
        if (counts := open_counts(path, shape)) is None:
            raise InputError(f"{path}: the cache was removed while in use; start again")
        for stale in directory.glob(f"{key}-*.npy"):
            # Another process may be removing the same file.
            with contextlib.suppress(OSError):
                if stale != path:
                    stale.unlink()
        for leftover in abandoned_siblings(path):
            with contextlib.suppress(OSError):
                leftover.unlink()
    return path, counts


def _build(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, samples: Generator[np.ndarray, None, None]
) -> bool:
    """Write the counts as ``dtype``; False, and no file, where a count does not fit."""
    largest = np.iinfo(dtype).max
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    try:
        # Plain writes: on a full disk they raise, where writes through a memory map kill us.
        with contextlib.closing(samples), atomic_write(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for counts in samples:
                if counts.max() > largest:
                    raise OverflowError
                file.write(counts.astype(dtype).tobytes())
    except OverflowError:
        return False
    return True
