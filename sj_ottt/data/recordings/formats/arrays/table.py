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
from sj_ottt.data.recordings.source import BLOCK, ReadOptions
from sj_ottt.errors import InputError


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
) -> Iterator[np.ndarray]:
    """Make events of columns; the first block decides what they are.

    Args:
        blocks: Columns [n] of numbers, block by block.
        what: The columns, where the file names them.
        path: The name that messages give to the recording.
        options: How to read it.
        unit: The unit of t, where the format has only one.
        offset_us: Added to t.

    Yields:
        Events [n] of `EVENT_DTYPE`.

    Raises:
        InputError: An event that is none, or contradicts those of the first block.
    """
    columns: dict[str, int] | None = None
    n = 0
    for block in blocks:
        if not len(block[0]):
            continue
        if columns is None:
            columns = what.columns if what else tell(block, path, options)
            t = block[columns["t"]]
            stated = (what.unit if what else None) or unit
            whole = stated is None and options.time_unit is None and bool((t == np.rint(t)).all())
            told = time_unit(t, stated, path, options)
            packer = Packer(path, options, told, whole=whole)
        for i in range(0, len(block[0]), BLOCK):
            try:
                part = packer({k: block[c][i : i + BLOCK] for k, c in columns.items()})
            except UnfitError as error:
                raise InputError(
                    f"{path}: event {n + i + error.row}: {error}; convert the recording again"
                ) from error
            if offset_us:
                part["t"] += offset_us
            yield part
        n += len(block[0])
