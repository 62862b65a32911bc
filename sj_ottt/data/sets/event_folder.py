"""A folder of classes of event recordings as a PyTorch data set."""

import contextlib
import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import Dataset

from sj_ottt._files import atomic_write, cache_root
from sj_ottt._parallel import ordered_map
from sj_ottt.data.activity import Activity, Totals, activity_of, totals_of
from sj_ottt.data.frames.frames import Crop, check_size
from sj_ottt.data.frames.framing import Framing
from sj_ottt.data.recordings.events import LARGEST_SENSOR, extent
from sj_ottt.data.recordings.folders import PARTS, SLICES, Classes, digest, part_by_split, scan
from sj_ottt.data.recordings.readers import open_recording, read_events
from sj_ottt.data.recordings.sensor import Agreed, Seen, agree
from sj_ottt.data.recordings.source import ReadOptions
from sj_ottt.data.recordings.windows import Window, read_slices
from sj_ottt.data.sets.frame_cache import cached_counts, open_counts
from sj_ottt.errors import InputError

# Part of every cache key: raise it when the same recordings would give other frames.
_FRAMES_VERSION = 3


class EventFolder(Dataset):
    """Recordings in ``root/<class>/`` or ``root/{train,test}/<class>/`` as frames.

    Recordings may be in any format of `READERS`. The first use reads them all and keeps the frames
    in a cache file; later ones map that file into memory, unless a recording was changed, added or
    removed.

    Args:
        root: The folder.
        steps: T, frames per recording.
        size: (height, width) of the frames; None keeps the sensor's, or the crop's.
        split: ``"train"``, ``"test"``, or None for everything. Where the folder has no train and
            test of its own, a stratified split by recording is made once and saved as
            ``root/split.json`` (in the cache where the folder is read-only). A saved split stays
            in force, whatever ``test_fraction`` and ``seed``; recordings added since are for
            training.
        split_by: How a recording is cut into frames: ``"count"`` or ``"duration"``, see
            `events_to_frames`.
        frames: ``"counts"`` or ``"surface"``, see `Framing`, as for the next three.
        tau_us: Time constant of the surface in µs.
        crop: (height, width) in the sensor's middle, or (top, left, height, width).
        hot_pixels: Drop pixels that fire this many times as often as those around them.
        sensor_size: (height, width) of the sensor. None takes it from ``root/dataset.json``
            (``{"sensor_size": [H, W]}``), else what the files state, of train and test together.
            Where neither does, the smallest usual sensor that holds every event is taken
            (`standard_sensor`); where files state different ones, the smallest that holds them
            all. A warning says so.
        strict: Refuse recordings that would be repaired, and a sensor that would be assumed, with
            a warning; see `ReadOptions`, as for the next two.
        camera: Which of several cameras in a file.
        time_unit: Unit of times in text and arrays.
        transform: Applied to each sample's frames.
        cache_dir: The cache's folder, see `cache_root`.
        test_fraction: The share of test recordings in a new split.
        seed: Of a new split.
        workers: Processes that read recordings for the cache; None takes one per core where there
            are many.

    Attributes:
        classes: Names of the classes in all parts, sorted as strings.
        class_to_idx: The label of each class.
        files: Each sample's recording, a posix path relative to ``root``.
        targets: Labels, int64 [n].
        counts: Event counts, or a time surface in units of 1/255; memory-mapped, read-only
            [n, T, 2, H, W].
        sensor_size: (height, width) of the sensor.
        frame_size: (height, width) of the frames.
        activity: Rates and polarity of the recordings in this part; None where they have no
            duration, or are known from a cache only that lacks them.
        steps: T.
        framing: How recordings become frames.
        still: Whether an item is a still image: False, it is a sequence.
        split_file: The saved split in use, or None.

    Raises:
        InputError: A wrong argument, folder or recording; names it and the remedy.
    """

    still = False

    def __init__(
        self,
        root: str | os.PathLike,
        steps: int,
        size: tuple[int, int] | None = None,
        *,
        split: str | None = None,
        split_by: str = "count",
        frames: str = "counts",
        tau_us: float | None = None,
        crop: Crop | None = None,
        hot_pixels: float | None = None,
        sensor_size: tuple[int, int] | None = None,
        strict: bool = False,
        camera: str | None = None,
        time_unit: str | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        cache_dir: str | os.PathLike | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.framing = Framing(steps, size, split_by, frames, tau_us, crop, hot_pixels)
        self.steps = self.framing.steps
        self.split = split
        self.transform = transform
        if split is not None and split not in PARTS:
            raise InputError(f"split={split!r}: choose 'train', 'test' or None for everything")
        if not 0 < test_fraction < 1:
            raise InputError(f"test_fraction={test_fraction!r}: give a number between 0 and 1")
        cache = cache_root(cache_dir)

        parts = scan(self.root)
        self.split_file = None
        if split is None:
            chosen = _merge(parts.values())
        elif "" in parts:
            if (self.root.parent / SLICES).exists():
                raise InputError(
                    f"{self.root}: is one part of the data set {self.root.parent}, whose windows "
                    "may overlap, so it cannot be split anew; give the data set"
                )
            chosen, self.split_file = part_by_split(
                self.root, parts[""], split, test_fraction=test_fraction, seed=seed, cache_dir=cache
            )
        elif split in parts:
            chosen = parts[split]
        else:
            raise InputError(
                f"{self.root}: has no folder {split!r} beside {next(iter(parts))!r}; add it, or "
                "move the class folders up for a split by recording"
            )

        everything = _merge(parts.values())
        self.classes = tuple(sorted(everything))
        self.class_to_idx = {name: i for i, name in enumerate(self.classes)}
        self.files = tuple(file for name in self.classes for file in chosen.get(name, ()))
        self.targets = np.repeat(
            np.arange(len(self.classes)), [len(chosen.get(name, ())) for name in self.classes]
        )
        self.reading = ReadOptions(strict, sensor_size, camera, time_unit)
        if (size := self.reading.sensor_size or described_size(self.root)) is None:
            files = [file for files in everything.values() for file in files]
            size = _find_sensor(self.root, files, self.reading, cache, workers)
        self.sensor_size = check_size("sensor_size", size)
        self.frame_size = self.framing.frame_size(self.sensor_size)

        key = digest(
            _FRAMES_VERSION,
            str(self.root.resolve()),
            split,
            self.sensor_size,
            dataclasses.astuple(dataclasses.replace(self.framing, size=self.frame_size)),
            dataclasses.astuple(self.reading),
        )
        read = partial(_frames, self.root, self.framing, self.sensor_size, self.reading)
        totals: list[Totals] = []

        def samples() -> Generator[np.ndarray, None, None]:
            totals.clear()
            results = ordered_map(read, self.files, what="event frames", workers=workers)
            with contextlib.closing(results):
                for frames, total in results:
                    totals.append(total)
                    yield frames

        content = _fingerprint(self.root, self.files)
        self._cache_file, self.counts = cached_counts(
            cache / "frames", key, content, self._shape, samples
        )
        if self.window is not None:  # which may begin and end in silence
            totals = [total._replace(duration=self.window) for total in totals]
        memo = self._cache_file.with_suffix(".activity.json")
        self.activity = _remembered(memo, activity_of(totals, self.sensor_size))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return a sample's frames, float32 [T, 2, H, W], transformed, and its label."""
        frames = self.framing.to_tensor(self.counts[index])
        if self.transform is not None:
            frames = self.transform(frames)
        return frames, int(self.targets[index])

    def with_transform(self, transform: Callable[[torch.Tensor], torch.Tensor] | None) -> Self:
        """Return the same recordings, from the same cache, with another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def unprocessed(self) -> Self:
        """Return the same recordings to look at: their frames as they are."""
        return self.with_transform(None)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled as a copy of all its data: workers map the file themselves.
        return {**self.__dict__, "counts": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        counts = open_counts(self._cache_file, self._shape)
        if counts is None:
            raise InputError(
                f"{self._cache_file}: the cache was removed while in use (did the recordings "
                "change?); start again"
            )
        self.counts = counts

    @property
    def window(self) -> int | None:
        """Length of a sample in µs, where the samples were sliced from longer recordings."""
        return (_description(self.root) or {}).get("window")

    @property
    def min_events(self) -> int | None:
        """The fewest events that a sample may have, where the samples were sliced."""
        return (_description(self.root) or {}).get("min_events")

    def windows(self) -> list[Window] | None:
        """Return which part of which recording each sample is; None where they were not sliced.

        Raises:
            InputError: The list of windows is damaged, or lacks a sample.
        """
        if (found := read_slices(self.root)) is None:
            return None
        if missing := [file for file in self.files if file not in found]:
            raise InputError(
                f"{self.root / SLICES}: has no line for {missing[0]}; slice the recordings again, "
                "or delete the list if you changed the data set yourself"
            )
        return [found[file] for file in self.files]

    def identity(self) -> list[list[Any]]:
        """Return what tells these recordings from others, in values that JSON can hold."""
        return [[file, (self.root / file).stat().st_size] for file in self.files]

    def info(self) -> dict[str, Any]:
        """Describe the data set in values that JSON can hold."""
        per_class = np.bincount(self.targets, minlength=len(self.classes)).tolist()
        return {
            "root": self.root.resolve().name,
            "split": self.split,
            "samples": len(self),
            "samples_per_class": dict(zip(self.classes, per_class, strict=True)),
            "split_file": None if self.split_file is None else str(self.split_file),
            "sensor_size": list(self.sensor_size),
            "frame_size": list(self.frame_size),
            **{k: v for k, v in dataclasses.asdict(self.framing).items() if k != "size"},
        }

    @property
    def _shape(self) -> tuple[int, ...]:
        return (len(self.files), self.steps, 2, *self.frame_size)


def _frames(
    root: Path, framing: Framing, sensor_size: tuple[int, int], reading: ReadOptions, file: str
) -> tuple[np.ndarray, Totals]:
    events = read_events(root / file, reading)
    frames = framing(events, sensor_size, root / file)
    t = events["t"]
    totals = totals_of(events, int(t[-1] - t[0]))
    return frames.astype(np.min_scalar_type(frames.max())), totals  # less to send to us


def _merge(parts: Iterable[Classes]) -> Classes:
    """Join the recordings of several parts, class by class."""
    merged: dict[str, tuple[str, ...]] = {}
    for classes in parts:
        for name, files in classes.items():
            merged[name] = merged.get(name, ()) + files
    return merged


def _fingerprint(root: Path, files: Iterable[str]) -> str:
    """Return a key that changes when a recording is changed, added or removed."""
    stats = ((file, (root / file).stat()) for file in files)
    return digest([(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats])


def described_size(root: Path) -> tuple[int, int] | None:
    """Return the (height, width) that ``root/dataset.json`` states; None without such a file."""
    if (description := _description(root)) is None:
        return None
    if "sensor_size" not in description:
        raise InputError(
            f'{root / "dataset.json"}: lacks {{"sensor_size": [height, width]}}; mend or delete it'
        )
    size = check_size(f"{root / 'dataset.json'}: sensor_size", description["sensor_size"])
    if max(size) > LARGEST_SENSOR:
        raise InputError(
            f"{root / 'dataset.json'}: sensor_size={size} is beyond {LARGEST_SENSOR} pixels; mend "
            "it, or pass --sensor-size if the sensor is that large"
        )
    return size


def _description(root: Path) -> dict[str, Any] | None:
    path = root / "dataset.json"
    if not path.is_file():
        return None
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(description, dict):
            raise TypeError
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f'{path}: is no {{"sensor_size": [height, width]}}; mend or delete it'
        ) from error
    return description


def _find_sensor(
    root: Path, files: list[str], reading: ReadOptions, cache: Path, workers: int | None
) -> tuple[int, int]:
    """Find the sensor's size where nobody gave it; see `EventFolder`."""
    key = digest(_FRAMES_VERSION, str(root.resolve()), sorted(files), dataclasses.astuple(reading))
    memo = cache / "frames" / f"{key}-{_fingerprint(root, files)}.json"
    try:
        (height, width), assumed = json.loads(memo.read_text(encoding="utf-8"))
        agreed = Agreed((height, width), assumed)
    except (OSError, ValueError, TypeError):
        look = partial(_seen, root, reading)
        seen = list(ordered_map(look, files, what="sensor size", workers=workers))
        agreed = agree(root, seen, described=True)
        with atomic_write(memo) as file:
            file.write(json.dumps(agreed).encode())
    return agreed.said(strict=reading.strict)


def _seen(root: Path, reading: ReadOptions, file: str) -> Seen:
    """Return what a recording tells of its sensor."""
    source = open_recording(root / file, reading)
    height, width = source.sensor_size or (0, 0)
    if source.sensor_size is None:
        with warnings.catch_warnings():
            # Its frames will be made, and what there is to say of it said, from another reading.
            warnings.simplefilter("ignore")
            for events in source.chunks:
                rows, columns = extent(events)
                height, width = max(height, rows), max(width, columns)
    if max(height, width) > LARGEST_SENSOR:
        raise InputError(
            f"{root / file}: reaches out to x={width - 1}, y={height - 1}, beyond "
            f"{LARGEST_SENSOR} pixels; mend the recording, or pass sensor_size if the sensor is "
            "that large"
        )
    return Seen(str(root / file), source.sensor_size, (height, width))


def _remembered(memo: Path, activity: Activity | None) -> Activity | None:
    """Save the activity of recordings that were read just now, or load that of an earlier time."""
    if activity is not None:
        with atomic_write(memo) as file:
            file.write(json.dumps(activity).encode())
        for stale in memo.parent.glob(f"{memo.name.partition('-')[0]}-*.activity.json"):
            with contextlib.suppress(OSError):
                if stale != memo:
                    stale.unlink()
        return activity
    try:
        (low, middle, high), (off, half, on) = json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return None
    return Activity((low, middle, high), (off, half, on))
