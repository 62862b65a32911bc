"""What columns of numbers mean: t, x, y and p, told by their names or by what they hold.

Text and arrays share these rules. Names as tools write them are known (`named`). Without names
(`tell`), the time is the column with fractions or else the one that never falls (of several, the
largest); the polarity is the one in {0, 1} or {-1, 1}; the others are x and y in this order. Times
with fractions are seconds, whole ones µs, or ns where they are too large to be µs (`time_unit`).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sj_ottt.data.recordings.events import FIELDS, pack_events
from sj_ottt.data.recordings.formats.common import assume
from sj_ottt.data.recordings.source import ReadOptions
from sj_ottt.errors import InputError

CAMERA = "camera"
_PATTERNS = {
    "t": r"t|ts|times?|time_?stamps?",
    "x": r"xs?|x_?pos(ition)?|pos_?x|x_?coord(inate)?s?|coord_?x|x_?addr(ess)?|col(umn)?",
    "y": r"ys?|y_?pos(ition)?|pos_?y|y_?coord(inate)?s?|coord_?y|y_?addr(ess)?|row",
    "p": r"ps?|pols?|polarity|polarities|on|on_?off|is_?on",
    CAMERA: r"cam(era)?(_?(id|index|number))?|(sensor|device)_?id",
}
_UNITS = {
    "us": r"us|usecs?|micros|microseconds?",
    "ns": r"ns|nsecs?|nanos|nanoseconds?",
    "ms": r"ms|msecs?|millis|milliseconds?",
    "s": r"s|secs?|seconds?",
}
_SCALES = {"s": 10**6, "ms": 10**3, "us": 1}  # µs
NAME_THEM = "name the columns in a first line: t,x,y,p"
_FEW = 100  # of fewer events, x and y may rise by chance
_NO_MICROSECONDS = 10**17  # 3,000 years; the clocks of computers count 1.8e18 ns
_NO_SECONDS = 10**11
_SLOWEST, _FASTEST = 100, 2e9  # events in a second


class Named(NamedTuple):
    """What names of columns say.

    Attributes:
        columns: The place of t, x, y and p, and of the camera's number where there is one.
        unit: The unit of t, where its name states it.
        sensor_size: (height, width), where the names of x and y state it (``x@346``).
    """

    columns: dict[str, int]
    unit: str | None = None
    sensor_size: tuple[int, int] | None = None


class UnfitError(ValueError):
    """An event that contradicts those before it.

    Attributes:
        row: Its place in the block.
    """

    def __init__(self, row: int, text: str) -> None:
        super().__init__(text)
        self.row = row


def meaning(name: str) -> tuple[str, str | None, int | None] | None:
    """Return what a column's name says: field, unit and side of the sensor; None for others."""
    name = name.strip().strip("\"'").strip().lower().replace("µ", "u").replace("μ", "u")
    side = None
    if at := re.fullmatch(r"(.+?)@(\d{1,5})", name):
        name, side = at[1], int(at[2])
    name, _, bracket = name.partition("[" if "[" in name else "(")
    name = re.sub(r"[\s._/:-]+", "_", name).strip("_")
    if bracket and (what := meaning(name)) and what[0] == "t":
        return "t", what[1] or _unit(bracket.strip(" ])")), side
    for field, pattern in _PATTERNS.items():
        if re.fullmatch(pattern, name):
            return field, None, side
    time = re.fullmatch(rf"(?:{_PATTERNS['t']})_?({'|'.join(_UNITS.values())})", name)
    return ("t", _unit(time[1]), side) if time else None


def _unit(word: str) -> str | None:
    return next((unit for unit, words in _UNITS.items() if re.fullmatch(words, word)), None)


def named(names: Sequence[str], path: Path) -> Named | None:
    """Find t, x, y and p among names of columns; None where one of them is not there.

    Raises:
        InputError: Two columns may be the same one of them.
    """
    found: dict[str, list[int]] = {}
    said = [meaning(name) for name in names]
    for i, what in enumerate(said):
        if what is not None:
            found.setdefault(what[0], []).append(i)
    if any(field not in found for field in FIELDS):
        return None
    columns = {}
    for field in (field for field in (*FIELDS, CAMERA) if field in found):
        places = found[field]
        plain = [i for i in places if names[i].strip().strip("\"'").lower() == field]
        if len(plain or places) > 1:
            both = " and ".join(repr(names[i]) for i in (plain or places)[:2])
            raise InputError(f"{path}: {both} may both be {field}; keep one of them")
        columns[field] = (plain or places)[0]
    unit, width, height = (
        what[k] if (what := said[columns[field]]) else None
        for field, k in (("t", 1), ("x", 2), ("y", 2))
    )
    size = (int(height), int(width)) if height and width else None
    return Named(columns, None if unit is None else str(unit), size)


def certain(table: Sequence[np.ndarray]) -> bool:
    """Whether four columns can have one meaning only, whatever follows."""
    return len(table) == 4 and len(_pairs(table)) == 1


def tell(table: Sequence[np.ndarray], path: Path, options: ReadOptions) -> dict[str, int]:
    """Tell what columns without names are by what they hold.

    Args:
        table: Four columns [n], or five: with a first one that counts the rows, or with a camera's
            number in the first or the last one.
        path: The name that messages give to the recording.
        options: Whether assumptions are refused.

    Returns:
        The column of t, x, y, p and, where there is one, of the camera's number.

    Raises:
        InputError: The columns may have several meanings, or none.
    """
    places = list(range(len(table)))
    if len(table) == 5 and len(table[0]) > 1 and (np.diff(table[0]) == 1).all():
        places = places[1:]
    if len(places) == 4:
        told = _tell_four([table[i] for i in places], path, options)
        return {field: places[i] for field, i in told.items()}
    if len(table) != 5:
        raise InputError(f"{path}: {len(table)} columns without names; {NAME_THEM}")
    ways = [(4, places[:4]), (0, places[1:])]
    ways = [way for way in ways if _is_camera(table[way[0]]) and _pairs([table[i] for i in way[1]])]
    constant = [way for way in ways if (table[way[0]] == table[way[0]][0]).all()]
    if len(constant or ways) != 1:
        raise InputError(f"{path}: five columns without names may mean several things; {NAME_THEM}")
    extra, places = (constant or ways)[0]
    told = _tell_four([table[i] for i in places], path, options)
    if options.camera is None:
        where = "first" if extra == 0 else "fifth"
        assume(path, options, f"the {where} of five columns is taken for a camera's", NAME_THEM)
    return {field: places[i] for field, i in told.items()} | {CAMERA: extra}


def _tell_four(table: list[np.ndarray], path: Path, options: ReadOptions) -> dict[str, int]:
    if sum(map(_has_fractions, table)) > 1:
        raise InputError(f"{path}: several columns hold fractions; {NAME_THEM}, in whole pixels")
    if not (pairs := _pairs(table)):
        lacks = "holds polarities (0/1 or -1/1) only"
        if any(map(_is_polarity, table)):
            lacks = "holds times, which never fall"
        raise InputError(f"{path}: none of the columns {lacks}; {NAME_THEM}")
    n = len(table[0])
    t, p = pairs[0]
    if len(pairs) > 1:
        t = max((t for t, _ in pairs), key=lambda i: table[i].max())
        polarities = [p for time, p in pairs if time == t]
        changing = [p for p in polarities if (table[p] != table[p][0]).any()]
        if n < _FEW:
            p = max(polarities)
            if (0, 3) in pairs:
                t, p = 0, 3
        elif len(changing or polarities) == 1:
            p = (changing or polarities)[0]
        else:
            raise InputError(f"{path}: several columns may be the polarity; {NAME_THEM}")
    x, y = (i for i in range(4) if i not in (t, p))
    order = {t: "t", x: "x", y: "y", p: "p"}
    usual = (t, p) == (0, 3) and (_has_fractions(table[0]) or table[0].max() >= table[1].max())
    if len(pairs) > 1 and n < _FEW and not usual:
        taken = " ".join(order[i] for i in range(4))
        assume(path, options, f"{n} lines do not tell the columns, taken as {taken}", NAME_THEM)
    return {"t": t, "x": x, "y": y, "p": p}


def _pairs(table: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Return which columns may be t and p."""
    times = [i for i, column in enumerate(table) if _has_fractions(column)]
    if not times:
        falls = [int(np.count_nonzero(column[1:] < column[:-1])) for column in table]
        changes = [bool((column != column[:1]).any()) for column in table]
        # Recorders step back a few times; what never changes is rather a row or a column of pixels.
        most = len(table[0]) // 100
        times = [i for i in range(len(table)) if changes[i] and falls[i] <= most]
        times = times or [i for i in range(len(table)) if not changes[i]]
    polarities = [i for i, column in enumerate(table) if _is_polarity(column)]
    return [(t, p) for t in times for p in polarities if t != p]


def _is_polarity(column: np.ndarray) -> bool:
    low, high = column.min(), column.max()
    if low < -1 or high > 1 or _has_fractions(column):
        return False
    return bool(low >= 0 or (column != 0).all())


def _is_camera(column: np.ndarray) -> bool:
    return bool(column.min() >= 0 and column.max() < 16) and not _has_fractions(column)


def _has_fractions(column: np.ndarray) -> bool:
    return column.dtype.kind == "f" and bool((column != np.rint(column)).any())


def time_unit(t: np.ndarray, stated: str | None, path: Path, options: ReadOptions) -> str:
    """Return the unit of times: ``"us"``, ``"ns"``, ``"ms"`` or ``"s"``.

    Args:
        t: The first times [n] of a recording.
        stated: Their unit, where the file states it.
        path: The name that messages give to the recording.
        options: The user's word on the unit, which wins; whether assumptions are refused.

    Raises:
        InputError: Times with fractions that are too large for seconds.
    """
    if unit := options.time_unit or stated:
        return unit
    if not len(t):
        return "us"
    remedy = "name the column t_us, t_ns, t_ms or t_s, or pass --time-unit"
    largest = max(abs(float(t.max())), abs(float(t.min())))
    unit = "us"
    if _has_fractions(t):
        unit = "s"
        if largest >= _NO_SECONDS:
            raise InputError(f"{path}: times up to {largest:g} with fractions: {remedy}")
    elif largest >= _NO_MICROSECONDS:
        assume(path, options, f"times up to {largest:.2e} are taken as nanoseconds", remedy)
        return "ns"
    seconds = (float(t.max()) - float(t.min())) * _SCALES[unit] / 1e6
    n = len(t)
    if (n >= 1000 and seconds * _SLOWEST > n) or (n >= 10_000 and seconds * _FASTEST < n):
        word = "seconds" if unit == "s" else "µs"
        taken = f"times are taken as {word}, though the first {n} events then last {seconds:.3g} s"
        assume(path, options, taken, remedy)
    return unit


class Packer:
    """Makes events of columns, block by block, and refuses what contradicts the first ones.

    Args:
        path: The name that messages give to the recording.
        options: The camera to keep, where a column holds the cameras' numbers.
        unit: The unit of t.
        whole: Whether the unit was told by times that are all whole, so that fractions show that
            it is another one.
    """

    def __init__(self, path: Path, options: ReadOptions, unit: str, *, whole: bool = False) -> None:
        self._path = path
        self._chosen = options.camera
        self._camera: float | None = None
        self._unit = unit
        self._whole = whole
        self._signed: bool | None = None

    def __call__(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return events [n] of `EVENT_DTYPE` of whole or real numbers t, x, y and p, each [n].

        Raises:
            UnfitError: An event that is none, or contradicts those before it.
            InputError: A number beyond `EVENT_DTYPE`.
        """
        whole = {name: self._integers(name, columns[name]) for name in FIELDS if name != "t"}
        self._check_polarity(whole["p"])
        events = pack_events({"t": self._times(columns["t"]), **whole}, self._path)
        return self._of_camera(events, columns[CAMERA]) if CAMERA in columns else events

    def _of_camera(self, events: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        if self._chosen is not None:
            return events[numbers == self._number(self._chosen)]
        if len(numbers):
            self._camera = numbers[0] if self._camera is None else self._camera
            if (others := numbers != self._camera).any():
                row = int(others.argmax())
                raise UnfitError(
                    row,
                    f"of camera {numbers[row]:g}, those before it of {self._camera:g}; choose "
                    "one with --camera",
                )
        return events

    def _number(self, camera: str) -> int:
        if not camera.isdecimal():
            raise InputError(f"{self._path}: camera={camera!r}: give a camera's number")
        return int(camera)

    def _check_polarity(self, p: np.ndarray) -> None:
        if p.dtype.kind != "i" or not len(p):
            return
        if self._signed is None and p.min() <= 0:
            self._signed = bool(p[(p <= 0).argmax()] < 0)
        if self._signed is not None:
            unfit = p == (0 if self._signed else -1)
            if unfit.any():
                row = int(unfit.argmax())
                raise UnfitError(
                    row, f"polarity {p[row]}, but darker events before it have {-int(self._signed)}"
                )

    def _times(self, t: np.ndarray) -> np.ndarray:
        if self._whole and _has_fractions(t):
            row = int((t != np.rint(t)).argmax())
            raise UnfitError(
                row,
                f"time {t[row]} has a fraction, but those before it are whole and were taken as "
                f"{self._unit}; pass --time-unit",
            )
        scale = _SCALES.get(self._unit)
        most = 2**62 if scale is None else 2**62 // scale
        self._check_bounds("time", t, most)
        if t.dtype.kind == "f":
            return np.rint(t * scale if scale else t / 1000).astype(np.int64)
        t = t.astype(np.int64, copy=False)
        return t * scale if scale else (t + 500) // 1000

    def _integers(self, name: str, column: np.ndarray) -> np.ndarray:
        if column.dtype.kind != "f":
            return column
        self._check_bounds(name, column, 2**53)
        if _has_fractions(column):
            row = int((column != np.rint(column)).argmax())
            raise UnfitError(
                row, f"column {name} holds fractions ({column[row]}); give whole numbers"
            )
        return column.astype(np.int64)

    def _check_bounds(self, name: str, column: np.ndarray, most: int) -> None:
        if len(column) and not (column.max() < most and column.min() > -most):
            row = int((~((column < most) & (column > -most))).argmax())
            raise UnfitError(row, f"{name} {column[row]}: a number beyond all bounds")
