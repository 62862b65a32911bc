"""Windows of long recordings: where they begin, and the list of those in a sliced data set."""

import csv
from dataclasses import dataclass
from pathlib import Path

from sj_ottt.data.recordings.folders import SLICES
from sj_ottt.errors import InputError


@dataclass(frozen=True)
class Window:
    """One sample: a recording's events from ``start`` up to, not including, ``start + length``.

    Attributes:
        recording: The path of the recording.
        session: The session that it belongs to.
        label: The class.
        start: In µs from the recording's first event.
        length: In µs.
        events: How many events there are.
    """

    recording: str
    session: str
    label: str
    start: int
    length: int
    events: int


def window_starts(start: int, end: int, window: int, stride: int) -> range:
    """Return where windows begin that lie wholly within [``start``, ``end``), ``stride`` apart."""
    return range(start, end - window + 1, stride)


def read_slices(root: Path) -> dict[str, Window] | None:
    """Return the window that each file of a sliced data set is; None for any other data set.

    Raises:
        InputError: The list of windows is damaged.
    """
    path = root / SLICES
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["file"]: _window(row) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is damaged ({type(error).__name__}: {error}); slice the recordings again"
        ) from error


def _window(row: dict[str, str]) -> Window:
    start = int(row["start"])
    origin = row["recording"], row["session"], row["label"]
    return Window(*origin, start, int(row["end"]) - start, int(row["events"]))
