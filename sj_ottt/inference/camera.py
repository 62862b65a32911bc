"""Recordings of another camera than a model learned from: how they fit, and what is said of that.

The model's frames stay as they are. What it saw of its own sensor is looked for in the other one:
the same part of the same shape, whose pixels are binned onto the frames.
"""

import warnings
from dataclasses import replace
from typing import NamedTuple

from sj_ottt.data import Preprocessing
from sj_ottt.data.activity import Totals, unlike
from sj_ottt.data.frames.frames import Crop, crop_box
from sj_ottt.data.recordings.source import Source
from sj_ottt.errors import InputError
from sj_ottt.run.evaluation import TrainedModel

__all__ = ["Fit", "Watch", "check_trained", "fit_source", "matching_box"]

# Sensors whose shapes differ by so little are binned whole.
_ALIKE = 0.02

Size = tuple[int, int]


class Fit(NamedTuple):
    """How the events of a source become a model's input.

    Attributes:
        sensor_size: (height, width) of the source's sensor.
        preprocessing: From its events to the input.
        other: Whether that sensor is another one than the model learned from.
    """

    sensor_size: Size
    preprocessing: Preprocessing
    other: bool = False


def check_trained(trained: TrainedModel) -> Size | None:
    """Check that a model was trained on recordings, or on events of images.

    Returns:
        (height, width) of its recordings' sensor; None for events of images, which have none.

    Raises:
        InputError: It was not.
    """
    info = trained.info
    on_recordings = info.in_chans == 2 and info.sensor_size is not None
    if not on_recordings and not trained.preprocessing.events_from_images:
        raise InputError(
            f"{trained.path} was not trained on recordings: train on recordings first, or on "
            "images with encoding=saccade"
        )
    return info.sensor_size


def fit_source(
    trained: TrainedModel, source: Source, *, strict: bool = False, said: set[Size] | None = None
) -> Fit:
    """Say how a source's events become a model's input, with a warning where the sensor is another.

    Args:
        trained: The model.
        source: A source that states no sensor is taken to be of the model's. A model that learned
            from events of images takes any sensor of known size.
        strict: Refuse another sensor.
        said: Sensors of which nothing is to be said any more; that of the source is added.

    Raises:
        InputError: Another sensor, and ``strict`` is set; one that is not known where it must be;
            or as `check_trained`.
    """
    if (learned := check_trained(trained)) is None:
        if source.sensor_size is None:
            raise InputError(
                f"{source.name}: does not state the size of its sensor, nor does {trained.path}, "
                "which learned from images: give --sensor-size H W (in Python "
                "ReadOptions(sensor_size=(H, W)))"
            )
        return Fit(source.sensor_size, trained.preprocessing)
    own = source.sensor_size or learned
    if own == learned:
        return Fit(learned, trained.preprocessing)
    differs = (
        f"{source.name}: comes from a sensor of {own[0]} x {own[1]} pixels (height x width), but "
        f"{trained.path} learned from one of {learned[0]} x {learned[1]}"
    )
    if strict:
        raise InputError(
            f"{differs}: take recordings of that camera, or leave out --strict, which then fits "
            "them to the model's frames"
        )
    framing = trained.preprocessing.framing
    box = matching_box(own, learned, framing.crop)
    size = framing.frame_size(learned)
    if own not in (said or ()):
        part = own if box is None else box[2:]
        seen = "all of it" if box is None else f"its part of {part[0]} x {part[1]} from row "
        seen += "" if box is None else f"{box[0]} and column {box[1]}"
        gaps = " (with gaps, as it has fewer pixels)" if part[0] < size[0] else ""
        warnings.warn(
            f"{differs}: {seen} is binned onto the model's frames of {size[0]} x {size[1]}{gaps}; "
            "labels may be wrong more often: adapt the model, or train with recordings of this "
            "camera",
            stacklevel=2,
        )
    if said is not None:
        said.add(own)
    framing = replace(framing, size=size, crop=box)
    return Fit(own, replace(trained.preprocessing, framing=framing), other=True)


def matching_box(own: Size, learned: Size, crop: Crop | None) -> tuple[int, int, int, int] | None:
    """Return the part of a sensor that shows what a model saw of another one.

    With a sensor of the same shape, within 2%, all of it stands for all of the other one; else the
    largest part of that shape in its middle does.

    Args:
        own: (height, width) of the sensor.
        learned: The same of the one that the model learned from.
        crop: The box of that one that it saw; None for all of it.

    Returns:
        (top, left, height, width); None for all of the sensor.
    """
    scale = min(own[0] / learned[0], own[1] / learned[1])
    shape = [round(side * scale) for side in learned]
    if all(abs(a - b) <= _ALIKE * a for a, b in zip(own, shape, strict=True)):
        shape = list(own)
    corner = [(a - b) // 2 for a, b in zip(own, shape, strict=True)]
    seen = (0, 0, *learned) if crop is None else crop_box(crop, learned)
    first = [corner[i] + seen[i] * shape[i] // learned[i] for i in (0, 1)]
    sides = [max(1, seen[i + 2] * shape[i] // learned[i]) for i in (0, 1)]
    box = first[0], first[1], sides[0], sides[1]
    return None if box == (0, 0, *own) else box


class Watch:
    """Compares the events that a model is given with those that it learned from.

    Args:
        trained: The model; of one whose file does not say how active its recordings were, nothing
            is said.
        name: What messages call the recording.
    """

    def __init__(self, trained: TrainedModel, name: str) -> None:
        self._usual = trained.info.activity
        self._name = name
        self._seen: dict[Fit, Totals] = {}

    def add(self, totals: Totals, fit: Fit) -> None:
        """Take the events of a window."""
        before = self._seen.get(fit, Totals(0, 0, 0))
        self._seen[fit] = Totals(*(a + b for a, b in zip(before, totals, strict=True)))

    def report(self) -> None:
        """Warn where they are unlike, or from another sensor."""
        if self._usual is None:
            return
        for fit, seen in self._seen.items():
            if text := unlike(self._usual, seen, fit.sensor_size, always=fit.other):
                warnings.warn(f"{self._name}: {text}", stacklevel=2)
