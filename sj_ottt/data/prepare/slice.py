"""Long recordings cut into the labelled samples of a data set, on the disk."""

import csv
import dataclasses
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sj_ottt._files import atomic_folder, atomic_write
from sj_ottt.data.prepare.slice_target import COLUMNS, DESCRIPTION, SAMPLES, check_target
from sj_ottt.data.recordings.events import extent, write_events
from sj_ottt.data.recordings.folders import PARTS, SLICES
from sj_ottt.data.recordings.label_table import Labelled, Stretch, find_named
from sj_ottt.data.recordings.readers import open_recording
from sj_ottt.data.recordings.sensor import Seen, agree
from sj_ottt.data.recordings.source import ReadOptions
from sj_ottt.data.recordings.walk import walk
from sj_ottt.data.recordings.windows import Window, stretch_windows
from sj_ottt.data.splits import split_by_group, split_by_time
from sj_ottt.errors import InputError, suggest

# Times of labels may be rounded up by so many µs, or by a window where that is longer.
_ROUNDED = 100_000
HELD_OUT = ("recording", "session", "time")
_DEFAULT = ReadOptions()


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
        test_recordings: Names of the recordings to test on, as in a table of labels: then nothing
            is chosen, and no others are tested on but those of ``test_sessions``.
        test_sessions: The same of sessions.

    Raises:
        InputError: A value is out of range.
    """

    window: int
    stride: int
    min_events: int
    hold_out: str = "recording"
    test_fraction: float = 0.2
    seed: int = 0
    test_recordings: tuple[str, ...] = ()
    test_sessions: tuple[str, ...] = ()

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
    labelled: Sequence[Labelled],
    out: str | os.PathLike,
    config: SliceConfig,
    options: ReadOptions = _DEFAULT,
    *,
    overwrite: bool = False,
) -> SliceResult:
    """Cut labelled recordings into windows, and write them as a data set that `EventFolder` reads.

    The folder holds ``train/<class>/`` and ``test/<class>/`` with npz files whose times count from
    their window's start, ``slices.csv`` (which file is which part of which recording), and
    ``dataset.json`` (the sensor's size, how it was cut and split). It appears complete or not at
    all. Recordings are cut as they pass: memory holds a window or two, whatever their length.

    Args:
        labelled: From `read_labels` or `labels_from_folders`. Where they say which part they are
            of, that decides; else ``config`` does.
        out: The folder to make.
        config: How to cut and to split.
        options: How to read the recordings. Where neither they nor the files state the sensor's
            size, the smallest usual sensor that holds every event is taken, with a warning.
        overwrite: Replace such a data set where ``out`` is one, whole or half-made; it stays until
            the new one is complete. Any other folder is refused.

    Raises:
        InputError: A wrong recording or stretch; a class without samples, or that cannot be in
            both parts; the folder exists or cannot be written.
    """
    out = Path(out)
    tests = named_tests(labelled, config)
    check_target(out, [one.path for one in labelled], overwrite=overwrite)
    try:
        with atomic_folder(out, replace=overwrite) as folder:
            (folder / SAMPLES).mkdir()
            _write_list(folder, [])
            return _cut(labelled, out, folder, config, options, tests)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); free some space, or choose "
            "another folder"
        ) from error


def _cut(
    labelled: Sequence[Labelled],
    out: Path,
    folder: Path,
    config: SliceConfig,
    options: ReadOptions,
    tests: set[str] | None,
) -> SliceResult:
    windows: list[Window] = []
    left_out: Counter[str] = Counter()
    seen: list[Seen] = []
    stated: Seen | None = None
    for recording in tqdm(labelled, desc="slicing", unit="file", leave=False, disable=None):
        source = open_recording(recording.path, options)
        if source.sensor_size is not None:
            own = Seen(str(recording.path), source.sensor_size, source.sensor_size)
            stated = stated or own
            _check_sensors(stated, own)
        passage = _Passage(walk(source), folder)
        made: Counter[int] = Counter()
        for number, start, events in stretch_windows(
            passage, recording.stretches, config.window, config.stride
        ):
            made[number] += 1
            if len(events) < config.min_events:
                left_out[f"windows with fewer than {config.min_events} events"] += 1
                continue
            sample = events.copy()
            sample["t"] -= passage.begin + start
            write_events(folder / SAMPLES / f"{len(windows)}.npz", sample)
            origin = str(recording.path), recording.session, recording.stretches[number].label
            windows.append(Window(*origin, start, config.window, len(sample)))
        for number, stretch in enumerate(recording.stretches):
            _check_end(stretch, recording.path, passage.length, config.window)
            left_out["stretches shorter than a window"] += not made[number]
        seen.append(Seen(str(recording.path), source.sensor_size, passage.extent))
    _check_classes(labelled, windows, config)
    part = _split(windows, config, tests)
    left_out["windows at the border of train and test"] += int((part < 0).sum())
    _move_into_classes(folder, windows, part)
    size = agree(out, seen).said(strict=options.strict)
    description = {"sensor_size": list(size), **dataclasses.asdict(config)}
    with atomic_write(folder / DESCRIPTION) as file:
        file.write(json.dumps(description, indent=1).encode())
    chosen = {
        name: [window for window, p in zip(windows, part, strict=True) if p == i]
        for i, name in enumerate(PARTS)
    }
    return SliceResult(chosen, size, +left_out)


class _Passage:
    """Blocks of events as they pass, and what is to be known of them when they have.

    Attributes:
        begin: Time of the first event in µs.
        length: From there to the last one, and one µs.
        extent: (height, width) that the events reach.
    """

    def __init__(self, blocks: Iterable[np.ndarray], folder: Path) -> None:
        self._blocks, self._folder = blocks, folder
        self.begin = self.length = 0
        self.extent = (1, 1)

    def __iter__(self) -> Iterator[np.ndarray]:
        for i, block in enumerate(self._blocks):
            # Whoever looks for folders left behind sees that this one is in use.
            os.utime(self._folder)
            if i == 0:
                self.begin = int(block["t"][0])
            self.length = int(block["t"][-1]) - self.begin + 1
            rows, columns = extent(block)
            self.extent = max(self.extent[0], rows), max(self.extent[1], columns)
            yield block


def named_tests(labelled: Sequence[Labelled], config: SliceConfig) -> set[str] | None:
    """Return the recordings that are named for testing; None where none are, and some are chosen.

    Raises:
        InputError: They are named twice over, are unknown, or divide a session that is to stay
            whole.
    """
    named = bool(config.test_recordings or config.test_sessions)
    in_table = any(one.part is not None for one in labelled)
    if not named and not in_table:
        return None
    if named and in_table:
        raise InputError(
            "the table's column part and --test-recording or --test-session both say what is for "
            "testing: leave one out"
        )
    if config.hold_out == "time":
        raise InputError(
            "--test-by time tests on the end of every recording, but recordings are named for "
            "testing too: leave one out"
        )
    paths = [one.path for one in labelled]
    tests = {str(one.path) for one in labelled if one.part == "test"}
    for name in config.test_recordings:
        if (path := find_named(name, paths, f"--test-recording {name}")) is None:
            near = suggest(name, {path.name for path in paths})
            raise InputError(f"--test-recording {name}: is none of the labelled recordings{near}")
        tests.add(str(path))
    sessions = sorted({one.session for one in labelled})
    for name in config.test_sessions:
        if name not in sessions:
            raise InputError(
                f"--test-session {name}: no recording belongs to it{suggest(name, sessions)}; "
                f"sessions are {', '.join(sessions[:8])}{', ...' * (len(sessions) > 8)}"
            )
        tests |= {str(one.path) for one in labelled if one.session == name}
    if config.hold_out == "session":
        learned = {one.session for one in labelled if str(one.path) not in tests}
        if both := sorted(learned & {one.session for one in labelled if str(one.path) in tests}):
            raise InputError(
                f"session {both[0]!r} has recordings to learn from and to test on, which "
                "--test-by session keeps apart: name the whole session"
            )
    return tests


def _check_sensors(first: Seen, own: Seen) -> None:
    """Refuse a recording whose file states another sensor than the first that stated one."""
    if own.stated != first.stated:
        (height, width), (first_height, first_width) = own.extent, first.extent
        raise InputError(
            f"{own.name}: comes from a sensor of {height} x {width} pixels (height x width), "
            f"{first.name} from one of {first_height} x {first_width}; slice the recordings of "
            "each camera into a data set of its own"
        )


def _check_end(stretch: Stretch, path: Path, length: int, window: int) -> None:
    """Refuse a stretch that ends clearly beyond the recording."""
    end = length if stretch.end is None else stretch.end
    # A label may well be rounded up, and a sensor fall silent before the recording's end.
    if end > length + max(window, _ROUNDED) or stretch.start >= length:
        raise InputError(
            f"{stretch.source}: reaches from {stretch.start / 1e6:g} s to {end / 1e6:g} s, where "
            f"{path} lasts {length / 1e6:g} s from its first event; mend the times (without a unit "
            "they are µs)"
        )


def _split(windows: Sequence[Window], config: SliceConfig, tests: set[str] | None) -> np.ndarray:
    """Return int8 [n]: 0 for train, 1 for test, -1 for neither."""
    if tests is not None:
        part = np.array([window.recording in tests for window in windows], np.int8)
        trained = {w.label for w, p in zip(windows, part, strict=True) if not p}
        if lost := sorted({w.label for w in windows} - trained):
            raise InputError(
                f"class {lost[0]!r} occurs in no recording that is left to learn from; hold out "
                "fewer recordings or sessions, or record more of it"
            )
    elif config.hold_out == "time":
        part = split_by_time(windows, config.test_fraction)
    else:
        groups = [getattr(window, config.hold_out) for window in windows]
        _check_groups(windows, groups, config.hold_out)
        part = split_by_group(windows, groups, config.test_fraction, config.seed)
    if not (part > 0).any():
        raise InputError(
            f"no windows are left for testing with hold_out={config.hold_out!r} (--test-by); give "
            "longer or more recordings, or a shorter window"
        )
    return part


def _check_groups(windows: Sequence[Window], groups: Sequence[str], kind: str) -> None:
    """Refuse a class that is in one group only."""
    of_label: dict[str, set[str]] = {}
    for window, group in zip(windows, groups, strict=True):
        of_label.setdefault(window.label, set()).add(group)
    for label, found in sorted(of_label.items()):
        if len(found) < 2:
            raise InputError(
                f"class {label!r} is in one {kind} only ({min(found)}), which cannot be both "
                f"learned from and tested on: give another {kind} of it, leave the class out, or "
                "test on the end of every recording with --test-by time"
            )


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
    rows: list[tuple[object, ...]] = []
    names = _unique_names(sorted({window.recording for window in windows}))
    for i, (w, p) in enumerate(zip(windows, part, strict=True)):
        if p < 0:
            continue
        name = f"{PARTS[p]}/{w.label}/{names[w.recording]}_{w.start}us.npz"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder / SAMPLES / f"{i}.npz", folder / name)
        end = w.start + w.length
        rows.append((name, PARTS[p], w.label, w.recording, w.session, w.start, end, w.events))
    shutil.rmtree(folder / SAMPLES)
    _write_list(folder, rows)


def _write_list(folder: Path, rows: Sequence[Sequence[object]]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *rows])
    with atomic_write(folder / SLICES) as file:
        file.write(table.getvalue().encode())


def _unique_names(recordings: Sequence[str]) -> dict[str, str]:
    """Name recordings by their files' stems, with a number before it where those are not unique."""
    stems = [Path(recording).stem for recording in recordings]
    if len(set(stems)) < len(stems):
        stems = [f"{i:04d}-{stem}" for i, stem in enumerate(stems)]
    return dict(zip(recordings, stems, strict=True))
