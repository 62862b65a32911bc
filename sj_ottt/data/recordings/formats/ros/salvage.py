"""Bags without an index, as a recorder that was killed leaves them: record after record.

``rosbags`` refuses them. ROS 1: records of a header (fields ``name=value``, each behind its length)
and data; those of kind 5 are chunks of records, of which kind 7 names a topic and kind 2 is a
message. MCAP: records of a kind (a byte), a length (u64) and data; kind 3 names a type, 4 a topic,
5 is a message and 6 a chunk of records. Chunks are read as wholes.
"""

import io
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sj_ottt.data.recordings.formats.ros.bounds import bound_unpacking


class Topic(NamedTuple):
    """What is used of a connection in ``rosbags``."""

    id: int
    topic: str
    msgtype: str


class Salvaged:
    """A bag, up to where it is damaged, with the methods of a reader in ``rosbags``.

    Args:
        path: The bag.
        file: The same, open.
        mcap: Whether it is one of ROS 2.

    Attributes:
        connections: The topics in it.
        end: The byte up to which it is intact.
    """

    def __init__(self, path: Path, file: BinaryIO, *, mcap: bool) -> None:
        self._path, self._file, self._mcap = path, file, mcap
        self._types: dict[int, str] = {}
        self.end = 0
        self.connections: list[Topic] = []
        for _ in self.messages(()):
            pass

    def messages(self, connections: Collection[Topic]) -> Iterator[tuple[Topic, int, bytes]]:
        """Yield topic, 0 and data of the messages of some topics, in the file's order."""
        wanted = {connection.topic for connection in connections}
        topics: dict[int, Topic] = {}
        self._file.seek(8 if self._mcap else len(b"#ROSBAG V2.0\n"))
        try:
            for found in (self._mcap_records if self._mcap else self._ros1_records)(self._file):
                if isinstance(found, Topic):
                    topics[found.id] = found
                elif (topic := topics.get(found[0])) and topic.topic in wanted:
                    yield topic, 0, found[1]
        except Exception:  # whatever damage leads to; what was before is intact
            pass
        self.connections = self.connections or list(topics.values())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _ros1_records(self, file: BinaryIO) -> Iterator[Topic | tuple[int, bytes]]:
        """Yield topics, and messages with their topic's number."""
        unpack = bound_unpacking(self._path).ros1
        while head := file.read(4):
            fields = _fields(_whole(file, *struct.unpack("<I", head)))
            body = _whole(file, *struct.unpack("<I", _whole(file, 4)))
            kind, number = fields["op"][0], int.from_bytes(fields.get("conn", b""), "little")
            if kind == 5 and file is self._file:  # no chunk lies in a chunk
                chunk = unpack[fields["compression"].decode()](body)
                yield from self._ros1_records(io.BytesIO(chunk))
            elif kind == 7:
                package, _, name = _fields(body)["type"].decode().rpartition("/")
                yield Topic(number, fields["topic"].decode(), f"{package}/msg/{name}")
            elif kind == 2:
                yield number, body
            if file is self._file:
                self.end = file.tell()

    def _mcap_records(self, file: BinaryIO) -> Iterator[Topic | tuple[int, bytes]]:
        """Yield topics, and messages with their topic's number."""
        unpack = bound_unpacking(self._path).mcap
        while head := file.read(1):
            body = io.BytesIO(_whole(file, *struct.unpack("<Q", _whole(file, 8))))
            kind = head[0]
            if kind == 3:
                (number,) = struct.unpack("<H", body.read(2))
                self._types[number] = _text(body)
            elif kind == 4:
                number, of_type = struct.unpack("<HH", body.read(4))
                yield Topic(number, _text(body), self._types[of_type])
            elif kind == 5:
                number, _, _, _ = struct.unpack("<HIQQ", body.read(22))
                yield number, body.read()
            elif kind == 6 and file is self._file:
                size, crc = struct.unpack("<16xQI", body.read(28))
                packing = _text(body)
                packed = _whole(body, *struct.unpack("<Q", body.read(8)))
                yield from self._mcap_records(io.BytesIO(unpack(packed, packing, size, crc)))
            if file is self._file:
                self.end = file.tell()


def _whole(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _text(file: BinaryIO) -> str:
    return _whole(file, *struct.unpack("<I", file.read(4))).decode()


def _fields(header: bytes) -> dict[str, bytes]:
    """Return the fields of a header of ROS 1."""
    fields, file = {}, io.BytesIO(header)
    while head := file.read(4):
        name, _, value = _whole(file, *struct.unpack("<I", head)).partition(b"=")
        fields[name.decode()] = value
    return fields
