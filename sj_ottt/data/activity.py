"""How active recordings are: their rates of events and shares of ON, and what is unlike others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Activity", "Totals", "activity_of", "totals_of", "unlike"]

_QUANTILES = (0.05, 0.5, 0.95)
# What lies further than so from most of the samples is worth a word.
_RATE_FACTOR = 3.0
_SHARE_MARGIN = 0.15


class Totals(NamedTuple):
    """Events of a sample, or of several together.

    Attributes:
        events: How many.
        on_events: How many of polarity 1.
        duration: In µs.
    """

    events: int
    on_events: int
    duration: int


class Activity(NamedTuple):
    """How active the samples of a data set are: 5%, 50% and 95% of them have less.

    Attributes:
        rates: Events per second and pixel of the sensor.
        on_shares: Share of ON events, 0 to 1.
    """

    rates: tuple[float, float, float]
    on_shares: tuple[float, float, float]


def totals_of(events: np.ndarray, duration: int) -> Totals:
    """Count the events [n] of a sample of ``duration`` µs."""
    return Totals(len(events), int(np.count_nonzero(events["p"])), duration)


def activity_of(samples: Sequence[Totals], sensor_size: tuple[int, int]) -> Activity | None:
    """Describe samples; None where none of them has events and a duration.

    Args:
        samples: The totals of each.
        sensor_size: (height, width) in pixels.
    """
    usable = [s for s in samples if s.events and s.duration > 0]
    if not usable:
        return None
    events, on_events, duration = np.array(usable, np.float64).T
    rates = events / (duration / 1e6) / (sensor_size[0] * sensor_size[1])
    low, middle, high = np.quantile(rates, _QUANTILES).tolist()
    off, half, on = np.quantile(on_events / events, _QUANTILES).tolist()
    return Activity((low, middle, high), (off, half, on))


def unlike(
    usual: Activity, seen: Totals, sensor_size: tuple[int, int], *, always: bool = False
) -> str | None:
    """Say how a recording's activity compares with that of others, where it is unlike theirs.

    Args:
        usual: Of the others.
        seen: Of the recording.
        sensor_size: (height, width) of its sensor.
        always: Say it also where it is much like theirs.

    Returns:
        Part of a sentence, or None.
    """
    own = activity_of([seen], sensor_size)
    if own is None:
        return None
    rate, share = own.rates[1], own.on_shares[1]
    low, middle, high = usual.rates
    off, half, on = usual.on_shares
    alike = low / _RATE_FACTOR <= rate <= high * _RATE_FACTOR
    alike &= off - _SHARE_MARGIN <= share <= on + _SHARE_MARGIN
    if alike and not always:
        return None
    return (
        f"{rate:.3g} events per second and pixel, {share:.0%} of them ON, where training had "
        f"{middle:.3g} ({low:.3g} to {high:.3g}) and {half:.0%} ({off:.0%} to {on:.0%})"
    )
