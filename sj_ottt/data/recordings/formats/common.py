"""What several formats share: text headers, clocks that wrap around, sizes, optional packages."""

import importlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from sj_ottt.data.recordings.source import BLOCK, ReadOptions
from sj_ottt.errors import InputError

# Deflate packs at most this many bytes into one; no recording is packed nearly so well.
DENSEST = 1032
LARGEST_RECORD = 1 << 12
"""Bytes that an event may take in a file, with whatever else stands beside it."""
_LONGEST_LINE = 1 << 16
_PIECE_BYTES = 1 << 18
_KEPT_BYTES = 1 << 24
_JOINED = 1 << 15


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


def record_blocks(
    path: Path, offset: int, dtype: np.dtype, what: str, options: ReadOptions
) -> Iterator[np.ndarray]:
    """Read a file from ``offset`` to its end as records of one type, block by block.

    Args:
        path: The file.
        offset: Where the records begin, in bytes.
        dtype: A record's type.
        what: What messages call a record.
        options: Whether a file that ends within a record is refused.

    Yields:
        Records [n] of ``dtype``, of which the caller may keep what it wants.

    Raises:
        InputError: The file ends within a record, and ``options.strict`` is set.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        while data := file.read(BLOCK * dtype.itemsize):
            if torn := len(data) % dtype.itemsize:
                lost = f"{torn} bytes are left behind the last whole {what} of {dtype.itemsize}"
                cut_off(path, options, lost)
            yield np.frombuffer(data, dtype, len(data) // dtype.itemsize)


def cut_off(path: Path, options: ReadOptions, lost: str) -> None:
    """Say that a file ends early, as that of a recorder does that was killed.

    Args:
        path: The file.
        options: Whether that is refused.
        lost: What is missing, as part of a sentence.

    Raises:
        InputError: ``options.strict`` is set.
    """
    if options.strict:
        raise InputError(
            f"{path}: is cut off: {lost}; copy it again, or read what is intact without --strict"
        )
    warnings.warn(f"{path}: is cut off: {lost}; what is intact is read", stacklevel=3)


def assume(path: Path, options: ReadOptions, assumed: str, remedy: str) -> None:
    """Say what was assumed or repaired, since the file does not tell.

    Args:
        path: The file.
        options: Whether that is refused.
        assumed: What, as part of a sentence.
        remedy: How to say it instead, as a command to the user.

    Raises:
        InputError: ``options.strict`` is set.
    """
    if options.strict:
        raise InputError(f"{path}: {assumed}, which --strict refuses; {remedy}")
    warnings.warn(f"{path}: {assumed}; {remedy} if that is wrong", stacklevel=3)


class Unwrap:
    """Undoes the overflows of a clock that counts in ``bits`` bits, block by block.

    A step by more than half the clock's range counts as an overflow, forwards or (a late event from
    before the overflow) backwards; a smaller one stays as it is.

    Args:
        bits: The clock starts again at 0 after ``2**bits - 1``.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._last: int | None = None
        self._turns = 0

    def __call__(self, clock: np.ndarray) -> np.ndarray:
        """Return the times of the next block, int64 [n], in the clock's unit.

        Args:
            clock: Unsigned integers [n].
        """
        times = clock.astype(np.int64)
        if not len(times):
            return times
        half = 1 << (self._bits - 1)
        last = int(times[-1])
        first = int(times[0]) if self._last is None else self._last
        step = np.diff(times, prepend=first)
        overflows = (step < -half).astype(np.int8) - (step > half)
        if overflows.any():  # np.unwrap would sum up millions of zeros
            turns = self._turns + np.cumsum(overflows, dtype=np.int64)
            self._turns = int(turns[-1])
            times += turns << self._bits
        elif self._turns:
            times += self._turns << self._bits
        self._last = last
        return times


def check_stated_bytes(path: Path, n_bytes: int) -> None:
    """Check the bytes of events that a header states, before memory is allocated for them.

    Raises:
        InputError: No file of this size can hold so many.
    """
    size = path.stat().st_size
    if n_bytes > DENSEST * size:
        raise InputError(
            f"{path}: states {n_bytes} bytes of events in a file of {size}; it is damaged: copy "
            "or convert it again"
        )


def optional(package: str, path: Path, extra: str = "events") -> ModuleType:
    """Import a package of an extra, which reading ``path`` needs.

    Raises:
        InputError: It is missing; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{path}: reading it needs the package {package} ({error}); "
            f'pip install "sj-ottt[{extra}]"'
        ) from error


def reason(error: BaseException) -> str:
    """Return another package's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def batched(pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Join pieces of events [n], as packets hold them, into longer ones that still fit a cache."""
    held: list[np.ndarray] = []
    n = 0
    for piece in pieces:
        held.append(piece)
        n += len(piece)
        if n >= min(_JOINED, BLOCK):
            yield np.concatenate(held)
            held, n = [], 0
    if n:
        yield np.concatenate(held)


def choose_camera(path: Path, options: ReadOptions, names: Sequence[str]) -> int:
    """Return the number of the camera to read.

    Args:
        path: The file.
        options: Which camera was asked for.
        names: What the cameras in the file are called, at least one.

    Raises:
        InputError: There are several and none was chosen, or there is none of that name or number.
    """
    listed = ", ".join(f"{i} ({' '.join(name.split())})" for i, name in enumerate(names))
    if options.camera is None:
        if len(names) > 1:
            raise InputError(
                f"{path}: holds the events of {len(names)} cameras: {listed}; choose one by its "
                "number or name with --camera"
            )
        return 0
    if names.count(options.camera) == 1:
        return names.index(options.camera)
    if options.camera.isdecimal() and int(options.camera) < len(names):
        return int(options.camera)
    raise InputError(
        f"{path}: holds no camera {options.camera!r}; choose one by its number or name with "
        f"--camera: {listed}"
    )


def pieces(block: np.ndarray) -> Iterator[np.ndarray]:
    """Cut a block into pieces that, decoded, fit a processor's cache.

    Decoding them one by one takes a fraction of the time that the whole block does.

    Args:
        block: Records [n] of a format.

    Yields:
        The records in their order, [m] each.
    """
    # A C library gives freed memory back to the system, and gets it anew page by page, as long as
    # no larger piece was freed before: that would take most of the time.
    np.empty(_KEPT_BYTES, np.uint8)
    for start in range(0, len(block), _PIECE_BYTES // block.itemsize):
        yield block[start : start + _PIECE_BYTES // block.itemsize]
