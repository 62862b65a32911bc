"""Events from text that comes in pieces: from a file, an archive or a pipe."""

from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.events import EVENT_DTYPE
from sj_ottt.data.recordings.formats.columns import Packer, UnfitError, certain, tell, time_unit
from sj_ottt.data.recordings.formats.common import cut_off
from sj_ottt.data.recordings.formats.text.head import Head, is_value, split
from sj_ottt.data.recordings.formats.text.parse import LineError, is_event_line, parse
from sj_ottt.data.recordings.source import ReadOptions
from sj_ottt.errors import InputError

LONGEST_LINE = 1 << 16
"""In bytes; no text of events has a longer one."""
# Lines that are enough to tell what they hold: in any case, and where they can mean one thing only.
_ENOUGH, _FEW = 1000, 32
_DEFAULT = ReadOptions()


class TextStream:
    """Reads events from text that comes in pieces; its first events decide what the columns are.

    As long as the lines do not tell, they are held back, up to 1,000 of them.

    Args:
        name: What messages call the stream.
        options: How to read it.

    Attributes:
        name: As given.
        sensor_size: (height, width), where a line before the events states it.
    """

    def __init__(self, name: str, options: ReadOptions = _DEFAULT) -> None:
        self.name = name
        self.sensor_size: tuple[int, int] | None = None
        self._path = Path(name)
        self._options = options
        self._head: Head | None = Head(self._path)
        self._begun: Head
        self._rest = b""
        self._held = b""
        self._held_lines = 0
        self._next_try = 1
        self._line = 0  # lines before those of the next block
        self._columns: dict[str, int] | None = None
        self._packer: Packer
        self._last_t: int | None = None

    def feed(self, piece: bytes, *, last: bool = False) -> np.ndarray:
        """Take a piece of text of any length, and return the events of the lines it completes.

        Args:
            piece: The bytes.
            last: Whether nothing follows, so that a line needs no line break to be complete.

        Returns:
            Events [n] of `EVENT_DTYPE`.

        Raises:
            InputError: A line that holds no event, or contradicts those before it.
        """
        whole, line_break, self._rest = (self._rest + piece).rpartition(b"\n")
        self._check_length(self._rest)
        whole = self._behind_head(whole + line_break)
        if not last:
            return self._take(whole, last=False)
        tail, self._rest = self._rest, b""
        if tail and self._head is not None:
            return self._take(self._behind_head(tail + b"\n"), last=True)
        if not tail or not is_event_line(tail):
            return self._take(whole, last=True)
        cells, _ = split(tail.decode("utf-8", errors="replace"))
        used = self._begun.named.columns.values() if self._begun.named else range(len(cells))
        if len(cells) != self._begun.n_cells or not all(is_value(cells[i]) for i in used):
            cut_off(self._path, self._options, "its last line is incomplete")
            return self._take(whole, last=True)
        held = self._held
        try:
            events = self._take(whole + tail + b"\n", last=True)
        except InputError:
            # What the columns are may be clear without the last line, if that is incomplete.
            if self._columns is not None or not (held or whole):
                raise
            self._held = held
            events = self._take(whole, last=True)
            cut_off(self._path, self._options, "its last line is incomplete")
            return events
        before = int(events["t"][-2]) if len(events) > 1 else self._last_t
        at_end = self._columns is not None and self._columns["t"] == self._begun.n_cells - 1
        if at_end and len(events) and before is not None and events["t"][-1] < before:
            cut_off(self._path, self._options, "the time in its last line is incomplete")
            return events[:-1]
        return events

    def _check_length(self, line: bytes) -> None:
        if len(line) > LONGEST_LINE:
            raise InputError(
                f"{self.name}: holds a line of more than {LONGEST_LINE} bytes; it is damaged, or "
                "no text of events"
            )

    def _behind_head(self, lines: bytes) -> bytes:
        """Read the lines before the first event, and return the others."""
        at = 0
        while self._head is not None and at < len(lines):
            end = lines.index(b"\n", at) + 1
            self._check_length(lines[at:end])
            if self._head.take(lines[at:end]):
                at = end
            else:
                self._begun, self._head = self._head, None
                self._line = self._begun.n_lines
                self.sensor_size = self._begun.sensor_size
        return lines[at:]

    def _take(self, lines: bytes, *, last: bool) -> np.ndarray:
        """Return the events of whole lines; hold them back while they do not tell what they are."""
        events = np.empty(0, EVENT_DTYPE)
        if self._columns is None:
            lines = self._held + lines
            self._held = lines
            n = lines.count(b"\n")
            if n == 0 or (n < self._next_try and not last):
                return events
            while self._next_try <= n:
                self._next_try *= 2
            if not self._decide(lines, last=last):
                return events
            self._held = b""
        if not lines or self._columns is None:
            return events
        table = self._parse(lines, list(self._columns.values()))
        try:
            events = self._packer(dict(zip(self._columns, table, strict=True)))
        except UnfitError as error:
            raise self._wrong(lines, error.row, str(error)) from error
        self._line += lines.count(b"\n")
        if len(events):
            self._last_t = int(events["t"][-1])
        return events

    def _decide(self, lines: bytes, *, last: bool) -> bool:
        """Tell what the columns are; False where it takes more lines."""
        begun, options = self._begun, self._options
        wait = not last and lines.count(b"\n") < _ENOUGH
        if begun.named:
            columns, unit = dict(begun.named.columns), begun.named.unit
            table = self._parse(lines, list(columns.values()))
        else:
            table, unit = self._parse(lines, range(begun.n_cells)), None
            if not len(table[0]) or (wait and (len(table[0]) < _FEW or not certain(table))):
                return False
            columns = {}
        if not len(table[0]):
            return False
        if not columns:
            columns = tell(table, self._path, options)
            table = [table[i] for i in columns.values()]
        t = table[list(columns).index("t")]
        stated = options.time_unit or unit
        fractions = t.dtype.kind == "f" and bool((t != np.rint(t)).any())
        # Whole times in the notation of real ones may still turn out to be seconds.
        few = not fractions and (t.dtype.kind == "f" or len(t) < _FEW)
        if wait and stated is None and few:
            return False
        unit = time_unit(t, unit, self._path, options)
        self._packer = Packer(self._path, options, unit, whole=stated is None and not fractions)
        self._columns = columns
        return True

    def _parse(self, lines: bytes, used: "range | list[int]") -> list[np.ndarray]:
        try:
            return parse(lines, self._begun.n_cells, used, self._begun.separator)
        except LineError as error:
            raise self._wrong(lines, error.row, f"not four numbers ({error})") from error

    def _wrong(self, lines: bytes, row: int, text: str) -> InputError:
        number = self._line
        for line in lines.split(b"\n"):
            number += 1
            row -= is_event_line(line)
            if row < 0:
                break
        return InputError(
            f"{self.name}: line {number}: {text}; mend that line, or name the columns in a first "
            "line, such as t,x,y,p"
        )
