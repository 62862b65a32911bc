"""What several formats share: text headers, clocks that wrap around, sizes, optional packages."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np

from sj_ottt.errors import InputError

# Deflate packs at most this many bytes into one; no recording is packed nearly so well.
_DENSEST = 1032
_LONGEST_LINE = 1 << 16


def text_header(path: Path, mark: bytes, end: bytes) -> tuple[list[str], int]:
    """Read the text lines at the head of a binary file.

    Args:
        path: The file.
        mark: What each line of the header begins with.
        end: The line, without its line break, that ends the header where it is there.

    Returns:
        The lines without ``mark`` and line break, and the offset of the data behind them.
    """
    lines, offset = [], 0
    with open(path, "rb") as file:
        while (line := file.readline(_LONGEST_LINE)).startswith(mark):
            offset += len(line)
            lines.append(line[len(mark) :].decode("latin-1").strip())
            if line.rstrip() == end:
                break
    return lines, offset


def fixed_records(path: Path, offset: int, dtype: np.dtype, what: str) -> np.ndarray:
    """Read a file from ``offset`` to its end as records of one type.

    Args:
        path: The file.
        offset: Where the records begin, in bytes.
        dtype: A record's type.
        what: What messages call a record.

    Returns:
        The records [n] of ``dtype``.

    Raises:
        InputError: The file ends within a record.
    """
    if (torn := (path.stat().st_size - offset) % dtype.itemsize) != 0:
        raise InputError(
            f"{path}: truncated: {torn} bytes are left behind the last {what} of "
            f"{dtype.itemsize} bytes; copy it again"
        )
    return np.fromfile(path, dtype, offset=offset)


def unwrap(clock: np.ndarray, bits: int) -> np.ndarray:
    """Undo the overflows of a clock that counts in ``bits`` bits.

    A step by more than half the clock's range counts as an overflow, forwards or (a late event from
    before the overflow) backwards; a smaller one stays as it is.

    Args:
        clock: Unsigned integers [n].
        bits: The clock starts again at 0 after ``2**bits - 1``.

    Returns:
        The times, int64 [n], in the clock's unit.
    """
    clock = clock.astype(np.int64)
    step, half = np.diff(clock), 1 << (bits - 1)
    overflows = (step < -half).astype(np.int8) - (step > half)
    if overflows.any():  # np.unwrap would sum up millions of zeros
        clock[1:] += np.cumsum(overflows, dtype=np.int64) << bits
    return clock


def check_stated_bytes(path: Path, n_bytes: int) -> None:
    """Check the bytes of events that a header states, before memory is allocated for them.

    Raises:
        InputError: No file of this size can hold so many.
    """
    size = path.stat().st_size
    if n_bytes > _DENSEST * size:
        raise InputError(
            f"{path}: states {n_bytes} bytes of events in a file of {size}; it is damaged: copy "
            "or convert it again"
        )


def optional(package: str, path: Path) -> ModuleType:
    """Import a package of the ``events`` extra, which reading ``path`` needs.

    Raises:
        InputError: It is missing; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{path}: reading it needs the package {package} ({error}); "
            'pip install "sj-ottt[events]"'
        ) from error


def reason(error: BaseException) -> str:
    """Return another package's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
