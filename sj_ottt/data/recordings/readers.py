"""The readers of event recordings: an open table, and the choice among its rows by content."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sj_ottt.data.recordings.events import Recording
from sj_ottt.data.recordings.formats import bin, es, text
from sj_ottt.data.recordings.formats.aedat import aedat2, aedat3, aedat4
from sj_ottt.data.recordings.formats.arrays import hdf5, mat, npy, npz
from sj_ottt.data.recordings.formats.prophesee import dat, raw
from sj_ottt.data.recordings.formats.ros import bag
from sj_ottt.data.recordings.source import (
    ReadOptions,
    Source,
    gather,
    in_order,
    in_proportion,
)
from sj_ottt.errors import InputError

SNIFFED_BYTES = 4096


class Reader(NamedTuple):
    """One row of the reader table.

    Attributes:
        name: The format, as messages call it.
        suffixes: Lower-case file endings under which the format is found.
        sniff: Tells from a file's first 4,096 bytes whether it is of this format; None where the
            format has no mark of its own, and the ending decides.
        stream: Reads a file's header, and gives its events block by block; raises `InputError`.
        remedy: What to do about a file with such an ending, but without the format's mark.
    """

    name: str
    suffixes: tuple[str, ...]
    sniff: Callable[[bytes], bool] | None
    stream: Callable[[Path, ReadOptions], Source]
    remedy: str = "it is truncated or misnamed: copy or convert it again"


_DEFAULT = ReadOptions()

# The open table: a further format is one more row. The first row that knows a file's mark reads it.
READERS: tuple[Reader, ...] = (
    Reader("npz", (".npz",), npz.sniff, npz.stream),
    Reader("npy", (".npy",), npy.sniff, npy.stream),
    Reader("AEDAT 4", (".aedat4", ".aedat"), aedat4.sniff, aedat4.stream),
    Reader("AEDAT 3", (".aedat", ".aedat3"), aedat3.sniff, aedat3.stream),
    Reader("AEDAT 2", (".aedat", ".aedat2"), aedat2.sniff, aedat2.stream),
    Reader("Prophesee RAW (EVT2, EVT2.1, EVT3)", (".raw",), raw.sniff, raw.stream),
    Reader("Prophesee DAT", (".dat",), dat.sniff, dat.stream),
    Reader("Event Stream", (".es",), es.sniff, es.stream),
    Reader("ROS bag", (".bag", ".db3", ".mcap"), bag.sniff, bag.stream),
    Reader("HDF5", (".h5", ".hdf5"), hdf5.sniff, hdf5.stream),
    Reader("MATLAB", (".mat",), mat.sniff, mat.stream),
    Reader(
        "text",
        (".csv", ".txt"),
        text.sniff,
        text.stream,
        remedy="give t, x, y and p in each line, and name the columns in a first line: t,x,y,p",
    ),
    Reader(
        "zipped text",
        (".zip", ".gz"),
        text.sniff_zipped,
        text.stream_zipped,
    ),
    Reader("N-MNIST, N-Caltech101", (".bin",), None, bin.stream),
)


def open_recording(path: str | os.PathLike, options: ReadOptions = _DEFAULT) -> Source:
    """Open one recording, in whichever of the formats in `READERS` it is.

    Its events come block by block, so that a file of any length passes in constant memory. Clocks
    that overflow are unwrapped, small steps back in time put in order (`in_order`); what else a
    format's reader leaves out or assumes is in the docstring of its module in
    `sj_ottt.data.recordings.formats`. Longer steps back stay, and `check_events` names the first.

    Args:
        path: The file. Its content decides about the format; its ending only where the format has
            no mark of its own.
        options: How to read it.

    Returns:
        The events, unchecked, polarity in {0, 1} also where the file holds {-1, 1} or booleans (see
        `check_events`); and the sensor's size where the options, the file or its format state it.
        A file that is damaged further on raises `InputError` on the way.

    Raises:
        InputError: The file is missing, damaged or of no known format, or its reader needs a
            package that is not installed.
    """
    path = Path(path)
    with _named(path):
        if path.is_dir() and (path / "metadata.yaml").is_file():  # a bag of ROS 2
            source = bag.stream(path, options)
        else:
            with open(path, "rb") as file:
                head = file.read(SNIFFED_BYTES)
            source = _reader_for(path, head).stream(path, options)
    return source._replace(
        chunks=in_order(_named_chunks(path, source.chunks), source.name, strict=options.strict),
        sensor_size=options.sensor_size or source.sensor_size,
        stored=path.stat().st_size if path.is_file() else None,
    )


def read_recording(path: str | os.PathLike, options: ReadOptions = _DEFAULT) -> Recording:
    """Read a whole recording into memory; see `open_recording`.

    Raises:
        InputError: As `open_recording`; or the recording does not fit into memory.
    """
    source = open_recording(path, options)
    with _named(Path(path)):
        return Recording(gather(in_proportion(source)), source.sensor_size)


def read_events(path: str | os.PathLike, options: ReadOptions = _DEFAULT) -> np.ndarray:
    """Read one recording's events; see `read_recording`, which also returns the sensor's size."""
    return read_recording(path, options).events


def recording_suffixes() -> tuple[str, ...]:
    """Return the file endings that some reader knows, sorted."""
    return tuple(sorted({suffix for reader in READERS for suffix in reader.suffixes}))


def _reader_for(path: Path, head: bytes) -> Reader:
    for reader in READERS:
        if reader.sniff is not None and reader.sniff(head):
            return reader
    if candidates := [reader for reader in READERS if path.suffix.lower() in reader.suffixes]:
        if candidates[0].sniff is None:
            return candidates[0]
        if not head:
            raise InputError(f"{path}: is empty; copy it again, or record it again")
        names = " or ".join(reader.name for reader in candidates)
        raise InputError(
            f"{path}: does not begin as a file of the format {names} does; {candidates[0].remedy}"
        )
    formats = ", ".join(f"{reader.name} ({'/'.join(reader.suffixes)})" for reader in READERS)
    raise InputError(f"{path}: unknown recording format; convert it to one of: {formats}")


def _named_chunks(path: Path, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    with _named(path):
        yield from chunks


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give errors of the system the file's name and a remedy, and each error one line."""
    try:
        yield
    except InputError as error:
        # Names in a file, which messages quote, may hold line breaks.
        if len(lines := str(error).splitlines()) < 2:
            raise
        raise InputError(" ".join(line.strip() for line in lines)) from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such recording; check the path") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise InputError(
            f"{path}: does not fit into memory; cut the recording into shorter ones"
        ) from error
