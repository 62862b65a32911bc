"""Labels of stretches of recordings, from a CSV file or from the names of folders.

The CSV begins with a line of names: ``file,start,end,label`` and, where wanted, ``session`` and
``part`` (``train`` or ``test``, the same in all lines of a file; all lines have one, or none). The
file is a recording's name, with as many of its folders as tell it from the others. Times count from
the recording's first event, in µs or with a unit (``1500``, ``20ms``, ``1.5 s``); an empty start or
end is the recording's own. Stretches of one recording may overlap where they carry the same label;
they are then joined. Further columns are passed over.
"""

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sj_ottt.errors import InputError, suggest

_UNITS_US = {"": 1, "us": 1, "µs": 1, "μs": 1, "ms": 1_000, "s": 1_000_000, "min": 60_000_000}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zµμ]*)")
_COLUMNS = ("file", "start", "end", "label")
_LONGEST_LINE = 1 << 12
_LONGEST_US = 1 << 62


@dataclass(frozen=True)
class Stretch:
    """A labelled part of a recording.

    Attributes:
        start: In µs from the recording's first event.
        end: The same; None for the recording's end.
        label: The class.
        source: Where the label comes from, for messages.
    """

    start: int
    end: int | None
    label: str
    source: str


@dataclass(frozen=True)
class Labelled:
    """A recording with its labels.

    Attributes:
        path: The file.
        session: The session that it belongs to.
        stretches: Its labelled parts, in order of time.
        part: ``"train"`` or ``"test"`` where the table says so, else None.
    """

    path: Path
    session: str
    stretches: tuple[Stretch, ...]
    part: str | None = None


def parse_duration(text: str, *, unit: bool = False) -> int:
    """Return a time in whole µs: ``"1500"``, ``"200ms"``, ``"1.5 s"``.

    Args:
        text: The time.
        unit: Whether it must have one: who types 200 for a window hardly means 200 µs.

    Raises:
        InputError: No number of 0 or more with a known unit (us, ms, s, min), nor whole µs.
    """
    match = _DURATION.fullmatch(text.strip())
    if unit and match and not match[2]:
        raise InputError(f"time {text!r} has no unit: give it one, as in 200ms, 200us or 0.2s")
    # Fractions of a µs are seconds whose unit was forgotten.
    if not match or match[2] not in _UNITS_US or (not match[2] and not match[1].isdecimal()):
        raise InputError(
            f"time {text!r}: give whole µs, or a number with us, ms, s or min, as in 200ms"
        )
    if (value := float(match[1]) * _UNITS_US[match[2]]) >= _LONGEST_US:
        raise InputError(f"time {text[:20]}...: lies beyond any recording; mend it")
    return round(value)


def labels_from_folders(recordings: Sequence[Path]) -> list[Labelled]:
    """Label each recording as a whole by its folder; the folder above that is the session.

    The folder of a link is the one that the link lies in.
    Sessions are named by their folders' paths from the folder that holds them all.
    """
    sessions = _session_names([as_given(path).parent.parent for path in recordings])
    found = []
    for path in recordings:
        folder = as_given(path).parent
        stretch = Stretch(0, None, _check_label(folder.name, f"{path}: folder"), str(path))
        found.append(Labelled(path, sessions[folder.parent], (stretch,)))
    return found


def read_labels(
    path: str | Path, recordings: Sequence[Path], *, others: bool = False
) -> list[Labelled]:
    """Read a CSV of labels and find the recording of each row.

    Where a row names no session, the recording's folder is it, as in `labels_from_folders`.

    Args:
        path: The CSV; see this module for its form.
        recordings: Those that rows may name. One that no row names is left out.
        others: Whether rows may name further recordings; they are passed over.

    Raises:
        InputError: The file or a row is wrong; names the line.
    """
    rows: dict[Path, list[Stretch]] = {}
    sessions: dict[Path, str] = {}
    parts: dict[Path, str | None] = {}
    folders = _session_names([as_given(recording).parent for recording in recordings])
    lines = _rows(Path(path))
    divided = any(row.get("part") for _, row in lines)
    for source, row in lines:
        if (recording := find_named(row["file"], recordings, source)) is None:
            if others:
                continue
            near = suggest(row["file"], {p.name for p in recordings})
            raise InputError(
                f"{source}: file {row['file']!r} is none of the recordings{near}; mend the name, "
                "give that recording too, or remove the line"
            )
        start = _time(row["start"], source) or 0
        end = _time(row["end"], source)
        if end is not None and end <= start:
            raise InputError(f"{source}: end {row['end']} is not behind start {row['start'] or 0}")
        label = _check_label(row["label"], source)
        rows.setdefault(recording, []).append(Stretch(start, end, label, source))
        session = row.get("session") or folders[as_given(recording).parent]
        if sessions.setdefault(recording, session) != session:
            raise InputError(
                f"{source}: session {session!r}, where an earlier line says "
                f"{sessions[recording]!r} for the same file; give one session for each file"
            )
        part = _check_part(row["part"], source) if divided else None
        if parts.setdefault(recording, part) != part:
            raise InputError(
                f"{source}: part {part!r}, where an earlier line says {parts[recording]!r} for the "
                "same file; a recording is learned from or tested on as a whole"
            )
    return [
        Labelled(p, sessions[p], join_stretches(rows[p]), parts[p]) for p in recordings if p in rows
    ]


def as_given(path: Path) -> Path:
    """Return the whole path of a file, links in it kept as they are."""
    return Path(os.path.abspath(path))


def find_named(name: str, recordings: Sequence[Path], source: str) -> Path | None:
    """Return the recording of a name: that of its file, with as many folders as tell it apart.

    The name of a link goes before that of the file which it leads to.

    Args:
        name: Such as ``A0.raw`` or ``monday/A0.raw``.
        recordings: Those that it may be.
        source: Where the name comes from, for messages.

    Raises:
        InputError: It names no file, or fits two.
    """
    wanted = Path(name).parts
    if not wanted:
        raise InputError(f"{source}: names no file; give the recording's name")
    matches = [p for p in recordings if as_given(p).parts[-len(wanted) :] == wanted]
    matches = matches or [p for p in recordings if p.resolve().parts[-len(wanted) :] == wanted]
    matches = matches or [p for p in recordings if p.resolve() == Path(name).resolve()]
    if len(matches) > 1:
        raise InputError(
            f"{source}: file {name!r} fits {matches[0]} and {matches[1]}; give its folder too"
        )
    return matches[0] if matches else None


def is_table_of_labels(path: Path) -> bool:
    """Whether a file is a CSV that `read_labels` reads, by its first line."""
    if path.suffix.lower() not in (".csv", ".txt"):
        return False
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            cells = re.split("[,;]", file.readline(_LONGEST_LINE).strip().lower())
    except OSError:  # whoever reads it says why it cannot be read
        return False
    return set(_COLUMNS) <= {cell.strip() for cell in cells}


def join_stretches(stretches: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """Sort a recording's stretches and join those that overlap.

    Raises:
        InputError: Stretches with different labels overlap.
    """
    joined: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda s: (s.start, s.source)):
        before = joined[-1] if joined else None
        if before is None or (before.end is not None and before.end <= stretch.start):
            joined.append(stretch)
        elif before.label != stretch.label:
            raise InputError(
                f"{stretch.source}: {stretch.label!r} overlaps {before.label!r} of "
                f"{before.source}; an event can have one label only: mend start or end"
            )
        else:
            end = None
            if before.end is not None and stretch.end is not None:
                end = max(before.end, stretch.end)
            joined[-1] = Stretch(before.start, end, before.label, before.source)
    return tuple(joined)


def _rows(path: Path) -> list[tuple[str, Mapping[str, str]]]:
    """Return each row's cells, stripped, beside the words by which messages name it."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise InputError(
            f"{path}: cannot be read as a CSV of labels ({why}); check the path, or save the table "
            "as CSV in UTF-8"
        ) from error
    separator = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    found: list[tuple[str, Mapping[str, str]]] = []
    names: list[str] | None = None
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            source = f"{path} line {reader.line_num}"
            if not any(cells):
                continue
            if names is None:
                names = [cell.lower() for cell in cells]
                if missing := [name for name in _COLUMNS if name not in names]:
                    raise InputError(
                        f"{source}: lacks the column {missing[0]!r}; begin the file with the line "
                        "file,start,end,label (and session, if you wish)"
                    )
            elif len(cells) != len(names):
                raise InputError(f"{source}: {len(cells)} cells, where the first line names "
                                 f"{len(names)} columns; mend the line")  # fmt: skip
            else:
                found.append((source, dict(zip(names, cells, strict=True))))
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: {error}; mend the line") from error
    if not found:
        raise InputError(f"{path}: holds no labels; give lines of file,start,end,label")
    return found


def _time(text: str, source: str) -> int | None:
    try:
        return parse_duration(text) if text else None
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _check_part(part: str, source: str) -> str:
    if part.lower() not in ("train", "test"):
        raise InputError(
            f"{source}: part {part!r} is neither train nor test; where one line has a part, each "
            "line needs one"
        )
    return part.lower()


def _session_names(folders: Iterable[Path]) -> dict[Path, str]:
    """Name folders by their paths from the one that holds them all, which is none of them."""
    folders = set(folders)
    if not folders:
        return {}
    root = Path(os.path.commonpath(folders))
    root = root.parent if root in folders else root
    return {folder: folder.relative_to(root).as_posix() for folder in folders}


def _check_label(label: str, source: str) -> str:
    """Return a label that can name a folder."""
    if not label or label.startswith(".") or "/" in label or "\\" in label or "\0" in label:
        raise InputError(
            f"{source}: label {label!r} cannot name a folder; use letters, digits, - and _"
        )
    return label
