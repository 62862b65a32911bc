"""Events as text, one line an event: CSV or TXT.

Numbers are parted by commas, semicolons, tabs or spaces; lines that begin with ``#`` are passed
over. A line of names (t, x, y, p in any order; also time, timestamp, ts, pol, polarity) says what
the columns are. Without one they are t x y p, or, where the last column holds no polarity and the
third does, x y p t as Metavision writes CSV. Whole times are µs; times with a decimal point or an
exponent are seconds. A line of two whole numbers before the events states the sensor's width and
height.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sj_ottt.data.events import EVENT_DTYPE, Recording, pack_events
from sj_ottt.data.formats.common import reason
from sj_ottt.errors import InputError

_NAMES = {
    **dict.fromkeys(("t", "time", "timestamp", "ts", "t_us"), "t"),
    **dict.fromkeys(("p", "pol", "polarity"), "p"),
    "x": "x",
    "y": "y",
}
_WHOLE = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")


def sniff(head: bytes) -> bool:
    """Tell text whose first line is numbers or names of columns."""
    try:
        lines = head.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return False
    cells = next((cells for cells in map(_cells, lines) if cells), [])
    numbers = len(cells) in (2, 4) and all(map(_NUMBER.fullmatch, cells))
    return numbers or _columns(cells) is not None


def read(path: Path) -> Recording:
    """Read events from text."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            head = _read_head(file)
        if not head.first:
            return Recording(np.empty(0, EVENT_DTYPE), head.sensor_size)
        places = head.places or {str(i): i for i in range(len(head.first))}
        with open(path, encoding="utf-8-sig") as file:
            table = np.loadtxt(
                file,
                delimiter=next((c for c in ",;\t" if c in head.line), None),
                skiprows=head.n_lines,
                usecols=list(places.values()),
                ndmin=2,
            )
        if table.shape[1] != 4:
            raise ValueError(f"{table.shape[1]} in line {head.n_lines + 1}")
        if not (np.abs(table) < 2**53).all():
            raise ValueError("a number beyond all bounds")
    except ValueError as error:
        raise InputError(
            f"{path}: not four numbers (t x y p) in each line ({reason(error)}); mend that line, "
            "or name the columns in a first line, such as t,x,y,p"
        ) from error
    if not head.places:
        third_only = _is_polarity(table[:, 2]) and not _is_polarity(table[:, 3])
        places = {name: i for i, name in enumerate("xypt" if third_only else "txyp")}
    columns = dict(zip(places, table.T, strict=True))
    if not _WHOLE.fullmatch(head.first[places["t"]]) or _has_fractions(columns["t"]):
        columns["t"] = np.rint(columns["t"] * 1e6)  # to the µs that the camera counted
    for name in "xyp":
        if _has_fractions(columns[name]):
            raise InputError(f"{path}: column {name} holds fractions; give whole numbers")
    events = {name: column.astype(np.int64) for name, column in columns.items()}
    return Recording(pack_events(events, path), head.sensor_size)


class _Head(NamedTuple):
    """What comes before the events, and the first of them.

    Attributes:
        n_lines: How many lines come before the first event.
        places: The column of t, x, y and p, where a line names them.
        sensor_size: (height, width), where a line states them.
        line: The first event's line.
        first: Its cells.
    """

    n_lines: int
    places: dict[str, int] | None
    sensor_size: tuple[int, int] | None
    line: str = ""
    first: tuple[str, ...] = ()


def _read_head(lines: Iterable[str]) -> _Head:
    n_lines, places, sensor_size = 0, None, None
    for line in lines:
        cells = _cells(line)
        if places is None and (named := _columns(cells)):
            places = named
        elif sensor_size is None and len(cells) == 2 and all(map(_WHOLE.fullmatch, cells)):
            sensor_size = int(cells[1]), int(cells[0])
        elif cells:
            return _Head(n_lines, places, sensor_size, line, tuple(cells))
        n_lines += 1
    return _Head(n_lines, places, sensor_size)


def _cells(line: str) -> list[str]:
    """Part a line; a comment has no cells."""
    line = line.strip()
    return [] if line.startswith("#") else [c for c in re.split(r"[,;\s]+", line) if c]


def _columns(cells: list[str]) -> dict[str, int] | None:
    """Return the place of each of t, x, y and p in a line of names; None for any other line."""
    places = {_NAMES[c.lower()]: i for i, c in enumerate(cells) if c.lower() in _NAMES}
    return {name: places[name] for name in "txyp"} if len(places) == 4 else None


def _is_polarity(column: np.ndarray) -> bool:
    return bool(np.isin(column, (-1, 0, 1)).all())


def _has_fractions(column: np.ndarray) -> bool:
    return bool((column != np.rint(column)).any())
