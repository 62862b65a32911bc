"""Long recordings, their labels, and data sets that are sliced from them."""

from pathlib import Path

import numpy as np

from sj_ottt.data import EVENT_DTYPE, ReadOptions, write_events
from sj_ottt.data.prepare.slice import SliceConfig, slice_recordings
from sj_ottt.data.recordings.folders import find_recordings
from sj_ottt.data.recordings.label_table import read_labels
from tests.recording_files import dat

SENSOR = ReadOptions(sensor_size=(16, 20))


def record(path: Path, seconds: float, seed: int = 0, start: int = 5_000, rate: int = 2000):
    """Write events at a steady rate, the last one at the very end."""
    n = int(seconds * rate)
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT_DTYPE)
    events["t"] = start + np.linspace(0, seconds * 1e6 - 1, n).astype(np.int64)
    events["x"], events["y"] = rng.integers(0, 20, n), rng.integers(0, 16, n)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".dat":
        path.write_bytes(dat(events.tolist(), "% Width 24\n% Height 18\n"))
    else:
        write_events(path, events)
    return path


def labels_file(folder: Path, *lines: str, head="file,start,end,label") -> Path:
    path = folder / "labels.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def all_labels(raw: Path) -> Path:
    rows = []
    for path in sorted(raw.rglob("*.npz")):
        name = path.relative_to(raw)
        rows += [f"{name},0,1.9s,wave", f"{name},2s,4000ms,still"]
    return labels_file(raw.parent, *rows)


def config(**kwargs) -> SliceConfig:
    return SliceConfig(**{"window": 200_000, "stride": 100_000, "min_events": 300, **kwargs})


def sliced(raw: Path, out: Path, **kwargs):
    recordings = find_recordings([raw])
    labelled = read_labels(all_labels(raw), recordings)
    return slice_recordings(labelled, out, config(**kwargs), SENSOR)
