"""The data of a training run: what is learned from, kept aside, tested on and looked at."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
from torch import Tensor
from torch.utils.data import Subset

from sj_ottt.data import Augmentation, EventFolder, ImageSet, Preprocessing
from sj_ottt.data.splits import choose_samples, split_samples
from sj_ottt.errors import InputError
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.sections import FrameOptions


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The parts of a data set that a run uses.

    Attributes:
        train: Samples to learn from; augmented, or left to `on_device`.
        validation: Samples of the same part that are kept aside to choose the best epoch.
        test: The test part.
        augmented: All of the train part, as `train`.
        raw: All of the train part, as it looks.
        steps: T of a sample; also of a still image, which is shown at all of them.
        in_chans: Channels of a sample, or values of a step where an image is shown piece by piece.
        on_device: Augments a batch of `train` on the model's device; None where the samples are
            augmented.
    """

    train: Subset
    validation: Subset
    test: EventFolder | ImageSet
    augmented: EventFolder | ImageSet
    raw: EventFolder | ImageSet
    steps: int
    in_chans: int
    on_device: Callable[[Tensor], Tensor] | None

    @classmethod
    def open(cls, cfg: TrainConfig) -> Self:
        """Open the data set of a configuration and divide its train part.

        Raises:
            InputError: Bad data, parts of different classes, options that do not go with the kind
                of data, or too few samples.
        """
        source = cfg.dataset.data
        preprocessing = Preprocessing.from_options(dataclasses.asdict(cfg.frames))
        augmentation = Augmentation.from_options(dataclasses.asdict(cfg.augmentation))
        reading = cfg.dataset.reading
        plain, test = (preprocessing.open(source, part, reading) for part in ("train", "test"))
        augmented, on_device = preprocessing.augment(plain, augmentation), None
        if cfg.augmentation.augment_on == "device":
            augmented, on_device = preprocessing.augment_batches(plain, augmentation)
        if test.classes != plain.classes:
            raise InputError(
                f"{source}: train and test have different classes: "
                f"{', '.join(plain.classes)} and {', '.join(test.classes)}"
            )
        train, validation = _divide(plain, cfg)
        # A sample is a sequence [T, C, ...], or a still image [C, H, W].
        first = plain[0][0]
        steps = cfg.frames.steps if plain.still else first.shape[0]
        if cfg.frames.steps not in (steps, FrameOptions.steps):
            raise InputError(
                f"steps={cfg.frames.steps}: encoding={cfg.frames.encoding} makes {steps} of an "
                f"image of {source}; leave steps out"
            )
        return cls(
            train=Subset(augmented, train.tolist()),
            validation=Subset(plain, validation.tolist()),
            test=test,
            augmented=augmented,
            raw=plain.unprocessed(),
            steps=steps,
            in_chans=first.shape[0] if plain.still else first.shape[1],
            on_device=on_device,
        )

    @property
    def shown_steps(self) -> int | None:
        """How often a still image is to be shown, see `train_step`; None for sequences."""
        return self.steps if self.test.still else None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""
        return tuple(self.test.classes)

    @property
    def train_targets(self) -> np.ndarray:
        """The class of each sample to learn from [n]."""
        return self.augmented.targets[self.train.indices]

    def digest(self) -> str:
        """Digest what a resume must find again: the classes, and what identifies the samples."""
        rows = [part.identity() for part in (self.augmented, self.test)]
        return hashlib.sha256(json.dumps([self.classes, rows]).encode()).hexdigest()

    def describe_input(self) -> dict[str, Any]:
        """Return what a model's file says of its input beside the options, see `ModelInfo`."""
        train, test = self.augmented, self.test
        if isinstance(test, ImageSet):
            return {"stats": (test.mean, test.std)}
        return {
            "sensor_size": test.sensor_size,
            "window": test.window,
            "min_events": test.min_events,
            "activity": None if isinstance(train, ImageSet) else train.activity,
        }

    def examples(self, count: int) -> Iterator[Tensor]:
        """Return the first sample of each of the first classes, to look at."""
        for label in range(min(count, len(self.classes))):
            index = int(np.flatnonzero(self.raw.targets == label)[0])
            yield self.raw[index][0]


def _divide(dataset: EventFolder | ImageSet, cfg: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the samples to learn from, and of those to validate on."""
    seed = cfg.run.seed
    chosen = choose_samples(dataset.targets, cfg.dataset.train_samples, seed)
    windows = None if isinstance(dataset, ImageSet) else dataset.windows()
    train, validation = split_samples(
        dataset.targets[chosen],
        cfg.dataset.val_fraction,
        seed,
        None if windows is None else [windows[i] for i in chosen],
    )
    if cfg.optimisation.early_stop is not None and not len(validation):
        raise InputError(
            f"{cfg.dataset.data}: there are too few samples to keep some aside for validation, "
            "which early_stop needs: leave it out, or record more"
        )
    return chosen[train], chosen[validation]
