"""Data sets: event recordings as frames, the embedded ``ndigits``, and still images.

Sizes are (height, width), times are µs, frames are [T, 2, H, W] with channel 1 for ON events.
"""

from sj_ottt._files import cache_root
from sj_ottt.data.augmentation import Augmentation
from sj_ottt.data.encodings import ENCODINGS
from sj_ottt.data.frames.frames import crop_events, events_to_frames, time_surface
from sj_ottt.data.frames.framing import Framing
from sj_ottt.data.frames.hot_pixels import hot_pixels
from sj_ottt.data.loading import collate_for, collate_still_images, collate_time_first
from sj_ottt.data.prepare.slice import SliceConfig, slice_recordings
from sj_ottt.data.prepare.survey import survey_recordings
from sj_ottt.data.preprocessing import Preprocessing
from sj_ottt.data.recordings.events import EVENT_DTYPE, Recording, check_events, write_events
from sj_ottt.data.recordings.folders import find_recordings
from sj_ottt.data.recordings.label_table import labels_from_folders, read_labels
from sj_ottt.data.recordings.readers import open_recording, read_events, read_recording
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.data.sets.event_folder import EventFolder
from sj_ottt.data.sets.images import ImageSet, ImageStats
from sj_ottt.data.sets.ndigits import ndigits_root
from sj_ottt.data.sets.open import open_dataset
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
    Saccade,
    SaccadeDraws,
    apply_to_batch,
    cutmix,
)

__all__ = [
    "ENCODINGS",
    "EVENT_DTYPE",
    "Augmentation",
    "Compose",
    "Cutout",
    "DropEvents",
    "EventFolder",
    "Framing",
    "ImageSet",
    "ImageStats",
    "JitterTime",
    "NormalizeFrames",
    "Preprocessing",
    "RandomFlip",
    "RandomRotation",
    "RandomShift",
    "ReadOptions",
    "Recording",
    "Saccade",
    "SaccadeDraws",
    "SliceConfig",
    "Source",
    "apply_to_batch",
    "cache_root",
    "check_events",
    "collate_for",
    "collate_still_images",
    "collate_time_first",
    "crop_events",
    "cutmix",
    "events_to_frames",
    "find_recordings",
    "hot_pixels",
    "labels_from_folders",
    "ndigits_root",
    "open_dataset",
    "open_recording",
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
