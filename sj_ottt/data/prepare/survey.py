"""What recordings hold: counts, durations, rates, classes, hot pixels, and frames to look at."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sj_ottt.data.frames.hot_pixels import hot_pixels
from sj_ottt.data.recordings.events import LARGEST_SENSOR, check_events, extent
from sj_ottt.data.recordings.folders import find_recordings, scan
from sj_ottt.data.recordings.readers import read_recording
from sj_ottt.data.sets.event_folder import described_size
from sj_ottt.errors import InputError


@dataclass(frozen=True)
class RecordingInfo:
    """What one recording holds.

    Attributes:
        path: The file.
        label: Its class, "" where it has none.
        part: ``"train"``, ``"test"``, or "" where the data set is not split by folders.
        events: How many.
        on_events: How many of polarity 1.
        duration: From the first event to the last, in µs.
    """

    path: Path
    label: str
    part: str
    events: int
    on_events: int
    duration: int

    @property
    def rate(self) -> float:
        """Events per second; 0 where all events are of one time."""
        return self.events / (self.duration / 1e6) if self.duration else 0.0


@dataclass(frozen=True)
class Survey:
    """What a file or folder of recordings holds.

    Attributes:
        recordings: One entry a recording that can be read.
        problems: Why the others cannot be used.
        sensor_size: (height, width), the smallest that holds every recording, or what a
            ``dataset.json`` says.
        pixel_counts: Events of each pixel over all recordings, int64 [H, W].
        times_hot: In how many recordings each pixel is hot, see `hot_pixels`, int64 [H, W].
    """

    recordings: tuple[RecordingInfo, ...]
    problems: tuple[str, ...]
    sensor_size: tuple[int, int]
    pixel_counts: np.ndarray
    times_hot: np.ndarray

    def hot(self, share: float = 0.1) -> np.ndarray:
        """Return the pixels (y, x) [n, 2] hot in at least this share of recordings, worst first."""
        least = max(1, share * len(self.recordings))
        found = np.argwhere(self.times_hot >= least)
        return found[np.argsort(-self.times_hot[tuple(found.T)], kind="stable")]


def survey_recordings(path: str | os.PathLike) -> Survey:
    """Read one recording, a folder of classes (see `EventFolder`), or a folder of recordings.

    Raises:
        InputError: The path is missing, or none of its recordings can be read.
    """
    root = Path(path)
    found: list[RecordingInfo] = []
    problems: list[str] = []
    described = described_size(root) if root.is_dir() else None
    # Events of each pixel, and in how many recordings it is hot.
    totals = np.zeros((2, *(described or (1, 1))), np.int64)
    sources = tqdm(_sources(root), desc="reading", unit="file", leave=False, disable=None)
    for file, label, part in sources:
        try:
            events, stated = read_recording(file)
            size = described or stated or extent(events)
            check_events(events, file, size)
            if max(size) > LARGEST_SENSOR:
                raise InputError(f"{file}: {size[0]} x {size[1]} pixels; mend the recording")
        except InputError as error:
            problems.append(str(error))
            continue
        grown = [max(0, new - old) for new, old in zip(size, totals.shape[1:], strict=True)]
        totals = np.pad(totals, [(0, 0), *((0, n) for n in grown)])
        cells = events["y"].astype(np.int64) * size[1] + events["x"]
        counts = np.bincount(cells, minlength=size[0] * size[1]).reshape(size)
        totals[0, : size[0], : size[1]] += counts
        totals[1, : size[0], : size[1]] += hot_pixels(counts, size)
        duration, on_events = int(events["t"][-1] - events["t"][0]), int(events["p"].sum())
        found.append(RecordingInfo(file, label, part, len(events), on_events, duration))
    if not found:
        raise InputError(problems[0])
    return Survey(tuple(found), tuple(problems), totals.shape[1:], *totals)


def evenly(items: Sequence, n: int) -> list:
    """Take n of the items, from the first to the last at equal distances; all where there are n."""
    indices = np.unique(np.linspace(0, len(items) - 1, n).round().astype(int))
    return [items[i] for i in indices]


def busiest_frames(
    path: Path, sensor_size: tuple[int, int], steps: int, step_us: int, largest_side: int
) -> np.ndarray:
    """Count the events of a recording's busiest stretch in frames of equal duration.

    Args:
        path: The recording.
        sensor_size: (height, width) in pixels.
        steps: T at most; a shorter recording gives fewer frames.
        step_us: Duration of a frame in µs.
        largest_side: Larger sensors are binned down to so many pixels at most, by whole factors.

    Returns:
        Counts, int64 [T, 2, H, W].
    """
    events = read_recording(path).events
    t = events["t"] - events["t"][0]
    steps = min(steps, int(t[-1]) // step_us + 1)
    ends = np.searchsorted(t, t + steps * step_us)
    first = int((ends - np.arange(len(t))).argmax())
    events, t = events[first : ends[first]], t[first : ends[first]] - t[first]
    factor = -(-max(sensor_size) // largest_side)
    height, width = (-(-side // factor) for side in sensor_size)
    frame = t // step_us * 2 + events["p"]
    cells = (frame * height + events["y"] // factor) * width + events["x"] // factor
    counts = np.bincount(cells, minlength=steps * 2 * height * width)
    return counts.reshape(steps, 2, height, width)


def _sources(root: Path) -> list[tuple[Path, str, str]]:
    """List recordings with their class and part."""
    if root.is_dir():
        try:
            parts = scan(root)
        except InputError:
            # No folders of classes: recordings not yet labelled.
            return [(path, "", "") for path in find_recordings([root])]
        return [
            (root / file, label, part)
            for part, classes in parts.items()
            for label, files in sorted(classes.items())
            for file in files
        ]
    return [(path, "", "") for path in find_recordings([root])]
