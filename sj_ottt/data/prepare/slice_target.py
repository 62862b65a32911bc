"""The folder that a sliced data set goes to: free, or such a data set that may be replaced."""

import csv
from collections.abc import Sequence
from pathlib import Path

from sj_ottt.data.recordings.folders import PARTS, SLICES
from sj_ottt.errors import InputError

__all__ = ["COLUMNS", "DESCRIPTION", "SAMPLES", "check_target"]

COLUMNS = ("file", "part", "label", "recording", "session", "start", "end", "events")
"""Of the list of windows, `SLICES`."""

DESCRIPTION = "dataset.json"
SAMPLES = "samples"
"""Where samples are until it is known which part each belongs to."""


def check_target(out: Path, recordings: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse a folder that is there, unless it is to be overwritten and holds nothing else.

    Args:
        out: The folder.
        recordings: Those that are to be sliced.
        overwrite: Whether a sliced data set in it, whole or half-made, may go.

    Raises:
        InputError: The folder exists, and stays.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        remedy = " (--overwrite replaces it)" if _is_sliced(out) else ""
        raise InputError(f"{out}: exists already{remedy}; choose another folder")
    target = out.resolve()
    if inside := [path for path in recordings if target in path.resolve().parents]:
        raise InputError(f"{out}: holds the recording {inside[0]}; choose another folder")
    if out.is_symlink() or not out.is_dir():
        raise InputError(f"{out}: is no folder; choose another one")
    if stranger := _stranger(out):
        raise InputError(
            f"{out}: holds {stranger}, which slicing does not make, so --overwrite leaves it; "
            "move that away, or choose another folder"
        )


def _is_sliced(out: Path) -> bool:
    return (out / SLICES).is_file() and _stranger(out) is None


def _stranger(out: Path) -> Path | None:
    """Return something in a folder that slicing has not made; None where there is nothing.

    Slicing begins with the first line of its list, so that a folder without it is somebody's own.
    """
    inside = sorted(out.rglob("*"))
    if not inside:
        return None
    try:
        with open(out / SLICES, newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        if tuple(head) != COLUMNS:
            return out / SLICES
        listed = {row[0] for row in rows if row}
    except (OSError, ValueError, csv.Error):
        return inside[0]
    for path in inside:
        name = path.relative_to(out).as_posix()
        first, *others = name.split("/")
        if path.is_symlink():
            return path
        if path.is_dir():
            made = (first in PARTS and len(others) < 2) or name == SAMPLES
        else:
            in_the_making = first == SAMPLES and path.suffix == ".npz" and path.stem.isdecimal()
            made = name in (SLICES, DESCRIPTION) or name in listed or in_the_making
        if not made:
            return path
    return None
