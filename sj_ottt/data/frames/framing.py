"""How recordings become frames, from the events to the whole numbers that the cache keeps."""

import dataclasses
import os

import numpy as np
import torch

from sj_ottt.data.frames.frames import (
    Crop,
    TooFewEvents,
    check_crop,
    check_size,
    check_split_by,
    check_steps,
    check_tau,
    crop_box,
    crop_events,
    events_to_frames,
    time_surface,
)
from sj_ottt.data.frames.hot_pixels import check_ratio, hot_pixels
from sj_ottt.data.recordings.events import check_events
from sj_ottt.errors import InputError

CONTENTS = ("counts", "surface")
# A time surface is kept in bytes, each value off by at most half a 255th.
_SURFACE_UNIT = 1 / 255


@dataclasses.dataclass(frozen=True)
class Framing:
    """From events to frames: hot pixels go first, then what is outside the crop.

    Attributes:
        steps: T, frames per recording.
        size: (height, width) of the frames; None keeps the crop's.
        split_by: ``"count"`` or ``"duration"``, see `events_to_frames`.
        frames: What they show: ``"counts"`` of events, or a time ``"surface"``, see `time_surface`.
        tau_us: Time constant of the surface in µs; None takes half of the frames' mean duration.
        crop: Box of the sensor, see `crop_events`; None takes all of it.
        hot_pixels: Drop the pixels that fire this many times as often in a recording as those
            around them, see `hot_pixels.hot_pixels`; None drops none.

    Raises:
        InputError: A wrong argument.
    """

    steps: int
    size: tuple[int, int] | None = None
    split_by: str = "count"
    frames: str = "counts"
    tau_us: float | None = None
    crop: Crop | None = None
    hot_pixels: float | None = None

    def __post_init__(self) -> None:
        check_split_by(self.split_by)
        if self.frames not in CONTENTS:
            raise InputError(f"frames={self.frames!r}: choose one of {', '.join(CONTENTS)}")
        for name, check in (
            ("steps", check_steps),
            ("size", lambda size: check_size("size", size)),
            ("tau_us", check_tau),
            ("crop", check_crop),
            ("hot_pixels", lambda ratio: check_ratio("hot_pixels", ratio)),
        ):
            if (value := getattr(self, name)) is not None or name == "steps":
                object.__setattr__(self, name, check(value))

    @property
    def unit(self) -> float | None:
        """What 1 stands for in a time surface of whole numbers; None for counts of events."""
        return _SURFACE_UNIT if self.frames == "surface" else None

    @property
    def fewest_events(self) -> int:
        """The fewest events that frames can be made of."""
        return self.steps if self.split_by == "count" else 1

    def frame_size(self, sensor_size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the frames.

        Raises:
            InputError: The crop is not within the sensor.
        """
        cropped = sensor_size if self.crop is None else crop_box(self.crop, sensor_size)[2:]
        return self.size or cropped

    def __call__(
        self, events: np.ndarray, sensor_size: tuple[int, int], source: str | os.PathLike
    ) -> np.ndarray:
        """Return the frames of a recording in whole numbers of `unit`, [T, 2, H, W].

        Raises:
            InputError: Events that cannot be right, or (`TooFewEvents`) of which too few are left.
        """
        if self.hot_pixels is not None or self.crop is not None:
            check_events(events, source, sensor_size)
            events, sensor_size = self._select(events, sensor_size)
            if not len(events):
                raise TooFewEvents(
                    f"{source}: has no events but those of hot pixels or outside the crop; change "
                    "crop or hot_pixels, or remove the recording"
                )
        args = (events, self.steps, sensor_size, self.size, self.split_by)
        if self.frames == "counts":
            return events_to_frames(*args, source=source)
        surface = time_surface(*args, self.tau_us, source=source)
        return np.rint(surface / _SURFACE_UNIT).astype(np.uint8)

    def to_tensor(self, kept: np.ndarray) -> torch.Tensor:
        """Return frames in whole numbers of `unit` as what they stand for, a new float32 tensor."""
        frames = torch.from_numpy(np.array(kept, dtype=np.float32))
        return frames if self.unit is None else frames.mul_(self.unit)

    def _select(
        self, events: np.ndarray, sensor_size: tuple[int, int]
    ) -> tuple[np.ndarray, tuple[int, int]]:
        if self.hot_pixels is not None:
            hot = hot_pixels(events, sensor_size, ratio=self.hot_pixels)
            events = events[~hot[events["y"], events["x"]]]
        if self.crop is not None:
            events, sensor_size = crop_events(events, sensor_size, self.crop)
        return events, sensor_size
