"""What stands before the events of a text: names of columns, the sensor's size, comments."""

import re
from pathlib import Path

from sj_ottt.data.recordings.formats.columns import NAME_THEM, Named, meaning, named
from sj_ottt.errors import InputError

_MOST_LINES = 10_000
_LONGEST_COMMENT = 200  # characters in which a size or names are looked for
_WHOLE = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WORD = re.compile(r"true|false|on|off", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_PAIR = re.compile(r"(?:geometry|resolution|sensor_?size)\W{1,3}(\d{1,5})\s?[x,; ]\s?(\d{1,5})\b")
_SIDE = re.compile(r"\b(width|height)\W{1,3}(\d{1,5})\b")


def split(line: str) -> tuple[list[str], str | None]:
    """Split a line into cells.

    Returns:
        The cells, without quotes; and what separates them, None for blanks and tabs.
    """
    line = line.strip()
    blanks = re.sub(r"\s*[,;]\s*", ",", line)
    separator = next((c for c in ";," if c in line), None)
    if separator == "," and re.search(r"\s", blanks) and all(map(is_number, line.split())):
        separator = None  # commas within cells, as decimals
    cells = line.split(separator)
    if separator:
        while len(cells) > 1 and not cells[-1].strip():
            cells.pop()
    return [cell.strip().strip("\"'").strip() for cell in cells], separator


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, one with a decimal comma too."""
    return bool(_NUMBER.fullmatch(cell) or _DECIMAL_COMMA.fullmatch(cell))


def is_value(cell: str) -> bool:
    """Whether a cell holds a number, or a word for on and off."""
    return is_number(cell) or bool(_WORD.fullmatch(cell))


def split_names(line: str) -> list[str]:
    """Split a line of names, in which a unit in brackets belongs to the name before it."""
    return split(re.sub(r"\s+(?=[\[(][^\s,;]*[\])])", "", line))[0]


class Head:
    """What stands before the first event; it takes line by line.

    Args:
        path: The name that messages give to the text.

    Attributes:
        n_lines: How many lines stand before the first event.
        named: The columns that a line names.
        sensor_size: (height, width), where a line states it.
        n_cells: How many cells a line of an event has.
        separator: What stands between two of them, see `split`.
    """

    def __init__(self, path: Path) -> None:
        self.n_lines = 0
        self.named: Named | None = None
        self.sensor_size: tuple[int, int] | None = None
        self.n_cells = 0
        self.separator: str | None = None
        self._path = path
        self._names: list[str] = []
        self._in_comments: list[str] = []
        self._sides: dict[str, int] = {}
        self._height_first = False

    def take(self, raw: bytes) -> bool:
        """Take the next line; False where it is the first event's, which belongs to the events.

        Raises:
            InputError: A line that is neither an event nor names the columns.
        """
        if self.n_lines >= _MOST_LINES:
            raise InputError(
                f"{self._path}: no event in its first {_MOST_LINES} lines; remove them"
            )
        if self.n_lines == 0 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{self._path}: is text in UTF-16; save it as UTF-8")
        line = raw.decode("utf-8", errors="replace").lstrip("\ufeff").strip()
        if line[:1] in ("#", "%"):
            self._take_comment(line.lstrip("#% \t"))
        elif line:
            cells, self.separator = split(line)
            if not self._names and not all(map(is_value, cells)):
                self._take_names(line)
            elif self.sensor_size is None and len(cells) == 2 and all(map(_WHOLE.fullmatch, cells)):
                sides = int(cells[0]), int(cells[1])
                self.sensor_size = sides if self._height_first else sides[::-1]
            else:
                self._take_first(cells)
                return False
        self.n_lines += 1
        return True

    def _take_comment(self, text: str) -> None:
        text = text[:_LONGEST_COMMENT]
        low = text.lower()
        if pair := _PAIR.search(low):
            self.sensor_size = int(pair[2]), int(pair[1])
        for side in _SIDE.finditer(low):
            self._sides[side[1]] = int(side[2])
        if len(self._sides) == 2:
            self.sensor_size = self._sides["height"], self._sides["width"]
        self._height_first = re.fullmatch(r"height\W+width", low) is not None
        names = split_names(text)
        if sum(meaning(name) is not None for name in names) >= 4:
            self._in_comments = names

    def _take_names(self, line: str) -> None:
        self._names = split_names(line)
        self.named = named(self._names, self._path)
        if self.named is None:
            known = {what[0] for name in self._names if (what := meaning(name))}
            missing = ", ".join(field for field in "txyp" if field not in known)
            raise InputError(
                f"{self._path}: line {self.n_lines + 1} ({line[:60]!r}) names no column {missing}; "
                f"{NAME_THEM}"
            )
        self.sensor_size = self.named.sensor_size or self.sensor_size

    def _take_first(self, cells: list[str]) -> None:
        self.n_cells = len(cells)
        at = f"{self._path}: line {self.n_lines + 1}"
        # 0,0038 96 133 1 or 0,0038;96;133;1; or 0,0038,96,133,1 in a table of four columns
        comma = any("," in cell for cell in cells) or (
            self.separator == "," and len(cells) == 5 and any(re.match(r"0\d", c) for c in cells)
        )
        if comma and len(self._names) != self.n_cells:
            raise InputError(f"{at} has decimal commas; write decimal points")
        names = self._names
        if not names and self._in_comments:
            names = self._in_comments[-self.n_cells :]  # behind a word such as "columns:"
            self.named = named(names, self._path) if len(names) == self.n_cells else None
            names = names if self.named else []
        if names and len(names) == self.n_cells - 1 and self.named:
            # As R writes it: the rows' numbers stand first, in a column without a name.
            columns = {field: i + 1 for field, i in self.named.columns.items()}
            self.named = self.named._replace(columns=columns)
        elif self.named and max(self.named.columns.values()) >= self.n_cells:
            raise InputError(f"{at} has {self.n_cells} cells for {len(names)} names; mend it")
        if self.named:
            self.sensor_size = self.named.sensor_size or self.sensor_size
        elif self.n_cells not in (4, 5):
            raise InputError(f"{at} has {self.n_cells} cells, not t, x, y and p; {NAME_THEM}")
