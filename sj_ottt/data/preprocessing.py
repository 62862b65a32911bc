"""From a recording's events, or a still image, to what a network sees: the one path there is.

Data sets, prediction, live prediction and adaptation all go through `Preprocessing`. It is part of
a trained model, which must see later samples as those that it learned on.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor

from sj_ottt.data import transforms
from sj_ottt.data.augmentation import Augmentation
from sj_ottt.data.encodings import ENCODINGS, EVENTS_FROM_IMAGE, OF_INTENSITIES
from sj_ottt.data.frames.framing import Framing
from sj_ottt.data.recordings.source import ReadOptions
from sj_ottt.data.sets.event_folder import EventFolder
from sj_ottt.data.sets.images import ImageSet, ImageStats
from sj_ottt.data.sets.open import open_dataset
from sj_ottt.errors import InputError

__all__ = ["Preprocessing"]

_Chain = list[Callable[[Tensor], Tensor]]
_AS_IT_IS = ReadOptions()


@dataclass(frozen=True)
class Preprocessing:
    """How a sample becomes what a network sees.

    Attributes:
        framing: How recordings become frames; of still images, its steps and size count.
        normalize: Whether to scale frames (`NormalizeFrames`) and to standardize images; frames of
            events from images are scaled.
        encoding: How images become sequences, a name in `ENCODINGS`.
        stats: Of the images that the network learned from; None takes those of the data set.

    Raises:
        InputError: An unknown encoding.
    """

    framing: Framing
    normalize: bool = True
    encoding: str = "direct"
    stats: ImageStats | None = None

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise InputError(f"encoding={self.encoding!r}: choose one of {', '.join(ENCODINGS)}")

    @property
    def events_from_images(self) -> bool:
        """Whether images become frames of events, so that a network takes recordings as well."""
        return self.encoding in EVENTS_FROM_IMAGE

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "Preprocessing":
        """Pick the fields from flat options that hold others too; a missing one has its default.

        Args:
            options: ``steps``, ``size`` and the other fields of `Framing`, ``normalize``,
                ``encoding``, and ``stats`` as a pair.

        Raises:
            InputError: A wrong value.
        """
        framing = Framing(**{f.name: options[f.name] for f in fields(Framing) if f.name in options})
        own = {name: options[name] for name in ("normalize", "encoding") if name in options}
        if options.get("stats") is not None:
            own["stats"] = ImageStats(*map(tuple, options["stats"]))
        return cls(framing, **own)

    def options(self) -> dict[str, Any]:
        """Return flat options, in values that JSON can hold, of which `from_options` is made."""
        own = {"normalize": self.normalize, "encoding": self.encoding}
        stats = {} if self.stats is None else {"stats": self.stats}
        return {**asdict(self.framing), **own, **stats}

    def with_steps(self, steps: int) -> "Preprocessing":
        """Return the same with another number of time steps.

        Raises:
            InputError: No whole number of at least 1.
        """
        return replace(self, framing=replace(self.framing, steps=steps))

    def single_frame(self) -> "Preprocessing":
        """Return the same for one frame of a stream: T = 1, of counts, hot pixels included."""
        return replace(self, framing=Framing(1, self.framing.size, crop=self.framing.crop))

    def __call__(
        self, events: np.ndarray, sensor_size: tuple[int, int], source: str | PathLike
    ) -> Tensor:
        """Return what a network sees of a recording, as a data set of `open` gives it.

        Args:
            events: [n] of `EVENT_DTYPE`, in order of time.
            sensor_size: (height, width) in pixels.
            source: The name that messages give to the recording.

        Returns:
            Frames, float32 [T, 2, H, W].

        Raises:
            InputError: Events that cannot be right, or too few of them.
        """
        frames = self.framing.to_tensor(self.framing(events, sensor_size, source))
        transform = self._transform_of_frames()
        return frames if transform is None else transform(frames)

    def open(
        self, spec: str | PathLike, split: str | None, reading: ReadOptions = _AS_IT_IS
    ) -> EventFolder | ImageSet:
        """Open a data set as a network sees it, without augmentation.

        Args:
            spec: See `open_dataset`.
            split: ``"train"`` or ``"test"``; of recordings, None for both.
            reading: How recordings are read.

        Raises:
            InputError: Bad data; recordings with an encoding that makes no events of images; or a
                way to read recordings, for images.
        """
        # What is not given is left to the data set: a published one knows its sensor.
        given = {name: value for name, value in asdict(reading).items() if value}
        options = {**asdict(self.framing), **given}
        dataset = open_dataset(spec, split=split, stats=self.stats, **options)
        if isinstance(dataset, ImageSet):
            for name, value in given.items():
                raise InputError(_for_recordings(name, value, dataset))
            return dataset.with_transform(*self._transform_of_images(dataset))
        if not self.events_from_images:
            self._check_for_recordings(spec)
        return dataset.with_transform(self._transform_of_frames())

    def augment(
        self, dataset: EventFolder | ImageSet, augmentation: Augmentation
    ) -> EventFolder | ImageSet:
        """Return a data set of `open` for training: the same samples, augmented.

        Raises:
            InputError: An option for recordings, but the data set holds still images, or the
                reverse.
        """
        if isinstance(dataset, EventFolder):
            self._check_for_recordings(dataset.root)
            return dataset.with_transform(self._transform_of_frames(augmentation))
        self._check_for_images(dataset, augmentation)
        return dataset.with_transform(*self._transform_of_images(dataset, augmentation))

    def augment_batches(
        self, dataset: EventFolder | ImageSet, augmentation: Augmentation
    ) -> tuple[EventFolder | ImageSet, Callable[[Tensor], Tensor]]:
        """Do what `augment` does in two parts: for samples, and for batches on their device.

        Returns:
            The data set of samples that are not yet augmented; and a function of their batches,
            [T, N, C, H, W] or [N, C, H, W], that augments and normalizes them.

        Raises:
            InputError: As `augment`; or an encoding that takes images which are augmented already.
        """
        if isinstance(dataset, EventFolder):
            self._check_for_recordings(dataset.root)
            chain = self._chain_of_frames(augmentation)
            return dataset.unprocessed(), partial(transforms.apply_to_batch, chain)
        self._check_for_images(dataset, augmentation)
        fit, encode, chain = self._steps_of_images(dataset, augmentation)
        if encode is not None and not self.events_from_images:
            raise InputError(
                f"augment_on=device does not go with encoding={self.encoding}, which takes images "
                "that are augmented already: leave one out"
            )
        split = dataset.with_transform(_compose(fit), encode)
        return split, partial(transforms.apply_to_batch, chain)

    def _chain_of_frames(self, augmentation: Augmentation | None) -> _Chain:
        return _around(augmentation, [transforms.NormalizeFrames()] if self.normalize else [])

    def _steps_of_images(
        self, dataset: ImageSet, augmentation: Augmentation | None
    ) -> tuple[_Chain, Callable[[Tensor], Tensor] | None, _Chain]:
        """Return what brings images to one size, what makes sequences, and all that varies.

        What varies comes after the second where that makes frames of events, else before it.
        """
        training = augmentation is not None
        fit, encode = dataset.fit(training), ENCODINGS[self.encoding](self.framing.steps, training)
        if self.events_from_images:
            return fit, encode, self._chain_of_frames(augmentation)
        normalize: _Chain = []
        if self.normalize and self.encoding not in OF_INTENSITIES:
            normalize = [transforms.Normalize(dataset.mean, dataset.std)]
        return fit, encode, _around(augmentation, normalize)

    def _transform_of_frames(
        self, augmentation: Augmentation | None = None
    ) -> transforms.Compose | None:
        return _compose(self._chain_of_frames(augmentation))

    def _transform_of_images(
        self, dataset: ImageSet, augmentation: Augmentation | None = None
    ) -> tuple[transforms.Compose | None, Callable[[Tensor], Tensor] | None]:
        """Return what is done to an image, and what then makes a sequence of it."""
        fit, encode, chain = self._steps_of_images(dataset, augmentation)
        if self.events_from_images and encode is not None:
            # What is done to recordings is done to the frames: moved or cut before, an image would
            # have edges that no camera sees.
            return _compose(fit), _compose([encode, *chain])
        return _compose([*fit, *chain]), encode

    def _check_for_recordings(self, source: object) -> None:
        """Refuse what only images have."""
        if self.encoding != "direct":
            raise InputError(
                f"encoding={self.encoding} makes sequences of still images, but {source} holds "
                "recordings: leave it out"
            )

    def _check_for_images(self, dataset: ImageSet, augmentation: Augmentation) -> None:
        """Refuse options that only recordings have."""
        for_recordings = [
            (f.name, getattr(self.framing, f.name), f.default)
            for f in fields(Framing)
            if f.name not in ("steps", "size")
        ]
        for_recordings += [
            (f.name, getattr(augmentation, f.name), f.default)
            for f in fields(Augmentation)
            if f.name in ("drop_events", "time_jitter") and not self.events_from_images
        ]
        for name, value, default in for_recordings:
            if value != default:
                raise InputError(_for_recordings(name, value, dataset))


def _for_recordings(name: str, value: object, dataset: ImageSet) -> str:
    return f"{name}={value} is for recordings, but {dataset.spec} holds still images: leave it out"


def _around(augmentation: Augmentation | None, normalize: _Chain) -> _Chain:
    """Return all that is done to a sample, in order."""
    if augmentation is None:
        return normalize
    return [
        *augmentation.before_normalization(),
        *normalize,
        *augmentation.after_normalization(),
    ]


def _compose(chain: _Chain) -> transforms.Compose | None:
    return transforms.Compose(chain) if chain else None
