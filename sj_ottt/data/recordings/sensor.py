"""Which sensor several recordings come from, where not every file states it."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from sj_ottt.data.recordings.events import standard_sensor
from sj_ottt.errors import InputError

__all__ = ["Agreed", "Seen", "agree"]


class Seen(NamedTuple):
    """What one recording tells of its sensor.

    Attributes:
        name: The recording.
        stated: (height, width) as its file or its user states it; else None.
        extent: (height, width) that its events reach.
    """

    name: str
    stated: tuple[int, int] | None
    extent: tuple[int, int]


class Agreed(NamedTuple):
    """The sensor of several recordings.

    Attributes:
        size: (height, width).
        assumed: What had to be assumed, in a sentence; None where the files state the size.
    """

    size: tuple[int, int]
    assumed: str | None

    def said(self, *, strict: bool) -> tuple[int, int]:
        """Return the size, and warn of what was assumed.

        Raises:
            InputError: Something was assumed, and ``strict`` is set.
        """
        if self.assumed is not None:
            if strict:
                raise InputError(f"{self.assumed} (--strict takes none that is assumed)")
            warnings.warn(self.assumed, stacklevel=2)
        return self.size


def agree(where: object, seen: Sequence[Seen], *, described: bool = False) -> Agreed:
    """Find the sensor of several recordings.

    It is the one that the files state; where none does, the smallest usual sensor that holds every
    event, see `standard_sensor`; where they disagree, the smallest that holds them all.

    Args:
        where: The data set, for messages.
        seen: What each recording tells, at least one.
        described: Whether a ``dataset.json`` in ``where`` can state the size, for messages.
    """
    height, width = (max((s.stated or s.extent)[i] for s in seen) for i in (0, 1))
    remedy = "give the true one with --sensor-size H W (in Python sensor_size=(H, W))"
    if described:
        remedy += f', or write {{"sensor_size": [H, W]}} into {where}/dataset.json'
    if not any(s.stated for s in seen):
        height, width = standard_sensor(max(height, 1), max(width, 1))
        return Agreed(
            (height, width),
            f"{where}: no file states the sensor's size; {height} x {width} pixels (height x "
            f"width), the smallest usual sensor that holds every event, is taken: {remedy}",
        )
    odd = next((s for s in seen if s.stated and s.stated != (height, width)), None)
    if odd is None or odd.stated is None:
        return Agreed((height, width), None)
    return Agreed(
        (height, width),
        f"{where}: its recordings come from different sensors ({odd.name} from one of "
        f"{odd.stated[0]} x {odd.stated[1]} pixels, height x width); {height} x {width}, the "
        f"smallest that holds all, is taken: keep the cameras apart, or {remedy}",
    )
