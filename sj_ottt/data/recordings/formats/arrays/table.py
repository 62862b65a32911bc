"""Events of columns that come block by block, whatever file of arrays they are from."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sj_ottt.data.recordings.formats.columns import (
    Named,
    Packer,
    UnfitError,
    named,
    tell,
    time_unit,
)
from sj_ottt.data.recordings.formats.common import assume
from sj_ottt.data.recordings.source import BLOCK as EVENTS_BLOCK
from sj_ottt.data.recordings.source import ReadOptions
from sj_ottt.errors import InputError

BLOCK = EVENTS_BLOCK // 4
"""Events in a block of arrays: their columns, in types of up to 8 bytes, stay beside the events."""


def is_numeric(dtype: np.dtype) -> bool:
    """Whether a column of this type may be read: whole and real numbers and booleans."""
    return dtype.kind in "iufb"


def fields(dtype: np.dtype, path: Path) -> Named | None:
    """Find t, x, y and p among the fields of a structured type; None where one is not there."""
    found = named(dtype.names, path) if dtype.names else None
    if found and not all(is_numeric(dtype[i]) for i in found.columns.values()):
        return None
    return found


def is_table(shape: Sequence[int], dtype: np.dtype) -> bool:
    """Whether an array holds events in rows of four or five numbers, or in four such columns."""
    return is_numeric(dtype) and len(shape) == 2 and (shape[1] in (4, 5) or shape[0] == 4)


def events(
    blocks: Iterable[Sequence[np.ndarray]],
    what: Named | None,
    path: Path,
    options: ReadOptions,
    *,
    unit: str | None = None,
    offset_us: int = 0,
    from_one: bool = False,
) -> Iterator[np.ndarray]:
    """Make events of columns; the first block decides what they are.

    Args:
        blocks: Columns [n] of numbers, block by block.
        what: The columns, where the file names them.
        path: The name that messages give to the recording.
        options: How to read it.
        unit: The unit of t, where the format has only one.
        offset_us: Added to t.
        from_one: Whether the file may be MATLAB's, which counts from 1: polarities of 1 and 2 then
            say that x and y do so too.

    Yields:
        Events [n] of `EVENT_DTYPE`.

    Raises:
        InputError: An event that is none, or contradicts those of the first block.
    """
    columns: dict[str, int] | None = None
    n, first = 0, 0
    for block in blocks:
        if not len(block[0]):
            continue
        if columns is None:
            columns = what.columns if what else tell(block, path, options)
            t = block[columns["t"]]
            stated = (what.unit if what else None) or unit
            whole = stated is None and options.time_unit is None and bool((t == np.rint(t)).all())
            told = time_unit(t, stated, path, options)
            if from_one and what:
                first = _first_number(block[columns["p"]], path, options)
            packer = Packer(path, options, told, whole=whole)
        for i in range(0, len(block[0]), BLOCK):
            part_of = {k: block[c][i : i + BLOCK] for k, c in columns.items()}
            if first:
                part_of |= {k: part_of[k].astype(np.float64) - first for k in "xyp"}
            try:
                part = packer(part_of)
            except UnfitError as error:
                raise InputError(
                    f"{path}: event {n + i + error.row}: {error}; convert the recording again"
                ) from error
            if offset_us:
                part["t"] += offset_us
            yield part
        n += len(block[0])


def _first_number(p: np.ndarray, path: Path, options: ReadOptions) -> int:
    """Return what MATLAB's counting begins with, by the polarities [n] of the first block."""
    if p.min() < 1 or p.max() != 2:
        return 0
    assumed = "polarities are 1 and 2, so x and y are taken to count from 1 too"
    assume(path, options, assumed, "save x and y from 0, and p as 0 and 1")
    return 1


def choose(found: Sequence[str], path: Path, options: ReadOptions) -> int:
    """Return which of several cameras is wanted.

    Args:
        found: Where the events of each are in the file.
        path: The file.
        options: The user's choice.

    Raises:
        InputError: There is none such, or none was chosen of several.
    """
    camera, names = options.camera, ", ".join(found[:9])
    if camera is None:
        if len(found) > 1:
            raise InputError(
                f"{path}: holds events of several cameras ({names}); choose one with --camera"
            )
        return 0
    if camera.isdecimal():
        chosen = [i for i in range(len(found)) if i == int(camera)]
    else:
        chosen = [i for i, name in enumerate(found) if camera in (name, *name.split("/"))]
    if len(chosen) != 1:
        raise InputError(
            f"{path}: camera={camera!r} is {'more than one' if chosen else 'none'} of its "
            f"cameras ({names}); give one of these names or its number from 0 on"
        )
    return chosen[0]
