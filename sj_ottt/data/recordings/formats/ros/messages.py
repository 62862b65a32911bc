"""Messages with events, as ROS 1 and ROS 2 (CDR) lay them out.

The package ``rosbags`` would make a Python object of each event.

- dvs_msgs/EventArray and prophesee_event_msgs/EventArray: a header, height, width, and events of
  x, y (u16), time (seconds and ns, 4 bytes each) and polarity (a byte). They follow each other
  directly in ROS 1; ROS 2 puts each number at a multiple of its size, so that all but the first
  event take 16 bytes.
- event_camera_msgs/EventPacket, in the encodings ``mono`` (words of 64 bits: ns since the packet's
  time in bits 0-31, x in 32-47, y in 48-62, polarity in 63) and ``evt3`` (`prophesee.evt3`, where
  each message goes on from the one before; times are the sensor's).
"""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sj_ottt.data.recordings.events import pack_events
from sj_ottt.data.recordings.formats.prophesee.evt3 import Evt3
from sj_ottt.errors import InputError

ARRAYS = ("dvs_msgs/msg/EventArray", "prophesee_event_msgs/msg/EventArray")
PACKETS = ("event_camera_msgs/msg/EventPacket", "event_array_msgs/msg/EventArray")
_ZSTD = b"\x28\xb5\x2f\xfd"
_ROS1_EVENT = np.dtype([("x", "<u2"), ("y", "<u2"), ("s", "<u4"), ("ns", "<u4"), ("p", "u1")])


class Message(NamedTuple):
    """Events [n] of `EVENT_DTYPE`, and the sensor's (height, width); 0 where it states none."""

    events: np.ndarray
    sensor_size: tuple[int, int]


class Decoder:
    """Reads the messages of one topic, one after another.

    Args:
        path: The bag, for what errors say.
        cdr: Whether messages are laid out as ROS 2 does.
    """

    def __init__(self, path: Path, *, cdr: bool) -> None:
        self._path, self._cdr = path, cdr
        self._evt3 = Evt3()

    def __call__(self, kind: str, data: bytes) -> Message:
        """Read the next message.

        Args:
            kind: Its type, of `ARRAYS` or `PACKETS`.
            data: The message.

        Raises:
            InputError: The events are in an encoding that is not read, or beyond `EVENT_DTYPE`.
            ValueError, struct.error: The message is damaged.
        """
        fields = _Fields(data, self._cdr)
        fields.skip_header()
        size = fields.number("I"), fields.number("I")
        if kind in ARRAYS:
            return Message(pack_events(_array(fields), self._path), size)
        return Message(self._packet(fields), size)

    def _packet(self, fields: "_Fields") -> np.ndarray:
        fields.number("Q")
        begin = fields.number("Q")
        encoding = fields.text()
        order = ">" if fields.number("B") else "<"
        n_bytes = fields.number("I")
        fields.check_rest(n_bytes)
        if encoding == "evt3":
            words = np.frombuffer(fields.data, order + "u2", n_bytes // 2, fields.at)
            return self._evt3(words.astype("<u2"))
        if encoding != "mono":
            raise InputError(
                f"{self._path}: event_camera_msgs in the encoding {encoding[:40]!r}, of which only "
                "mono and evt3 are read; convert it to dvs_msgs with event_camera_tools"
            )
        words = np.frombuffer(fields.data, order + "u8", n_bytes // 8, fields.at)
        columns = {
            "t": ((words & 0xFFFF_FFFF) + np.uint64(begin)).astype(np.int64) // 1000,
            "x": words >> 32 & 0xFFFF,
            "y": words >> 48 & 0x7FFF,
            "p": words >> 63,
        }
        return pack_events(columns, self._path)


class _Fields:
    """A message's fields, one after another, in the layout of ROS 1 or ROS 2 (CDR)."""

    def __init__(self, data: bytes, cdr: bool) -> None:
        if cdr and data[:4] == _ZSTD:
            raise ValueError("its messages are packed; rewrite it with ros2 bag convert")
        if cdr and (len(data) < 4 or data[0] or data[1] > 1):
            raise ValueError("a message in an encoding other than plain CDR")
        self.data, self.cdr = data, cdr
        self.order = ">" if cdr and data[1] == 0 else "<"
        self.begin = self.at = 4 if cdr else 0

    def number(self, kind: str) -> int:
        """Read a number of one of the kinds of `struct`."""
        size = struct.calcsize(kind)
        if self.cdr:
            self.at += -(self.at - self.begin) % size
        (value,) = struct.unpack_from(self.order + kind, self.data, self.at)
        self.at += size
        return value

    def text(self) -> str:
        length = self.number("I")
        self.at += length
        return self.data[self.at - length : self.at].decode("latin-1").rstrip("\0")

    def skip_header(self) -> None:
        """Pass over number (ROS 1 only), time and name of a message's frame."""
        for _ in range(2 if self.cdr else 3):
            self.number("I")
        self.text()

    def check_rest(self, n_bytes: int) -> None:
        """Raise `ValueError` unless so many bytes are left, but for what rounds them up."""
        if not 0 <= len(self.data) - self.at - n_bytes < (8 if self.cdr else 1):
            raise ValueError(f"a message of {len(self.data)} bytes of which {n_bytes} are events'")


def _array(fields: _Fields) -> dict[str, np.ndarray]:
    n = fields.number("I")
    if not fields.cdr:
        fields.check_rest(n * _ROS1_EVENT.itemsize)
        events = np.frombuffer(fields.data, _ROS1_EVENT, n, fields.at)
        columns = {name: events[name] for name in ("x", "y", "s", "ns", "p")}
    else:
        fields.check_rest(max(n * 16 - 3, 0))

        def column(kind: str, place: int, count: int) -> np.ndarray:
            start = fields.at + place
            order = fields.order
            return np.ndarray((count,), order + kind, fields.data, start if count else 0, (16,))

        # Time and polarity are 16 bytes apart; x and y begin 2 bytes earlier but for the first's.
        columns = {"s": column("i4", 4, n), "ns": column("u4", 8, n), "p": column("u1", 12, n)}
        for i, name in enumerate(("x", "y")):
            first, later = column("u2", 2 * i, min(n, 1)), column("u2", 14 + 2 * i, max(n - 1, 0))
            columns[name] = np.concatenate([first, later])
    seconds, ns = columns.pop("s"), columns.pop("ns")
    return {**columns, "t": seconds.astype(np.int64) * 1_000_000 + ns // 1000}
