"""Bags of ROS 1 (``.bag``) and ROS 2 (``.db3``, ``.mcap``, or the folder of one).

The package ``rosbags`` reads the container. Of a ``.bag`` or ``.mcap`` without an index, as a
recorder leaves it that was killed, what is whole is read without it. Times are the events' own, not
those of the messages. Messages without events are left out.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sj_ottt.data.recordings.formats.common import (
    batched,
    choose_camera,
    cut_off,
    optional,
    reason,
)
from sj_ottt.data.recordings.formats.ros.bounds import bound_unpacking, check_database
from sj_ottt.data.recordings.formats.ros.messages import ARRAYS, PACKETS, Decoder, Message
from sj_ottt.data.recordings.formats.ros.salvage import Salvaged
from sj_ottt.data.recordings.source import ReadOptions, Source
from sj_ottt.errors import InputError

_ROS1, _MCAP, _SQLITE = b"#ROSBAG V", b"\x89MCAP", b"SQLite format 3\0"


def sniff(head: bytes) -> bool:
    """Recognize a bag, or the database that one of ROS 2 may be in."""
    return head.startswith((_ROS1, _MCAP, _SQLITE))


def stream(path: Path, options: ReadOptions) -> Source:
    """Read the events of one topic; of several, the options choose, as of several cameras.

    Raises:
        InputError: The bag is damaged, holds no events or none in an encoding that is read, or no
            topic of several is chosen.
    """
    with _opened(path, options) as bag:
        topics = {connection.topic: connection.msgtype for connection in bag.connections}
        names = sorted(name for name, kind in topics.items() if kind in ARRAYS + PACKETS)
        if not names:
            others = ", ".join(f"{name} ({kind})" for name, kind in sorted(topics.items())[:10])
            others = " ".join(others.split()) or "none at all"
            raise InputError(
                f"{path}: holds no topic of {', '.join(ARRAYS + PACKETS[:1])}, but "
                f"{others}; record or convert the events to one of them"
            )
        topic = names[choose_camera(path, options, names)]
        first = next(_messages(path, bag, topic), None)
    size = first.sensor_size if first and min(first.sensor_size) > 0 else None
    return Source(str(path), batched(_events(path, options, topic)), size)


def _events(path: Path, options: ReadOptions, topic: str) -> Iterator[np.ndarray]:
    with _opened(path, options) as bag:
        for message in _messages(path, bag, topic):
            yield message.events
        if isinstance(bag, Salvaged):
            size = path.stat().st_size
            lost = f"the last {size - bag.end} of its {size} bytes hold no whole messages"
            cut_off(path, options, f"its index is missing, and {lost}")


def _messages(path: Path, bag: Any, topic: str) -> Iterator[Message]:
    decode = Decoder(path, cdr=not _begins(path, _ROS1))
    connections = [connection for connection in bag.connections if connection.topic == topic]
    for connection, _, data in bag.messages(connections):
        yield decode(connection.msgtype, data)


@contextlib.contextmanager
def _opened(path: Path, options: ReadOptions) -> Iterator[Any]:
    """Open a bag; what is wrong in it becomes an `InputError`."""
    try:
        bag = _open(path, options)
        try:
            yield bag
        finally:
            bag.close()
    except (InputError, MemoryError, OSError):
        raise
    except Exception as error:  # whatever a damaged bag leads to
        raise InputError(
            f"{path}: truncated or damaged bag ({reason(error)}); copy it again, or mend it with "
            "rosbag reindex or mcap recover"
        ) from error


def _open(path: Path, options: ReadOptions) -> Any:
    rosbag1, rosbag2 = (optional(f"rosbags.rosbag{i}", path, "ros") for i in (1, 2))
    bound_unpacking(path)
    kinds = rosbag2.Reader.STORAGE_PLUGINS
    mcap = _begins(path, _MCAP)
    bag: Any
    if path.is_dir():
        bag = kinds["dir"](path)
    elif _begins(path, _SQLITE):
        check_database(path)
        bag = kinds[".db3"](path)
    else:
        bag = (kinds[".mcap"] if mcap else rosbag1.Reader)(_File(path))
    try:
        bag.open()
        for storage in getattr(bag, "storages", ()):  # unpacked just now, of a whole folder
            if _begins(Path(storage.path), _SQLITE):
                check_database(Path(storage.path))
    except (MemoryError, OSError):
        raise
    except Exception:  # whatever a damaged bag leads to
        if options.strict or not (mcap or _begins(path, _ROS1)):
            raise
        bag = Salvaged(path, _File(path).open("rb"), mcap=mcap)
        if not bag.connections:
            bag.close()
            raise
    return bag


def _begins(path: Path, mark: bytes) -> bool:
    if path.is_dir():
        return False
    with open(path, "rb") as file:
        return file.read(len(mark)) == mark


class _File:
    """A path, as `rosbags` opens it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def exists(self) -> bool:
        return self._path.exists()

    def open(self, mode: str) -> io.BufferedReader:
        return _Clipped(io.FileIO(self._path, mode))


class _Clipped(io.BufferedReader):
    """A file that does not ask for memory for bytes that it does not have."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))
