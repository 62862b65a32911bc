"""Data sets: event recordings as frames, the embedded ``ndigits``, and still images.

Sizes are (height, width), times are µs, frames are [T, 2, H, W] with channel 1 for ON events.
"""

import os
from pathlib import Path
from typing import Any

from sj_ottt._files import cache_root
from sj_ottt.data.frames.frames import crop_events, events_to_frames, time_surface
from sj_ottt.data.frames.framing import Framing
from sj_ottt.data.frames.hot_pixels import hot_pixels
from sj_ottt.data.prepare.slice import slice_recordings
from sj_ottt.data.prepare.survey import survey_recordings
from sj_ottt.data.recordings.events import EVENT_DTYPE, Recording, check_events, write_events
from sj_ottt.data.recordings.folders import find_recordings
from sj_ottt.data.recordings.label_table import labels_from_folders, read_labels
from sj_ottt.data.recordings.readers import read_events, read_recording
from sj_ottt.data.recordings.windows import SliceConfig
from sj_ottt.data.sets.event_folder import EventFolder
from sj_ottt.data.sets.images import ENCODINGS, IMAGE_SETS, ImageSet
from sj_ottt.data.sets.ndigits import ndigits_root
from sj_ottt.data.sets.published import EVENT_SETS, event_set_root
from sj_ottt.data.simulate.camera import saccade_events, video_events
from sj_ottt.data.simulate.datasets import record_images, write_event_dataset
from sj_ottt.data.transforms import (
    Compose,
    Cutout,
    DropEvents,
    JitterTime,
    NormalizeFrames,
    RandomFlip,
    RandomRotation,
    RandomShift,
    cutmix,
)
from sj_ottt.errors import InputError, suggest

__all__ = [
    "ENCODINGS",
    "EVENT_DTYPE",
    "Compose",
    "Cutout",
    "DropEvents",
    "EventFolder",
    "Framing",
    "ImageSet",
    "JitterTime",
    "NormalizeFrames",
    "RandomFlip",
    "RandomRotation",
    "RandomShift",
    "Recording",
    "SliceConfig",
    "cache_root",
    "check_events",
    "crop_events",
    "cutmix",
    "events_to_frames",
    "find_recordings",
    "hot_pixels",
    "labels_from_folders",
    "ndigits_root",
    "open_dataset",
    "read_events",
    "read_labels",
    "read_recording",
    "record_images",
    "saccade_events",
    "slice_recordings",
    "survey_recordings",
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
) -> EventFolder | ImageSet:
    """Open a data set by its name, any folder of recordings by its path, or packed images.

    Args:
        spec: One of

            - ``"ndigits"``, the embedded recordings;
            - the path of a folder of recordings;
            - ``"nmnist:DIR"``, ``"dvs128gesture:DIR"``, ``"cifar10dvs:DIR"``,
              ``"ncaltech101:DIR"``: SpikingJelly's folder of that set;
            - ``"cifar10:DIR"``, ``"cifar100:DIR"``, ``"mnist:DIR"``, ``"fashionmnist:DIR"``,
              ``"imagenet:DIR"``, ``"folder:DIR"`` or the path of an ``.npz`` file: still images,
              see `ImageSet`.

            A folder that happens to have such a name is reached by a path with a separator
            (``./ndigits``) or a `pathlib.Path`.
        split: See `EventFolder`, as for all the rest.
        steps: T, frames per recording.
        size: (height, width) of the frames or images.
        cache_dir: The cache's folder.
        **options: Further arguments of `EventFolder`: ``split_by``, ``transform`` and so on. Of
            them an `ImageSet` takes ``transform``; the rest is about recordings.

    Raises:
        InputError: Neither a known name nor a folder, or something in the folder is wrong.
    """
    kind, colon, place = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if (colon and kind in IMAGE_SETS) or _is_packed(spec):
        return ImageSet(str(spec), split, size=size, transform=options.get("transform"))
    kwargs = {}
    if colon and kind in EVENT_SETS:
        root, sensor_size = event_set_root(kind, Path(place).expanduser())
        kwargs = {"sensor_size": sensor_size, "test_fraction": EVENT_SETS[kind].test_fraction}
    elif isinstance(spec, str) and spec in EMBEDDED:
        root = EMBEDDED[spec](cache_dir)
    elif isinstance(spec, str) and not Path(spec).exists() and (colon or Path(spec).name == spec):
        names = [*EMBEDDED, *(f"{name}:DIR" for name in (*EVENT_SETS, *IMAGE_SETS))]
        meant = suggest(f"{kind}:DIR" if colon else spec, names)
        raise InputError(
            f"data {spec!r}: no such data set or folder{meant}; give the path of a "
            f"folder of recordings, an npz file of images, or one of {', '.join(names)}"
        )
    else:
        root = Path(spec)
    return EventFolder(root, steps, size, split=split, cache_dir=cache_dir, **kwargs, **options)


def _is_packed(spec: str | os.PathLike) -> bool:
    return Path(spec).suffix.lower() == ".npz" and not Path(spec).is_dir()
