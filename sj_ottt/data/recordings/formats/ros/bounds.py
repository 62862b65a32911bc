"""Bags of a stranger: chunks that unpack to gigabytes, databases that make data up."""

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from sj_ottt.data.recordings.formats.common import DENSEST, optional
from sj_ottt.data.recordings.formats.unpacking import (
    LARGEST_PIECE,
    unpack_bz2,
    unpack_lz4,
    within_bounds,
)

__all__ = ["Unpackers", "bound_unpacking", "check_database"]

_STEP = 1 << 22


class Unpackers(NamedTuple):
    """What unpacks the chunks of bags.

    Attributes:
        ros1: By the name of the compression.
        mcap: (packed, compression, size, checksum) → unpacked.
    """

    ros1: Mapping[str, Callable[[bytes], bytes]]
    mcap: Callable[[bytes, str, int, int], bytes]


def bound_unpacking(path: Path) -> Unpackers:
    """Have ``rosbags``, which has no limit of its own, unpack to `LARGEST_PIECE` bytes at most.

    Args:
        path: The bag, for messages.
    """
    ros1: Any = optional("rosbags.rosbag1.reader", path, "ros")
    ros2: Any = optional("rosbags.rosbag2.reader", path, "ros")
    mcap: Any = optional("rosbags.rosbag2.storage_mcap", path, "ros")
    if not isinstance(ros2.zstd, _Zstd):
        lz4 = partial(unpack_lz4, optional("lz4.frame", path, "ros"))
        zstd = _Zstd(ros2.zstd)
        ros1.decompressors |= {"bz2": unpack_bz2, "lz4": lz4}
        mcap.DECOMPRESSORS |= {
            "lz4": lambda data, _: lz4(data),
            "zstd": lambda data, _: zstd.decompress(data),
        }
        ros2.zstd = zstd
    return Unpackers(ros1.decompressors, mcap.decompress)


class _Zstd:
    """What ``rosbags`` uses of a module for Zstandard, within bounds."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def decompress(self, data: bytes) -> bytes:
        def pieces(data: bytes) -> Iterator[bytes]:
            while data:
                decoder = self._module.ZstdDecompressor()
                while not decoder.eof:
                    if decoder.needs_input and not data:
                        raise ValueError("its Zstandard frame is cut off")
                    yield decoder.decompress(data, _STEP)
                    data = b""
                data = decoder.unused_data

        return within_bounds(pieces(data))

    @contextlib.contextmanager
    def open(self, file: Any, mode: str) -> Iterator[Any]:
        """Unpack a file to the most that a recording of its size can hold."""
        with self._module.open(file, mode) as unpacked:
            yield _Limited(
                unpacked, max(LARGEST_PIECE, DENSEST // 8 * os.fstat(file.fileno()).st_size)
            )


class _Limited:
    """A file that raises `ValueError` where it holds more than so many bytes."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._left = file, limit

    def read(self, size: int) -> bytes:
        data: bytes = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("its file unpacks to far more than a recording of its size holds")
        return data


def check_database(path: Path) -> None:
    """Raise `ValueError` where a database holds more than tables, or tables that make data up.

    A view or a computed column can give gigabytes, without end, from a file of a few kB.
    """
    name = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(name, uri=True)) as database:
        for kind, made_by in database.execute("SELECT type, sql FROM sqlite_master"):
            made_up = re.search(r"\bVIRTUAL\b|\bAS\s*\(", str(made_by), re.IGNORECASE)
            if kind not in ("table", "index") or made_up:
                raise ValueError("its database makes data up, in a view or a computed column")
