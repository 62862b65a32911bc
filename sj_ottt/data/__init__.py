"""Event data: recordings, frames, folders of recordings, and the embedded ``ndigits``.

Sizes are (height, width), times are µs, frames are [T, 2, H, W] with channel 1 for ON events.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from sj_ottt.data.events import EVENT_DTYPE, Recording, check_events, write_events
from sj_ottt.data.folder import EventFolder
from sj_ottt.data.frames import events_to_frames
from sj_ottt.data.hotpixels import hot_pixels
from sj_ottt.data.labels import labels_from_folders, read_labels
from sj_ottt.data.layout import find_recordings
from sj_ottt.data.ndigits import ndigits_root
from sj_ottt.data.readers import read_events, read_recording
from sj_ottt.data.simulate import saccade_events, write_event_dataset
from sj_ottt.data.slice_files import slice_recordings
from sj_ottt.data.slicing import SliceConfig
from sj_ottt.data.survey import survey_recordings
from sj_ottt.data.transforms import Compose, NormalizeFrames, RandomShift
from sj_ottt.errors import InputError
from sj_ottt.files import cache_root

__all__ = [
    "EVENT_DTYPE",
    "Compose",
    "EventFolder",
    "NormalizeFrames",
    "RandomShift",
    "Recording",
    "SliceConfig",
    "cache_root",
    "check_events",
    "events_to_frames",
    "find_recordings",
    "hot_pixels",
    "labels_from_folders",
    "ndigits_root",
    "open_dataset",
    "read_events",
    "read_labels",
    "read_recording",
    "saccade_events",
    "slice_recordings",
    "survey_recordings",
    "write_event_dataset",
    "write_events",
]

# Embedded data sets: a name that `open_dataset` knows, and what makes the folder.
EMBEDDED = {"ndigits": ndigits_root}


def open_dataset(
    spec: str | os.PathLike,
    *,
    split: str | None,
    steps: int,
    size: tuple[int, int] | None = None,
    split_by: str = "count",
    cache_dir: str | os.PathLike | None = None,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> EventFolder:
    """Open an embedded data set by its name, or any folder of recordings by its path.

    Args:
        spec: ``"ndigits"``, or the path of a folder. A folder that happens to be called ndigits is
            reached by a path with a separator (``./ndigits``) or a `pathlib.Path`.
        split: See `EventFolder`, as for all the rest.
        steps: T, frames per recording.
        size: (height, width) of the frames.
        split_by: ``"count"`` or ``"duration"``.
        cache_dir: The cache's folder.
        transform: Applied to each sample's frames.

    Raises:
        InputError: Neither a known name nor a folder, or something in the folder is wrong.
    """
    if isinstance(spec, str) and spec in EMBEDDED:
        root = EMBEDDED[spec](cache_dir)
    elif isinstance(spec, str) and not Path(spec).exists() and Path(spec).name == spec:
        raise InputError(
            f"data {spec!r}: no such data set or folder; give one of {', '.join(EMBEDDED)} or the "
            "path of a folder of recordings"
        )
    else:
        root = Path(spec)
    return EventFolder(
        root,
        steps,
        size,
        split=split,
        split_by=split_by,
        cache_dir=cache_dir,
        transform=transform,
    )
