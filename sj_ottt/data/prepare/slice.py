"""Long recordings cut into the labelled samples of a data set, on the disk."""

import csv
import dataclasses
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sj_ottt._files import atomic_folder, atomic_write
from sj_ottt.data.recordings.events import check_events, extent, write_events
from sj_ottt.data.recordings.folders import PARTS, SLICES
from sj_ottt.data.recordings.label_table import Labelled, Stretch
from sj_ottt.data.recordings.readers import read_recording
from sj_ottt.data.recordings.windows import Window, window_starts
from sj_ottt.data.splits import split_by_group, split_by_time
from sj_ottt.errors import InputError

# Times of labels may be rounded up by so many µs, or by a window where that is longer.
_ROUNDED = 100_000
HELD_OUT = ("recording", "session", "time")


@dataclass(frozen=True)
class SliceConfig:
    """How to cut recordings, and to split the samples.

    Attributes:
        window: Length of a sample in µs.
        stride: From one window's start to the next one's, in µs.
        min_events: Windows with fewer events are left out.
        hold_out: What is held out for testing: whole recordings (``"recording"``) or sessions
            (``"session"``), see `split_by_group`; or the end of every recording (``"time"``), see
            `split_by_time`.
        test_fraction: The wanted share of test windows.
        seed: Of the choice of recordings or sessions.

    Raises:
        InputError: A value is out of range.
    """

    window: int
    stride: int
    min_events: int
    hold_out: str = "recording"
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("window", "stride", "min_events"):
            if getattr(self, name) < 1:
                unit = "" if name == "min_events" else " µs"
                raise InputError(f"{name}={getattr(self, name)}: give at least 1{unit}")
        if self.hold_out not in HELD_OUT:
            raise InputError(f"hold_out={self.hold_out!r}: choose one of {', '.join(HELD_OUT)}")
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
    left_out: Counter[str] = field(default_factory=Counter)


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
    try:
        with atomic_folder(out) as folder:
            (folder / "samples").mkdir()
            return _cut(labelled, folder, config)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); free some space, or choose "
            "another folder"
        ) from error


def _cut(labelled: Sequence[Labelled], folder: Path, config: SliceConfig) -> SliceResult:
    windows: list[Window] = []
    left_out: Counter[str] = Counter()
    height, width = 1, 1
    sensor: tuple[Path, tuple[int, int]] | None = None
    for recording in tqdm(labelled, desc="slicing", unit="file", leave=False, disable=None):
        os.utime(folder)  # whoever looks for folders left behind sees that this one is in use
        events, size = read_recording(recording.path)
        if size is not None:
            sensor = sensor or (recording.path, size)
            _check_sensors(*sensor, recording.path, size)
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
            left_out["stretches shorter than a window"] += not starts
            for i in kept:
                sample = events[firsts[i] : lasts[i]].copy()
                sample["t"] = t[firsts[i] : lasts[i]] - starts[i]
                write_events(folder / "samples" / f"{len(windows)}.npz", sample)
                origin = str(recording.path), recording.session, stretch.label
                windows.append(Window(*origin, starts[i], config.window, len(sample)))
    _check_classes(labelled, windows, config)
    part = _split(windows, config)
    left_out["windows at the border of train and test"] += int((part < 0).sum())
    _move_into_classes(folder, windows, part)
    description = {"sensor_size": [height, width], **dataclasses.asdict(config)}
    with atomic_write(folder / "dataset.json") as file:
        file.write(json.dumps(description, indent=1).encode())
    chosen = {
        name: [window for window, p in zip(windows, part, strict=True) if p == i]
        for i, name in enumerate(PARTS)
    }
    return SliceResult(chosen, (height, width), +left_out)


def _check_sensors(
    first: Path, first_size: tuple[int, int], path: Path, size: tuple[int, int]
) -> None:
    if size != first_size:
        raise InputError(
            f"{path}: comes from a sensor of {size[0]} x {size[1]} pixels (height x width), "
            f"{first} from one of {first_size[0]} x {first_size[1]}; slice the recordings of each "
            "camera into a data set of its own"
        )


def _end(stretch: Stretch, path: Path, length: int, window: int) -> int:
    """Return where a stretch ends; `InputError` where that is clearly beyond the recording."""
    end = length if stretch.end is None else stretch.end
    # A label may well be rounded up, and a sensor fall silent before the recording's end.
    if end > length + max(window, _ROUNDED) or stretch.start >= length:
        raise InputError(
            f"{stretch.source}: reaches from {stretch.start / 1e6:g} s to {end / 1e6:g} s, where "
            f"{path} lasts {length / 1e6:g} s from its first event; mend the times (without a unit "
            "they are µs)"
        )
    return end


def _split(windows: Sequence[Window], config: SliceConfig) -> np.ndarray:
    """Return int8 [n]: 0 for train, 1 for test, -1 for neither."""
    if config.hold_out == "time":
        part = split_by_time(windows, config.test_fraction)
    else:
        groups = [getattr(window, config.hold_out) for window in windows]
        part = split_by_group(windows, groups, config.test_fraction, config.seed)
    if not (part > 0).any():
        raise InputError(
            f"no windows are left for testing with hold_out={config.hold_out!r} (--split-by); give "
            "longer or more recordings, or a shorter window"
        )
    return part


def _check_classes(
    labelled: Sequence[Labelled], windows: Sequence[Window], config: SliceConfig
) -> None:
    labels = {stretch.label for recording in labelled for stretch in recording.stretches}
    if missing := sorted(labels - {w.label for w in windows}):
        stretches = [s for recording in labelled for s in recording.stretches]
        stretches = [s for s in stretches if s.label == missing[0]]
        lengths = [s.end - s.start for s in stretches if s.end is not None]
        longest = ""
        if len(lengths) == len(stretches):
            longest = f" (its longest stretch lasts {max(lengths) / 1000:g} ms)"
        raise InputError(
            f"class {missing[0]!r} gives no window of {config.window / 1000:g} ms with at least "
            f"{config.min_events} events{longest}; change window or min_events, or remove the class"
        )


def _move_into_classes(folder: Path, windows: Sequence[Window], part: np.ndarray) -> None:
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
    with atomic_write(folder / SLICES) as file:
        file.write(table.getvalue().encode())


def _unique_names(recordings: Sequence[str]) -> dict[str, str]:
    """Name recordings by their files' stems, with a number before it where those are not unique."""
    stems = [Path(recording).stem for recording in recordings]
    if len(set(stems)) < len(stems):
        stems = [f"{i:04d}-{stem}" for i, stem in enumerate(stems)]
    return dict(zip(recordings, stems, strict=True))
