"""From lines of text to columns of numbers: plain numbers at once, all others by NumPy's reader."""

import re
from collections.abc import Sequence

import numpy as np

_BREAK, _GAP, _DIGIT, _POINT, _MINUS, _OTHER = range(6)
_KINDS = np.full(256, _OTHER, np.uint8)
_KINDS[list(b"0123456789")] = _DIGIT
_KINDS[list(b" \t,;\r")] = _GAP
_KINDS[ord("\n")] = _BREAK
_KINDS[ord(".")] = _POINT
_KINDS[ord("-")] = _MINUS
_COMMENTS = re.compile(rb"\n[ \t]*[#%][^\n]*")
_BLANK = re.compile(rb"\n[ \t\r\n]*\n")
_WORDS = re.compile(rb"(?i)(?<![a-z0-9_])(true|false|on|off)(?![a-z0-9_])")
_TO_GAPS = bytes.maketrans(b",;\t\r", b"    ")
_LONGEST_NUMBER = 18  # digits that int64 holds whatever they are
_POWERS = 10 ** np.arange(_LONGEST_NUMBER + 1)


class LineError(ValueError):
    """A line that holds other than numbers.

    Attributes:
        row: Its place among the lines of events.
    """

    def __init__(self, row: int, text: str) -> None:
        super().__init__(text)
        self.row = row


def is_event_line(line: bytes) -> bool:
    """Whether a line is neither empty nor a comment."""
    return line.strip(b" \t\r\n")[:1] not in (b"", b"#", b"%")


def parse(
    block: bytes, n_cells: int, used: Sequence[int], separator: str | None
) -> list[np.ndarray]:
    """Return columns of numbers.

    Args:
        block: Whole lines, each with its line break. Comments and empty lines are skipped, quotes
            too; True, False, On and Off are 1 and 0.
        n_cells: How many cells each line has.
        used: Which of them to return.
        separator: What stands between two cells, None for any number of blanks and tabs.

    Returns:
        For each of ``used``, int64 or float64 [n]: float64 where a number has a decimal point.

    Raises:
        LineError: A line with another number of cells, or with a used cell that is no number.
    """
    for clean in (False, True):
        if clean:
            block = _clean(block)
        text = np.frombuffer(block, np.uint8)
        kinds = _KINDS[text]
        if not len(text):
            return [np.empty(0, np.int64) for _ in used]
        plain = kinds.max() < _OTHER
        if not (plain or clean) or (borders := _borders(kinds, n_cells)) is None:
            continue
        if plain and (columns := _plain(text, kinds, borders, used)) is not None:
            return columns
        if clean and (columns := _real(block, n_cells, used)) is not None:
            return columns
    return _line_by_line(block, n_cells, used, separator)


def _clean(block: bytes) -> bytes:
    """Leave out comments, empty lines and quotes, and turn words into numbers."""
    block = _COMMENTS.sub(b"", b"\n" + block.replace(b'"', b""))
    block = _BLANK.sub(b"\n", block).removeprefix(b"\n")
    if any(letter in block for letter in b"tTfFoO"):  # or else searching for words is slow
        block = _WORDS.sub(_value, block)
    return block


def _value(word: re.Match[bytes]) -> bytes:
    return b"1" if word[0].lower() in (b"true", b"on") else b"0"


def _borders(kinds: np.ndarray, n_cells: int) -> np.ndarray | None:
    """Return where cells begin and end [lines, cells, 2]; None where a line has not ``n_cells``."""
    inside = np.zeros(len(kinds) + 1, np.bool_)
    np.greater(kinds, _GAP, out=inside[1:])
    borders: np.ndarray = np.flatnonzero(inside[1:] != inside[:-1])
    if len(borders) % (2 * n_cells):
        return None
    borders = borders.reshape(-1, n_cells, 2)
    # Each line break must lie between the last cell of a line and the first of the next.
    breaks = np.flatnonzero(kinds == _BREAK)
    if len(breaks) != len(borders) or (borders[:, -1, 1] > breaks).any():
        return None
    return None if (borders[1:, 0, 0] < breaks[:-1]).any() else borders


def _plain(
    text: np.ndarray, kinds: np.ndarray, borders: np.ndarray, used: Sequence[int]
) -> list[np.ndarray] | None:
    """Parse cells of digits, sign and point only, all at once; None where there are others."""
    signs = kinds == _MINUS
    if n_signs := int(np.count_nonzero(signs)):
        signed = signs[borders[:, :, 0]]
        if np.count_nonzero(signed) != n_signs:
            return None
    points = np.flatnonzero(kinds == _POINT)
    columns = []
    for i in used:
        start, end = borders[:, i, 0], borders[:, i, 1]
        if n_signs:
            start = start + signed[:, i]
        number = _numbers(text, start, end, points)
        if number is None:
            return None
        column, points = number
        if n_signs:
            np.negative(column, out=column, where=signed[:, i])
        columns.append(column)
    return columns


def _numbers(
    text: np.ndarray, start: np.ndarray, end: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return numbers with one point in all or none of them, and the points left for other cells.

    None for any other cells.
    """
    point, left = points, points
    if len(points) > len(start):
        first = np.searchsorted(points, start)
        inside = np.searchsorted(points, end) - first
        if (inside == 1).all():
            point = points[first]
        elif inside.any():
            return None
        else:
            point = points[:0]
    elif len(points):
        left = points[:0]
    if not len(point):
        whole, n_whole = _digits(text, start, end)
        return None if whole is None or n_whole.min() == 0 else (whole, left)
    if len(point) != len(start) or (point < start).any() or (point >= end).any():
        return None
    whole, n_whole = _digits(text, start, point)
    part, n_part = _digits(text, point + 1, end)
    if whole is None or part is None:
        return None
    n_digits = n_whole + n_part
    if n_digits.min() == 0 or n_digits.max() > _LONGEST_NUMBER:
        return None
    power = _POWERS[n_part]
    return (whole * power + part) / power, left


def _digits(
    text: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """Return whole numbers and how many digits each has; None where one has too many."""
    n = end - start
    longest, shortest = int(n.max()), int(n.min())
    value = np.zeros(len(start), np.int64)
    if longest > _LONGEST_NUMBER + 1:
        return None, n
    for k in range(longest):
        digit = text.take(end - (k + 1), mode="clip").astype(np.int64)
        digit -= ord("0")
        if k:
            digit *= 10**k
        if k >= shortest:
            digit[n <= k] = 0
        value += digit
    # 19 digits may be beyond int64, which then shows by its sign.
    return (None if value.min() < 0 else value), n


def _real(block: bytes, n_cells: int, used: Sequence[int]) -> list[np.ndarray] | None:
    """Parse numbers of any notation; None where a cell is no number."""
    cells = block.translate(_TO_GAPS).split()
    if b"_" in block:  # which Python's own numbers may hold
        return None
    n = len(cells) // n_cells
    try:
        return [np.fromiter(map(float, cells[i::n_cells]), np.float64, n) for i in used]
    except ValueError:
        return None


def _line_by_line(
    block: bytes, n_cells: int, used: Sequence[int], separator: str | None
) -> list[np.ndarray]:
    """Parse lines whose other cells may hold anything, or find the line that cannot be right."""
    lines = block.decode("latin-1").removesuffix("\n").split("\n")
    columns = np.empty((len(used), len(lines)))
    for row, line in enumerate(lines):
        cells = line.strip().rstrip(separator).split(separator)
        if len(cells) != n_cells:
            raise LineError(row, f"{len(cells)} cells, not {n_cells}")
        for column, i in zip(columns, used, strict=True):
            try:
                column[row] = float(cells[i].replace("_", "?"))
            except ValueError as error:
                raise LineError(row, f"{cells[i].strip()[:40]!r} is no number") from error
    return list(columns)
