"""Events as text, one event a line: CSV or TXT.

Numbers are separated by commas, semicolons, tabs or spaces; lines that begin with ``#`` are
skipped. A line of names (t, x, y, p in any order; also time, timestamp, ts, pol, polarity) says
what the columns are. Without one they are t x y p, or, where the last column holds no polarity and
the third does, x y p t as Metavision writes CSV. Times in whole numbers are µs; times with a
decimal point or an exponent are seconds. A line of two whole numbers before the events states the
sensor's width and height.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sj_ottt.data.recordings.events import EVENT_DTYPE, pack_events
from sj_ottt.data.recordings.formats.common import reason
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

_NAMES = {
    **dict.fromkeys(("t", "time", "timestamp", "ts", "t_us"), "t"),
    **dict.fromkeys(("p", "pol", "polarity"), "p"),
    "x": "x",
    "y": "y",
}
_PIECE = 1 << 22
_WHOLE = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")


class _Head(NamedTuple):
    """What comes before the events, and the first of them.

    Attributes:
        n_lines: How many lines come before the first event.
        columns: The column of t, x, y and p, where a line names them.
        sensor_size: (height, width), where a line states them.
        line: The first event's line.
        first: Its cells.
    """

    n_lines: int
    columns: dict[str, int] | None
    sensor_size: tuple[int, int] | None
    line: str = ""
    first: tuple[str, ...] = ()


def sniff(head: bytes) -> bool:
    """Recognize text whose first line is numbers or names of columns."""
    try:
        lines = head.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return False
    cells = next((cells for cells in map(_cells, lines) if cells), [])
    numbers = len(cells) in (2, 4) and all(map(_NUMBER.fullmatch, cells))
    return numbers or _columns(cells) is not None


def stream(path: Path, options: ReadOptions) -> Source:
    """Read events from text, piece by piece."""
    return Source(str(path), _pieces(path), stated_size(path))


def stated_size(path: Path) -> tuple[int, int] | None:
    """Return the (height, width) that a line before the events states, else None."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return _read_head(file).sensor_size


class TextStream:
    """Reads events from text that comes in pieces; its first events decide what the columns are.

    Args:
        name: What messages call the stream.

    Attributes:
        name: As given.
        sensor_size: (height, width), where a line before the events states it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.sensor_size: tuple[int, int] | None = None
        self._rest = b""
        self._head: _Head | None = None
        self._table_format: _TableFormat | None = None

    def feed(self, piece: bytes, *, last: bool = False) -> np.ndarray:
        """Take a piece of text of any length, and return the events of the lines it completes.

        Args:
            piece: The bytes.
            last: Whether nothing follows, so that a line needs no line break to be complete.

        Returns:
            Events [n] of `EVENT_DTYPE`.

        Raises:
            InputError: A line that holds no event.
        """
        whole, line_break, self._rest = (self._rest + piece).rpartition(b"\n")
        if last:
            whole, self._rest = whole + line_break + self._rest, b""
        try:
            lines = whole.decode("utf-8-sig").splitlines()
            if self._head is None:
                head = _read_head(lines)
                if not head.first:
                    self._rest = whole + line_break + self._rest  # no event yet: read the head anew
                    return np.empty(0, EVENT_DTYPE)
                self._head, self.sensor_size = head, head.sensor_size
                lines = lines[head.n_lines :]
            if not any(_cells(line) for line in lines):
                return np.empty(0, EVENT_DTYPE)
            table = _table(lines, self._head)
        except ValueError as error:
            raise _no_events(self.name, error) from error
        if self._table_format is None:
            self._table_format = _find_format(self._head, table)
        return _events(table, self._table_format, self.name)


def _pieces(path: Path) -> Iterator[np.ndarray]:
    text = TextStream(str(path))
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            yield text.feed(piece)
    yield text.feed(b"", last=True)


class _TableFormat(NamedTuple):
    """The names of a table's columns in their order, and whether times are seconds."""

    names: tuple[str, ...]
    seconds: bool


def _no_events(source: str | Path, error: Exception) -> InputError:
    return InputError(
        f"{source}: not four numbers (t x y p) in each line ({reason(error)}); mend that line, or "
        "name the columns in a first line, such as t,x,y,p"
    )


def _table(lines: Iterable[str], head: _Head) -> np.ndarray:
    """Return the numbers of the events' lines [n, 4]; `ValueError` where a line holds others."""
    table = np.loadtxt(
        lines,
        delimiter=next((c for c in ",;\t" if c in head.line), None),
        usecols=list(head.columns.values()) if head.columns else range(len(head.first)),
        ndmin=2,
    )
    if table.shape[1] != 4:
        raise ValueError(f"{table.shape[1]} in line {head.n_lines + 1}")
    if not (np.abs(table) < 2**53).all():
        raise ValueError("a number beyond all bounds")
    return table


def _find_format(head: _Head, table: np.ndarray) -> _TableFormat:
    if head.columns:
        names = tuple(head.columns)
    else:
        third_only = _is_polarity(table[:, 2]) and not _is_polarity(table[:, 3])
        names = tuple("xypt" if third_only else "txyp")
    cell = head.first[head.columns["t"] if head.columns else names.index("t")]
    seconds = not _WHOLE.fullmatch(cell) or _has_fractions(table[:, names.index("t")])
    return _TableFormat(names, seconds)


def _events(table: np.ndarray, table_format: _TableFormat, source: str | Path) -> np.ndarray:
    columns = dict(zip(table_format.names, table.T, strict=True))
    if table_format.seconds:
        columns["t"] = np.rint(columns["t"] * 1e6)  # to the µs that the camera counted
    for name in "txyp":
        if _has_fractions(columns[name]):
            raise InputError(f"{source}: column {name} holds fractions; give whole numbers")
    return pack_events({k: column.astype(np.int64) for k, column in columns.items()}, source)


def _read_head(lines: Iterable[str]) -> _Head:
    n_lines, columns, sensor_size = 0, None, None
    for line in lines:
        cells = _cells(line)
        if columns is None and (named := _columns(cells)):
            columns = named
        elif sensor_size is None and len(cells) == 2 and all(map(_WHOLE.fullmatch, cells)):
            sensor_size = int(cells[1]), int(cells[0])
        elif cells:
            return _Head(n_lines, columns, sensor_size, line, tuple(cells))
        n_lines += 1
    return _Head(n_lines, columns, sensor_size)


def _cells(line: str) -> list[str]:
    """Split a line into cells; a comment has none."""
    line = line.strip()
    return [] if line.startswith("#") else [c for c in re.split(r"[,;\s]+", line) if c]


def _columns(cells: list[str]) -> dict[str, int] | None:
    """Return the column of each of t, x, y and p in a line of names; None for any other line."""
    columns = {_NAMES[c.lower()]: i for i, c in enumerate(cells) if c.lower() in _NAMES}
    return {name: columns[name] for name in "txyp"} if len(columns) == 4 else None


def _is_polarity(column: np.ndarray) -> bool:
    return bool(np.isin(column, (-1, 0, 1)).all())


def _has_fractions(column: np.ndarray) -> bool:
    return bool((column != np.rint(column)).any())
