"""What recordings hold: counts, durations, rates, classes, hot pixels, and frames to look at."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from sj_ottt.data.frames.hot_pixels import hot_pixels
from sj_ottt.data.prepare.film import Film, fitted
from sj_ottt.data.recordings.events import extent
from sj_ottt.data.recordings.folders import find_recordings, scan
from sj_ottt.data.recordings.readers import open_recording
from sj_ottt.data.recordings.sensor import Seen, agree
from sj_ottt.data.recordings.source import ReadOptions
from sj_ottt.data.recordings.walk import walk
from sj_ottt.data.sets.event_folder import described_size
from sj_ottt.errors import InputError

_STILL_SIDE = 160
_DEFAULT = ReadOptions()


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


class Motion(NamedTuple):
    """The busiest two seconds of a recording, see `Film`.

    Attributes:
        counts: Events in frames of equal duration, int32 [T, 2, H, W].
        step_us: Duration of a frame in µs.
        recording: Whose they are.
    """

    counts: np.ndarray
    step_us: int
    recording: RecordingInfo


@dataclass(frozen=True)
class Survey:
    """What a file or folder of recordings holds.

    Attributes:
        recordings: One entry a recording that can be read.
        problems: Why the others cannot be used.
        sensor_size: (height, width), see `survey_recordings`.
        pixel_counts: Events of each pixel over all recordings, int64 [H, W].
        times_hot: In how many recordings each pixel is hot, see `hot_pixels`, int64 [H, W].
        stills: The busiest 32 ms of some recordings of each class, int32 [2, H, W].
        motion: A recording of middling size as it passes; None where no pictures were wanted.
    """

    recordings: tuple[RecordingInfo, ...]
    problems: tuple[str, ...]
    sensor_size: tuple[int, int]
    pixel_counts: np.ndarray
    times_hot: np.ndarray
    stills: dict[str, list[np.ndarray]] = field(default_factory=dict)
    motion: Motion | None = None

    def hot(self, share: float = 0.1) -> np.ndarray:
        """Return the pixels (y, x) [n, 2] hot in at least this share of recordings, worst first."""
        least = max(1, share * len(self.recordings))
        found = np.argwhere(self.times_hot >= least)
        return found[np.argsort(-self.times_hot[tuple(found.T)], kind="stable")]


def survey_recordings(
    path: str | os.PathLike, options: ReadOptions = _DEFAULT, *, stills: int = 0
) -> Survey:
    """Read one recording, a folder of classes (see `EventFolder`), or a folder of recordings.

    Each file is read once, block by block, so that recordings of any length pass in constant
    memory.

    Args:
        path: The file or folder.
        options: How to read it. Where neither they, a ``dataset.json`` nor the files state the
            sensor's size, the smallest usual sensor that holds every event is taken, with a
            warning.
        stills: Pictures of so many recordings of each class are kept, and one in motion.

    Raises:
        InputError: The path is missing, none of its recordings can be read, or the sensor's size
            would have to be assumed, and ``options.strict`` is set.
    """
    root = Path(path)
    described = described_size(root) if root.is_dir() else None
    options = dataclasses.replace(options, sensor_size=options.sensor_size or described)
    sources = _sources(root)
    shown, moving = _to_draw(sources, stills)
    problems: list[str] = []
    found: list[tuple[RecordingInfo, Seen]] = []
    drawn: dict[str, list[tuple[np.ndarray, int]]] = {}
    motion: Motion | None = None
    factor = 1
    # Events of each pixel, and in how many recordings it is hot.
    totals = np.zeros((2, 1, 1), np.int64)
    for file, label, part in tqdm(sources, desc="reading", unit="file", leave=False, disable=None):
        # Where the first of a class cannot be read, the next one is drawn in its place.
        film = Film() if stills and (file in shown or label not in drawn) else None
        try:
            info, seen, counts = _look((file, label, part), options, film)
        except InputError as error:
            problems.append(str(error))
            continue
        found.append((info, seen))
        height, width = counts.shape
        totals = _grown(totals, (height, width))
        totals[:, :height, :width] += np.stack([counts, hot_pixels(counts, (height, width))])
        if film is None:
            continue
        drawn.setdefault(label, []).append(film.still())
        if motion is None or file == moving:
            frames, factor = film.motion()
            motion = Motion(frames, film.step_us, info)
    if not found:
        raise InputError(problems[0])
    sensor = agree(root, [seen for _, seen in found], described=root.is_dir())
    size = sensor.said(strict=options.strict)
    if motion is not None:
        motion = motion._replace(counts=fitted(motion.counts, factor, size, factor))
    infos = tuple(info for info, _ in found)
    pixel_counts, times_hot = _grown(totals, size)
    drawings = _alike(drawn, size)
    return Survey(infos, tuple(problems), size, pixel_counts, times_hot, drawings, motion)


def evenly(items: Sequence, n: int) -> list:
    """Take n of the items, from the first to the last at equal distances; all where there are n."""
    indices = np.unique(np.linspace(0, len(items) - 1, n).round().astype(int))
    return [items[i] for i in indices]


def _to_draw(
    sources: Sequence[tuple[Path, str, str]], stills: int
) -> tuple[set[Path], Path | None]:
    """Choose recordings to draw, before any is read: evenly from each class, and one in motion."""
    if not stills:
        return set(), None
    by_label: dict[str, list[Path]] = {}
    for file, label, _ in sources:
        by_label.setdefault(label, []).append(file)
    shown = {file for files in by_label.values() for file in evenly(files, stills)}
    by_size = sorted(shown, key=lambda file: (file.stat().st_size, file))
    return shown, by_size[len(by_size) // 2]


def _look(
    source: tuple[Path, str, str], options: ReadOptions, film: Film | None
) -> tuple[RecordingInfo, Seen, np.ndarray]:
    """Read a recording once: what it holds, its sensor, and the events of each pixel [H, W]."""
    file, label, part = source
    recording = open_recording(file, options)
    counts = np.zeros(recording.sensor_size or (1, 1), np.int64)
    n = on_events = 0
    first = last = None
    for events in walk(recording):
        counts = _grown(counts, extent(events))
        cells = events["y"].astype(np.int64) * counts.shape[1] + events["x"]
        np.add.at(counts.reshape(-1), cells, 1)  # blocks are smaller than a large sensor
        n, on_events = n + len(events), on_events + int(np.count_nonzero(events["p"]))
        first = int(events["t"][0]) if first is None else first
        last = int(events["t"][-1])
        if film is not None:
            film.add(events)
    assert first is not None and last is not None  # or `walk` has raised
    info = RecordingInfo(file, label, part, n, on_events, last - first)
    height, width = counts.shape
    return info, Seen(str(file), recording.sensor_size, (height, width)), counts


def _grown(counts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return counts [..., H, W] with zeros below and to the right, so that they have this size."""
    missing = [max(0, new - old) for new, old in zip(size, counts.shape[-2:], strict=True)]
    if not any(missing):
        return counts
    return np.pad(counts, [*[(0, 0)] * (counts.ndim - 2), *((0, n) for n in missing)])


def _alike(
    drawn: dict[str, list[tuple[np.ndarray, int]]], size: tuple[int, int]
) -> dict[str, list[np.ndarray]]:
    """Bring pictures to one size, with at most 160 pixels a side."""
    factor = max((factor for stills in drawn.values() for _, factor in stills), default=1)
    while max(size) > factor * _STILL_SIDE:
        factor *= 2
    return {
        label: [fitted(counts, own, size, factor) for counts, own in stills]
        for label, stills in drawn.items()
    }


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
