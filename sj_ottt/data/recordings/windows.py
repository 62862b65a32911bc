"""How recordings are cut into windows, and windows split so that no overlapping ones part."""

import csv
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.folders import SLICES, digest
from sj_ottt.errors import InputError

SLICE_SPLITS = ("recording", "session", "time")
# With fewer recordings of a class, a whole one is too much to give away for validation.
_RECORDINGS_TO_SPARE = 5


@dataclass(frozen=True)
class Window:
    """One sample: the events of ``recording`` with ``start <= t < start + length``, in µs.

    ``start`` counts from the recording's first event.
    """

    recording: str
    session: str
    label: str
    start: int
    length: int
    events: int


@dataclass(frozen=True)
class SliceConfig:
    """How to cut recordings, and to split the samples.

    Attributes:
        window: Length of a sample in µs.
        stride: From one window's start to the next one's, in µs.
        min_events: Windows with fewer events are left out.
        split_by: What keeps train and test apart: ``"recording"`` and ``"session"`` give whole
            recordings or sessions to either, see `split_by_group`; ``"time"`` tests on the end of
            every recording, see `split_by_time`.
        test_fraction: The wanted share of test windows.
        seed: Of the choice of recordings or sessions.

    Raises:
        InputError: A value is out of range.
    """

    window: int
    stride: int
    min_events: int
    split_by: str = "recording"
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("window", "stride", "min_events"):
            if getattr(self, name) < 1:
                unit = "" if name == "min_events" else " µs"
                raise InputError(f"{name}={getattr(self, name)}: give at least 1{unit}")
        if self.split_by not in SLICE_SPLITS:
            raise InputError(f"split_by={self.split_by!r}: choose one of {', '.join(SLICE_SPLITS)}")
        if not 0 < self.test_fraction < 1:
            raise InputError(f"test_fraction={self.test_fraction}: give a number between 0 and 1")


def window_starts(start: int, end: int, window: int, stride: int) -> range:
    """Return where windows begin that lie wholly within [``start``, ``end``), ``stride`` apart."""
    return range(start, end - window + 1, stride)


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
    counts: dict[Hashable, Counter] = {}
    for window, group in zip(windows, groups, strict=True):
        counts.setdefault(group, Counter())[window.label] += 1
    total = sum(counts.values(), Counter())
    for label in total:
        if sum(label in group for group in counts.values()) < 2:
            raise InputError(
                f"class {label!r} occurs in a single recording or session, so it cannot be in both "
                "train and test; record more of it, or split by time"
            )
    wanted = {label: test_fraction * n for label, n in total.items()}
    tests: set[Hashable] = set()
    held = Counter()

    def spared(group: Hashable) -> bool:
        others = [labels for name, labels in counts.items() if name not in tests | {group}]
        return all(any(label in labels for labels in others) for label in counts[group])

    for group in sorted(counts, key=lambda group: digest(seed, str(group))):
        gain = sum(
            abs(held[label] - wanted[label]) - abs(held[label] + n - wanted[label])
            for label, n in counts[group].items()
        )
        if gain > 0 and spared(group):
            tests.add(group)
            held += counts[group]
    for label in sorted(total):
        if not held[label]:
            able = [group for group in counts if label in counts[group] and spared(group)]
            if able:
                tests.add(smallest := min(able, key=lambda group: counts[group].total()))
                held += counts[smallest]
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
    for members in groups.values():
        members = np.array(sorted(members, key=lambda i: windows[i].start))
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

    Returns:
        int8 [n]: 1 for validation, 0 for training, -1 for neither.
    """
    recordings: dict[str, set[str]] = {}
    for window in windows:
        recordings.setdefault(window.label, set()).add(window.recording)
    if min(map(len, recordings.values())) < _RECORDINGS_TO_SPARE:
        return split_by_time(windows, fraction)
    return split_by_group(windows, [w.recording for w in windows], fraction, seed)


def read_slices(root: Path) -> dict[str, Window] | None:
    """Return the window that each file of a sliced data set is; None for any other data set.

    Raises:
        InputError: The list of windows is damaged.
    """
    path = root / SLICES
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["file"]: _window(row) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is damaged ({type(error).__name__}: {error}); slice the recordings again"
        ) from error


def _window(row: dict[str, str]) -> Window:
    start = int(row["start"])
    origin = row["recording"], row["session"], row["label"]
    return Window(*origin, start, int(row["end"]) - start, int(row["events"]))
