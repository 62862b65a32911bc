"""Bags of ROS 1 and 2 with events, which `rosbags` writes and lays out."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from tests.data.recordings.damage import Sample
from tests.recording_files import sample_events

HEADER = "std_msgs/Header header\n"
EVENT = "uint16 x\nuint16 y\ntime ts\nbool polarity\n"
ARRAY = HEADER + "uint32 height\nuint32 width\nEvent[] events\n"
PACKET = HEADER + "uint32 height\nuint32 width\nuint64 seq\nuint64 time_base\nstring encoding\n"
PACKET += "bool is_bigendian\nuint8[] events\n"
KINDS = ("bag", "db3", "mcap")


def store(kind: str):
    types = get_typestore(Stores.ROS1_NOETIC if kind == "bag" else Stores.ROS2_HUMBLE)
    event = EVENT if kind == "bag" else EVENT.replace("time", "builtin_interfaces/Time")
    for package in ("dvs_msgs", "prophesee_event_msgs"):
        types.register(get_types_from_msg(event, f"{package}/msg/Event"))
        types.register(get_types_from_msg(ARRAY, f"{package}/msg/EventArray"))
    types.register(get_types_from_msg(PACKET, "event_camera_msgs/msg/EventPacket"))
    return types


def message(types, name: str, events: Sequence, size=(260, 346), encoding="mono", frame="camera"):
    """A message of the type ``name`` with events of t (µs), x, y and p."""
    time = types.types["builtin_interfaces/msg/Time"]
    kind = types.types["std_msgs/msg/Header"]
    more = {"seq": 7} if "seq" in kind.__dataclass_fields__ else {}
    header = kind(stamp=time(sec=5, nanosec=6), frame_id=frame, **more)
    if name.endswith("EventArray"):
        event = types.types[name.replace("EventArray", "Event")]
        array = [
            event(x=x, y=y, ts=time(sec=t // 10**6, nanosec=t % 10**6 * 1000 + 999), polarity=p > 0)
            for t, x, y, p in events
        ]
        return types.types[name](header=header, height=size[0], width=size[1], events=array)
    if name.endswith("EventPacket"):
        base = 1000 * events[0][0] if encoding == "mono" and events else 0
        if encoding == "evt3":  # words of a stream that goes on from message to message
            data = np.array(events, "<u2")
        else:
            words = [1000 * t - base | x << 32 | y << 48 | p << 63 for t, x, y, p in events]
            data = np.array(words, "<u8")
        return types.types[name](
            header=header, height=size[0], width=size[1], seq=1, time_base=base, encoding=encoding,
            is_bigendian=False, events=data.view(np.uint8),
        )  # fmt: skip
    return types.types[name](data=str(events))


def write(path: Path, topics: Mapping[str, tuple[str, Sequence]], kind: str, **options) -> Path:
    """Write a bag, and return its file.

    Args:
        path: Of the file, or for ROS 2 of the folder.
        topics: The messages' type, and for each message its events, by topic.
        kind: One of `KINDS`.
        **options: For `message`; ``compression``; ``chunk``, the bytes that one holds.
    """
    types = store(kind)
    compression, chunk = options.pop("compression", None), options.pop("chunk", 1 << 20)
    if kind == "bag":
        writer = rosbag1.Writer(path)
        writer.chunk_threshold = chunk
        if compression:
            writer.set_compression(writer.CompressionFormat[compression])
    else:
        plugin = {"db3": "SQLITE3", "mcap": "MCAP"}[kind]
        writer = rosbag2.Writer(path, version=9, storage_plugin=rosbag2.StoragePlugin[plugin])
        if compression:
            mode = rosbag2.CompressionMode[compression]
            writer.set_compression(mode, rosbag2.CompressionFormat.ZSTD)
    with writer:
        connections = {
            topic: writer.add_connection(topic, name, typestore=types)
            for topic, (name, _) in topics.items()
        }
        longest = max(len(messages) for _, messages in topics.values())
        for i in range(longest):
            for topic, (name, messages) in topics.items():
                if i < len(messages):
                    what = message(types, name, messages[i], **options)
                    serialize = types.serialize_ros1 if kind == "bag" else types.serialize_cdr
                    writer.write(connections[topic], 10**9 * (i + 1), serialize(what, name))
                    if kind == "mcap" and writer.storage.chunk.bio.tell() > chunk:
                        writer.storage.close_chunk()
    return path if kind == "bag" else next(path.glob(f"*.{kind}*"))


def _whole(kind: str, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        events = sample_events(60, (34, 34)).tolist()
        topics = {"/e": (name, [events[:20], events[20:]])}
        return write(Path(folder) / "a", topics, kind, chunk=400).read_bytes()


SAMPLES = {
    "ros1": Sample(".bag", lambda: _whole("bag", "dvs_msgs/msg/EventArray")),
    "ros2_db3": Sample(".db3", lambda: _whole("db3", "dvs_msgs/msg/EventArray")),
    "ros2_mcap": Sample(".mcap", lambda: _whole("mcap", "event_camera_msgs/msg/EventPacket")),
}
"""Intact files for `tests.data.recordings.damage`."""
