"""What is done to training samples at random, and in which order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from sj_ottt.data import transforms

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """How training samples are varied; what is 0 is left out.

    Attributes:
        drop_events: See `DropEvents`; of frames of events only.
        time_jitter: See `JitterTime`; of frames of events only.
        flip: See `RandomFlip`.
        rotate: See `RandomRotation`, in degrees.
        shift: See `RandomShift`, in pixels.
        cutout: See `Cutout`, in pixels.
    """

    drop_events: float = 0.0
    time_jitter: float = 0.0
    flip: float = 0.0
    rotate: float = 0.0
    shift: int = 0
    cutout: int = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "Augmentation":
        """Pick the fields from options that hold others too; a missing one has its default."""
        return cls(**{f.name: options[f.name] for f in fields(cls) if f.name in options})

    def before_normalization(self) -> list[Callable[[Tensor], Tensor]]:
        """Return the transforms of raw values, those that need whole counts first.

        Raises:
            InputError: A value is out of range.
        """
        kinds: tuple[tuple[Callable[[Any], Callable[[Tensor], Tensor]], float], ...] = (
            (transforms.DropEvents, self.drop_events),
            (transforms.JitterTime, self.time_jitter),
            (transforms.RandomFlip, self.flip),
            (transforms.RandomRotation, self.rotate),
            (transforms.RandomShift, self.shift),
        )
        return [kind(strength) for kind, strength in kinds if strength]

    def after_normalization(self) -> list[Callable[[Tensor], Tensor]]:
        """Return the transforms of normalized values.

        Raises:
            InputError: A value is out of range.
        """
        return [transforms.Cutout(self.cutout)] if self.cutout else []
