"""What the tests of AEDAT share: real recordings, reading with its warnings, blocks of few."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from sj_ottt.data.recordings.events import Recording
from sj_ottt.data.recordings.formats import common
from sj_ottt.data.recordings.readers import open_recording, read_recording
from sj_ottt.data.recordings.source import ReadOptions
from tests.conftest import SHARED
from tests.data.recordings.damage import Sample
from tests.recording_files import aedat2, aedat3, sample_events


def camera_file(name: str) -> Path:
    """A file of `camera_files`, whose true values its README.md lists."""
    path = SHARED / "camera_files" / name
    if not path.is_file():
        pytest.skip(f"{path} is missing: point SJ_OTTT_SHARED_DATA to a folder with it")
    return path


def read(path: Path, **options) -> tuple[Recording, list[str]]:
    """Read a recording, and return the warnings too."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        recording = read_recording(path, ReadOptions(**options))
    return recording, [str(warning.message) for warning in said]


def blocks(path: Path, monkeypatch, size: int = 7) -> list[np.ndarray]:
    """Read a recording in blocks of about ``size`` events."""
    with monkeypatch.context() as patch:
        patch.setattr(common, "BLOCK", size)
        return list(open_recording(path).chunks)


def _few() -> list:
    return sample_events(120, (34, 34)).tolist()


SAMPLES = {
    "aedat2_davis": Sample(".aedat", lambda: aedat2(_few(), "DAVIS240C")),
    "aedat2_untold": Sample(".aedat", lambda: aedat2(_few(), "DAVIS240C", b"")),
    "aedat3": Sample(".aedat", lambda: aedat3(_few())),
}
"""Intact files for `tests.data.recordings.damage`."""
