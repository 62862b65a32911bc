"""The embedded data set ``ndigits``: real handwritten digits before a simulated event camera.

The 1,797 images of 8 x 8 pixels that come with scikit-learn, recorded by a sensor of 34 x 34 pixels
(`sj_ottt.data.simulate.camera`). No network is needed.
"""

import os
from pathlib import Path

import numpy as np

from sj_ottt._files import atomic_folder, cache_root
from sj_ottt.data.simulate.datasets import write_event_dataset
from sj_ottt.errors import InputError

# Part of the folder's name: raise it when the recordings would come out differently.
_VERSION = 1
_TEST_FRACTION = 0.2


def ndigits_root(cache_dir: str | os.PathLike | None = None) -> Path:
    """Return the folder of the recordings, with train/ and test/, made on first use.

    The same recordings on every machine, about 80% of each digit for training. The folder appears
    complete or not at all, and two processes may make it at once.

    Args:
        cache_dir: Where to keep it, see `cache_root`.

    Raises:
        InputError: The cache's folder cannot be written.
    """
    root = cache_root(cache_dir) / f"ndigits-v{_VERSION}"
    if root.is_dir():
        return root
    try:
        with atomic_folder(root) as folder:
            _record(folder)
    except OSError as error:
        # A folder cannot be renamed onto a full one: another process was faster, with equal bytes.
        if not root.is_dir():
            raise InputError(
                f"{root}: cannot be made ({error.strerror or error}); free some space, or choose "
                "another folder with SJ_OTTT_CACHE"
            ) from error
    return root


def _record(root: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images / 16, digits.target
    is_test = _stratified(labels, _TEST_FRACTION)
    for split, chosen in (("train", ~is_test), ("test", is_test)):
        write_event_dataset(
            root,
            images[chosen],
            labels[chosen],
            [str(digit) for digit in range(10)],
            split=split,
            progress=True,
        )


def _stratified(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Mark about ``fraction`` of each class for testing, by a fixed draw: bool [n]."""
    rng = np.random.default_rng(0)
    marked = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        marked[members[: round(len(members) * fraction)]] = True
    return marked
