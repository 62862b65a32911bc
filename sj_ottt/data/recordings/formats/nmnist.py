"""N-MNIST's ``.bin``: an ATIS stream of 5 bytes an event, from a sensor of 34 x 34 pixels.

A byte each for x and y, then one bit of polarity and 23 bits of µs, big-endian. Nothing in a file
tells the format, so there is no ``sniff``.
"""

from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.events import Recording, pack_events
from sj_ottt.data.recordings.formats.common import at_once
from sj_ottt.errors import InputError

SENSOR_SIZE = (34, 34)

# An event in this row is no pixel: it marks an overflow of the camera's clock.
_OVERFLOW_ROW = 240
_OVERFLOW_US = 1 << 13


def read(path: Path) -> Recording:
    """Read an N-MNIST recording."""
    raw = np.fromfile(path, dtype=np.uint8)
    if raw.size % 5:
        raise InputError(
            f"{path}: truncated: {raw.size} bytes is no multiple of the 5 bytes of an N-MNIST "
            "event; copy it again"
        )
    raw = raw.reshape(-1, 5)
    overflow = raw[:, 1] == _OVERFLOW_ROW
    t = np.cumsum(overflow, dtype=np.int64) * _OVERFLOW_US
    t += (raw[:, 2].astype(np.int64) & 0x7F) << 16
    t += raw[:, 3].astype(np.int64) << 8
    t += raw[:, 4]
    fields: dict[str, np.ndarray] = {"t": t, "x": raw[:, 0], "y": raw[:, 1], "p": raw[:, 2] >> 7}
    columns = {name: column[~overflow] for name, column in fields.items()}
    return Recording(pack_events(columns, path), SENSOR_SIZE)


stream = at_once(read)
