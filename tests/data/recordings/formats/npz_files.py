"""Events as npy and npz."""

import io

import numpy as np

from tests.data.recordings.damage import Sample
from tests.recording_files import sample_events


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(compress: bool = False, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(file, **arrays)
    return file.getvalue()


def rows(events: np.ndarray, order: str = "txyp", kind: str = "i8") -> np.ndarray:
    return np.stack([events[name] for name in order], axis=1).astype(kind)


def columns(events: np.ndarray, names: str = "t x y p") -> dict[str, np.ndarray]:
    return {name: events[field] for name, field in zip(names.split(), "txyp", strict=True)}


SAMPLES = {
    "npy": Sample(".npy", lambda: npy(sample_events(120)), 1.0),
    "npy_upright": Sample(".npy", lambda: npy(np.asfortranarray(rows(sample_events(120)))), 1.0),
    "npz": Sample(".npz", lambda: npz(**columns(sample_events(120))), 80.0),
    "npz_packed": Sample(".npz", lambda: npz(True, **columns(sample_events(120))), 80.0),
    "npz_rows": Sample(".npz", lambda: npz(True, events=rows(sample_events(120), "xytp")), 80.0),
}
