"""Which samples are for training, for validation and for testing, and a balanced choice of them.

Windows of one recording may overlap: they are split so that no two of different parts share an
event.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from sj_ottt.data.recordings.folders import digest
from sj_ottt.data.recordings.windows import Window
from sj_ottt.errors import InputError

__all__ = [
    "choose_samples",
    "split_by_group",
    "split_by_time",
    "split_for_validation",
    "split_samples",
]

# With fewer recordings of a class, a whole one is too much to give away for validation.
_RECORDINGS_TO_SPARE = 5


def choose_samples(targets: np.ndarray, n: int | None, seed: int) -> np.ndarray:
    """Choose n samples, as many of each class as of any other while they last; None: all.

    A larger n adds to the choice of a smaller one.

    Args:
        targets: Class of each sample, int64 [all].
        n: How many to choose.
        seed: Of the draw within each class.

    Returns:
        Sorted indices.
    """
    if n is None:
        return np.arange(len(targets))
    order = np.random.default_rng(seed).permutation(len(targets))
    rank = np.empty(len(targets), np.int64)
    for label in np.unique(targets):
        members = order[targets[order] == label]
        rank[members] = np.arange(len(members))
    return np.sort(np.lexsort((targets, rank))[:n])


def split_samples(
    targets: np.ndarray, fraction: float, seed: int, windows: Sequence[Window] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split samples into train and validation, the same share of each class.

    Args:
        targets: Class of each sample, int64 [n].
        fraction: Share for validation; above 0, each class with two samples gives at least one.
        seed: The split depends on nothing else.
        windows: What the samples are of longer recordings [n], if they are: they may overlap, so
            they part as `split_for_validation` says.

    Returns:
        Sorted indices of both parts.
    """
    if windows is not None and fraction:
        part = split_for_validation(windows, fraction, seed)
        return np.flatnonzero(part == 0), np.flatnonzero(part == 1)
    rng = np.random.default_rng(seed)
    validation = []
    for label in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == label))
        wanted = max(1, round(fraction * len(members))) if fraction else 0
        validation.append(members[: min(wanted, len(members) - 1)])
    chosen = np.sort(np.concatenate(validation))
    return np.setdiff1d(np.arange(len(targets)), chosen), chosen


def split_by_group(
    windows: Sequence[Window], groups: Sequence[Hashable], test_fraction: float, seed: int
) -> np.ndarray:
    """Choose whole groups for testing, so that about ``test_fraction`` of each class is in them.

    Groups are taken in an order drawn by the seed, each for testing where that brings the numbers
    of test windows, summed over the classes, nearer to the wanted ones; every class keeps a group
    to train with. A class that is left without test windows then gets its smallest group that can
    be spared.

    Args:
        windows: The samples [n].
        groups: The group of each, such as its recording [n].
        test_fraction: The wanted share of each class.
        seed: Of the order.

    Returns:
        int8 [n]: 1 for testing, 0 for training.

    Raises:
        InputError: All windows of a class are in one group.
    """
    counts: dict[Hashable, Counter[str]] = {}
    for window, group in zip(windows, groups, strict=True):
        counts.setdefault(group, Counter())[window.label] += 1
    total: Counter[str] = sum(counts.values(), Counter())
    for label in total:
        if sum(label in group for group in counts.values()) < 2:
            raise InputError(
                f"class {label!r} occurs in a single recording or session, so it cannot be in both "
                "train and test; record more of it, or split by time"
            )
    wanted = {label: test_fraction * n for label, n in total.items()}
    tests: set[Hashable] = set()
    tested: Counter[str] = Counter()

    def spared(group: Hashable) -> bool:
        others = [labels for name, labels in counts.items() if name not in tests | {group}]
        return all(any(label in labels for labels in others) for label in counts[group])

    for group in sorted(counts, key=lambda group: digest(seed, str(group))):
        gain = sum(
            abs(tested[label] - wanted[label]) - abs(tested[label] + n - wanted[label])
            for label, n in counts[group].items()
        )
        if gain > 0 and spared(group):
            tests.add(group)
            tested += counts[group]
    for label in sorted(total):
        if not tested[label]:
            able = [group for group in counts if label in counts[group] and spared(group)]
            if able:
                tests.add(smallest := min(able, key=lambda group: counts[group].total()))
                tested += counts[smallest]
    return np.array([group in tests for group in groups], np.int8)


def split_by_time(windows: Sequence[Window], test_fraction: float) -> np.ndarray:
    """Take the last windows of each class in each recording for testing, with a gap before them.

    Args:
        windows: The samples [n].
        test_fraction: The wanted share of each class in each recording.

    Returns:
        int8 [n]: 1 for testing, 0 for training, -1 for windows that overlap the first test window
        of their class and recording, and so belong to neither. Where a class in a recording has too
        few windows for both, all are for training.
    """
    part = np.zeros(len(windows), np.int8)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, window in enumerate(windows):
        groups.setdefault((window.recording, window.label), []).append(i)
    for unsorted in groups.values():
        members = np.array(sorted(unsorted, key=lambda i: windows[i].start))
        starts = np.array([windows[i].start for i in members])
        ends = starts + np.array([windows[i].length for i in members])
        first_test = len(members) - max(1, round(len(members) * test_fraction))
        before = ends <= starts[first_test]
        if before.any():
            part[members[first_test:]] = 1
            part[members[:first_test][~before[:first_test]]] = -1
    return part


def split_for_validation(windows: Sequence[Window], fraction: float, seed: int) -> np.ndarray:
    """Keep training windows aside so that none shares an event with one that is learned from.

    Whole recordings where every class is in five or more (`split_by_group`), else the end of every
    recording (`split_by_time`).

    Args:
        windows: The samples [n].
        fraction: The wanted share of each class for validation.
        seed: Of the choice of recordings.

    Returns:
        int8 [n]: 1 for validation, 0 for training, -1 for neither.
    """
    recordings: dict[str, set[str]] = {}
    for window in windows:
        recordings.setdefault(window.label, set()).add(window.recording)
    if min(map(len, recordings.values())) < _RECORDINGS_TO_SPARE:
        return split_by_time(windows, fraction)
    return split_by_group(windows, [w.recording for w in windows], fraction, seed)
