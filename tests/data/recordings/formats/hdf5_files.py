"""HDF5 in the layouts that people have."""

import io
from collections.abc import Callable

import h5py
import numpy as np

from tests.data.recordings.damage import Sample
from tests.recording_files import sample_events


def to_bytes(fill: Callable[[h5py.File], None]) -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        fill(file)
    return memory.getvalue()


def columns(file, place: str, events, names="txyp", kinds=("i8", "u2", "u2", "i1"), **options):
    for name, field, kind in zip(names, "txyp", kinds, strict=True):
        values = events[field] / 1e6 if kind == "f8" else events[field]
        file.create_dataset(f"{place}/{name}", data=values.astype(kind), **options)


def table(events, order="txyp", kind="u4", scale=1.0) -> np.ndarray:
    rows = [events[name] * (scale if name == "t" else 1) for name in order]
    return np.stack(rows, axis=1).astype(kind)


def dsec(file, events, **options):
    columns(file, "events", events, kinds=("u4", "u2", "u2", "u1"), **options)
    file["t_offset"] = np.int64(0)
    file["ms_to_idx"] = np.zeros(5, "u8")


def prophesee(file, events):
    file.attrs["geometry"] = "640x480"
    layout = np.dtype([("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
    records = np.zeros(len(events), layout)
    for name in layout.names:
        records[name] = events[name]
    file["CD/events"] = records
    file["CD/indexes"] = np.zeros(3, [("id", "<u8"), ("ts", "<i8")])
    file["EXT_TRIGGER/events"] = np.zeros(3, [("p", "<i2"), ("t", "<i8"), ("id", "<i2")])


def v2e(file, events):
    file.create_dataset("events", data=table(events), chunks=(64, 4), compression="gzip")


def upright(file, events):
    file["events"] = table(events, kind="i8").T.copy()


def event_utils(file, events):
    columns(file, "events", events, ("ts", "xs", "ys", "ps"), ("f8", "i2", "i2", "?"))
    file.attrs["sensor_resolution"] = np.array([100, 120])


def mvsec(file, events, sides=("left", "right")):
    for side in sides:
        shift = 0 if side == "left" else 1
        moved = events.copy()
        moved["x"] += shift
        rows = table(moved, "xytp", "f8", 1e-6)
        rows[:, 3] = 2 * rows[:, 3] - 1
        file[f"davis/{side}/events"] = rows
        file[f"davis/{side}/image_raw_ts"] = np.zeros(7)
        file[f"davis/{side}/imu"] = np.zeros((7, 6))


def m3ed(file, events):
    for side in ("left", "right"):
        part = events if side == "left" else events[::2]
        columns(file, f"prophesee/{side}", part, chunks=(50,))
        file[f"prophesee/{side}/calib/resolution"] = np.array([1280, 720])
        file[f"prophesee/{side}/ms_map_idx"] = np.zeros(5, "u8")


def rvt(file, events):
    columns(file, "events", events)
    file["events/height"], file["events/width"] = 360, 640


LAYOUTS = {
    "dsec": (dsec, None),
    "prophesee": (prophesee, (480, 640)),
    "v2e": (v2e, None),
    "upright": (upright, None),
    "event_utils": (event_utils, (100, 120)),
    "m3ed": (m3ed, (720, 1280)),
    "mvsec": (mvsec, (260, 346)),
    "rvt": (rvt, (360, 640)),
    "structured": (lambda file, events: file.create_dataset("events", data=events), None),
}
CHOICE = {"m3ed": "left", "mvsec": "0"}


def _sample(name: str) -> Sample:
    return Sample(
        ".h5", lambda: to_bytes(lambda file: LAYOUTS[name][0](file, sample_events(120))), 80.0
    )


SAMPLES = {f"hdf5_{name}": _sample(name) for name in LAYOUTS if name not in CHOICE}
SAMPLES["hdf5_one_of_mvsec"] = Sample(
    ".hdf5", lambda: to_bytes(lambda file: mvsec(file, sample_events(120), ["left"])), 80.0
)
