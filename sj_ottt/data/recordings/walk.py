"""One pass through a recording, block by block: checked, and behind a progress bar."""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from sj_ottt.data.recordings.events import EVENT_DTYPE, LARGEST_SENSOR, check_events
from sj_ottt.data.recordings.source import Source
from sj_ottt.errors import InputError

__all__ = ["walk"]

_SHOWN_AFTER_S = 1.0


def walk(source: Source, sensor_size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
    """Give a recording's events block by block, each checked before it is given.

    A terminal shows a progress bar where that takes more than a second.

    Args:
        source: The recording; its blocks are taken from it once.
        sensor_size: (height, width) that must hold every event; None takes what the source states,
            and where it states nothing, any sensor there may be.

    Yields:
        Events [n], n > 0, of `EVENT_DTYPE`.

    Raises:
        InputError: As `check_events`, of the recording as a whole.
    """
    size = sensor_size or source.sensor_size or (LARGEST_SENSOR, LARGEST_SENSOR)
    if max(size) > LARGEST_SENSOR and sensor_size is None:
        raise InputError(f"{source.name}: {size[0]} x {size[1]} pixels; mend the recording")
    before, last = 0, None
    with tqdm(
        total=source.expected,
        desc=source.name.rpartition("/")[2],
        unit="event",
        unit_scale=True,
        leave=False,
        delay=_SHOWN_AFTER_S,
        disable=None,  # shown on a terminal only
    ) as bar:
        for block in source.chunks:
            if not len(block):
                continue
            if last is not None:
                name = f"{source.name}, behind its first {before - 1} events"
                check_events(np.concatenate([last, block[:1]]), name, size)
            name = f"{source.name}, behind its first {before} events" if before else source.name
            check_events(block, name, size)
            before, last = before + len(block), block[-1:].copy()
            yield block
            bar.update(len(block))
    if not before:
        check_events(np.empty(0, EVENT_DTYPE), source.name, size)
