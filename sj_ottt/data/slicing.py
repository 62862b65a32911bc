"""Long recordings cut into labelled samples, with a split that separates no overlapping windows."""

import csv
import dataclasses
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sj_ottt.data.events import check_events, extent, write_events
from sj_ottt.data.labels import Labelled, Stretch
from sj_ottt.data.layout import PARTS, digest
from sj_ottt.data.readers import read_recording, recording_suffixes
from sj_ottt.errors import InputError
from sj_ottt.files import atomic_write, temporary_sibling

SLICE_SPLITS = ("recording", "session", "time")


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


@dataclass
class SliceResult:
    """What `slice_recordings` made.

    Attributes:
        parts: The windows of ``"train"`` and of ``"test"``.
        sensor_size: (height, width).
        left_out: How many windows or stretches gave no sample, by the reason.
    """

    parts: dict[str, list[Window]]
    sensor_size: tuple[int, int]
    left_out: Counter = field(default_factory=Counter)


def find_recordings(places: Sequence[str | os.PathLike]) -> list[Path]:
    """List recordings: files as given, folders searched to any depth, each file once.

    Hidden files and folders, and in folders files with an ending that no reader knows, are passed
    over.

    Raises:
        InputError: A place is missing, or a folder holds no recordings.
    """
    suffixes = recording_suffixes()
    found: dict[Path, Path] = {}
    for place in map(Path, places):
        if place.is_dir():
            inside = sorted(
                path
                for path in place.rglob("*")
                if path.suffix.lower() in suffixes
                and path.is_file()
                and not any(part.startswith(".") for part in path.relative_to(place).parts)
            )
            if not inside:
                raise InputError(
                    f"{place}: holds no recordings; readable are {', '.join(suffixes)}"
                )
        elif place.exists():
            inside = [place]
        else:
            raise InputError(f"{place}: no such recording or folder; check the path")
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


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


def slice_recordings(
    labelled: Sequence[Labelled], out: str | os.PathLike, config: SliceConfig
) -> SliceResult:
    """Cut labelled recordings into windows, and write them as a data set that `EventFolder` reads.

    The folder holds ``train/<class>/`` and ``test/<class>/`` with npz files whose times count from
    their window's start, ``slices.csv`` (which file is which part of which recording), and
    ``dataset.json`` (the sensor's size, how it was cut and split). It appears complete or not at
    all.

    Args:
        labelled: From `read_labels` or `labels_from_folders`.
        out: The folder to make.
        config: How to cut and to split.

    Raises:
        InputError: A wrong recording or stretch; a class without samples, or that cannot be in
            both parts; the folder exists or cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out}: exists already; choose another folder, or remove it")
    temporary = temporary_sibling(out)
    try:
        (temporary / "samples").mkdir(parents=True)
        result = _cut(labelled, temporary, config)
        os.rename(temporary, out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); free some space, or choose "
            "another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return result


def _cut(labelled: Sequence[Labelled], folder: Path, config: SliceConfig) -> SliceResult:
    windows, left_out, height, width = [], Counter(), 1, 1
    for recording in tqdm(labelled, desc="slicing", unit="file", leave=False, disable=None):
        events, size = read_recording(recording.path)
        rows, columns = size or extent(events)
        check_events(events, recording.path, (rows, columns))
        height, width = max(height, rows), max(width, columns)
        t = events["t"] - events["t"][0]
        for stretch in recording.stretches:
            end = _end(stretch, recording.path, int(t[-1]) + 1, config.window)
            starts = window_starts(stretch.start, end, config.window, config.stride)
            firsts, lasts = (np.searchsorted(t, np.array(starts) + i) for i in (0, config.window))
            kept = np.flatnonzero(lasts - firsts >= config.min_events)
            sparse = f"windows with fewer than {config.min_events} events"
            left_out[sparse] += len(starts) - len(kept)
            left_out["labels shorter than a window"] += not starts
            for i in kept:
                sample = events[firsts[i] : lasts[i]].copy()
                sample["t"] = t[firsts[i] : lasts[i]] - starts[i]
                write_events(folder / "samples" / f"{len(windows)}.npz", sample)
                origin = str(recording.path), recording.session, stretch.label
                windows.append(Window(*origin, starts[i], config.window, len(sample)))
    _check_classes(labelled, windows, config)
    part = _split(windows, config)
    left_out["windows at the border of train and test"] += int((part < 0).sum())
    _place(folder, windows, part)
    about = {"sensor_size": [height, width], **dataclasses.asdict(config)}
    with atomic_write(folder / "dataset.json") as file:
        file.write(json.dumps(about, indent=1).encode())
    chosen = {
        name: [window for window, place in zip(windows, part, strict=True) if place == i]
        for i, name in enumerate(PARTS)
    }
    return SliceResult(chosen, (height, width), +left_out)


def _end(stretch: Stretch, path: Path, length: int, window: int) -> int:
    """Return where a stretch ends; `InputError` where that is clearly beyond the recording."""
    end = length if stretch.end is None else stretch.end
    # A label may well be rounded up, and a sensor fall silent before the recording's end.
    if end > length + window or stretch.start >= length:
        raise InputError(
            f"{stretch.source}: reaches from {stretch.start / 1e6:g} s to {end / 1e6:g} s, where "
            f"{path} lasts {length / 1e6:g} s from its first event; mend the times (without a unit "
            "they are µs)"
        )
    return end


def _split(windows: Sequence[Window], config: SliceConfig) -> np.ndarray:
    """Return int8 [n]: 0 for train, 1 for test, -1 for neither."""
    if config.split_by == "time":
        part = split_by_time(windows, config.test_fraction)
    else:
        groups = [getattr(window, config.split_by) for window in windows]
        part = split_by_group(windows, groups, config.test_fraction, config.seed)
    if not (part > 0).any():
        raise InputError(
            f"no windows are left for testing with split_by={config.split_by!r}; give longer or "
            "more recordings, or a shorter window"
        )
    return part


def _check_classes(
    labelled: Sequence[Labelled], windows: Sequence[Window], config: SliceConfig
) -> None:
    labels = {stretch.label for recording in labelled for stretch in recording.stretches}
    if missing := sorted(labels - {w.label for w in windows}):
        raise InputError(
            f"class {missing[0]!r} gives no window of {config.window / 1000:g} ms with at least "
            f"{config.min_events} events; shorten window, lower min_events, or remove the class"
        )


def _place(folder: Path, windows: Sequence[Window], part: np.ndarray) -> None:
    """Move the samples into their class folders, and list them in ``slices.csv``."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("file", "part", "label", "recording", "session", "start", "end", "events"))
    names = _unique_names(sorted({window.recording for window in windows}))
    for i, (w, p) in enumerate(zip(windows, part, strict=True)):
        if p < 0:
            continue
        name = f"{PARTS[p]}/{w.label}/{names[w.recording]}_{w.start}us.npz"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder / "samples" / f"{i}.npz", folder / name)
        end = w.start + w.length
        writer.writerow((name, PARTS[p], w.label, w.recording, w.session, w.start, end, w.events))
    shutil.rmtree(folder / "samples")
    with atomic_write(folder / "slices.csv") as file:
        file.write(table.getvalue().encode())


def _unique_names(recordings: Sequence[str]) -> dict[str, str]:
    """Name recordings by their files' stems, with a number before it where those are not unique."""
    stems = [Path(recording).stem for recording in recordings]
    if len(set(stems)) < len(stems):
        stems = [f"{i:04d}-{stem}" for i, stem in enumerate(stems)]
    return dict(zip(recordings, stems, strict=True))
