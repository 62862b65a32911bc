"""Event data: recordings, frames, folders of recordings, and the embedded ``ndigits``.

Sizes are (height, width), times are µs, frames are [T, 2, H, W] with channel 1 for ON events.
"""

import os
from pathlib import Path
from typing import Any

from sj_ottt.data.events import EVENT_DTYPE, check_events, read_events, write_events
from sj_ottt.data.folder import EventFolder
from sj_ottt.data.frames import crop_events, events_to_frames, time_surface
from sj_ottt.data.framing import Framing
from sj_ottt.data.hotpixels import hot_pixels
from sj_ottt.data.ndigits import ndigits_root
from sj_ottt.data.record import record_images, write_event_dataset
from sj_ottt.data.simulate import saccade_events, video_events
from sj_ottt.data.transforms import (
    Compose,
    DropEvents,
    JitterTime,
    NormalizeFrames,
    RandomFlip,
    RandomRotation,
    RandomShift,
    cutmix,
)
from sj_ottt.errors import InputError
from sj_ottt.files import cache_root

__all__ = [
    "EVENT_DTYPE",
    "Compose",
    "DropEvents",
    "EventFolder",
    "Framing",
    "JitterTime",
    "NormalizeFrames",
    "RandomFlip",
    "RandomRotation",
    "RandomShift",
    "cache_root",
    "check_events",
    "crop_events",
    "cutmix",
    "events_to_frames",
    "hot_pixels",
    "ndigits_root",
    "open_dataset",
    "read_events",
    "record_images",
    "saccade_events",
    "time_surface",
    "video_events",
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
    cache_dir: str | os.PathLike | None = None,
    **options: Any,
) -> EventFolder:
    """Open an embedded data set by its name, or any folder of recordings by its path.

    Args:
        spec: ``"ndigits"``, or the path of a folder. A folder that happens to be called ndigits is
            reached by a path with a separator (``./ndigits``) or a `pathlib.Path`.
        split: See `EventFolder`, as for all the rest.
        steps: T, frames per recording.
        size: (height, width) of the frames.
        cache_dir: The cache's folder.
        **options: Its other arguments: ``split_by``, ``transform`` and so on.

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
    return EventFolder(root, steps, size, split=split, cache_dir=cache_dir, **options)
