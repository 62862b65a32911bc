"""Bags of ROS: layouts against what `rosbags` writes, topics, and files that are damaged."""

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data.recordings.formats.ros import bag
from sj_ottt.data.recordings.readers import read_events
from sj_ottt.data.recordings.source import ReadOptions, gather
from tests import recording_files as files
from tests.data.recordings.formats import ros_files
from tests.data.recordings.formats.aedat_files import blocks, read

NAMES = (
    "dvs_msgs/msg/EventArray",
    "prophesee_event_msgs/msg/EventArray",
    "event_camera_msgs/msg/EventPacket",
)


def split(events: np.ndarray, sizes=(1, 5, 0, 2, 40, 12)) -> list[list]:
    places = np.cumsum(sizes)
    return [part.tolist() for part in np.split(events, places)]


@pytest.mark.parametrize("kind", ros_files.KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frame", ["", "a", "cam"])
def test_every_layout(name, kind, frame, tmp_path, monkeypatch):
    """The frame's name moves what follows, and ROS 2 rounds its places up again."""
    events = files.sample_events(70)
    events["t"] += 1_700_000_000_000_000
    topics = {"/events": (name, split(events)), "/text": ("std_msgs/msg/String", ["hello"])}
    path = ros_files.write(tmp_path / "a.bag", topics, kind, frame=frame)
    recording, said = read(path, strict=True)
    assert np.array_equal(recording.events, events) and not said
    assert recording.sensor_size == (260, 346)
    parts = blocks(path, monkeypatch)
    assert len(parts) > 3 and np.array_equal(np.concatenate(parts), events)


@pytest.mark.parametrize("kind", ros_files.KINDS)
def test_evt3_goes_on_from_message_to_message(kind, tmp_path):
    events = files.sample_events(70)
    words = files.evt3_words(events.tolist())
    parts = [words[:1], words[1:2], words[2:101], words[101:]]
    path = ros_files.write(tmp_path / "a", {"/e": (NAMES[2], parts)}, kind, encoding="evt3")
    assert np.array_equal(read_events(path), events)


@pytest.mark.parametrize(
    ("kind", "compression"), [("bag", "BZ2"), ("bag", "LZ4"), ("mcap", "STORAGE")]
)
def test_compressed(kind, compression, tmp_path):
    events = files.sample_events(70)
    topics = {"/events": (NAMES[0], split(events))}
    path = ros_files.write(tmp_path / "a.bag", topics, kind, compression=compression)
    assert np.array_equal(read_events(path), events)


@pytest.mark.parametrize("compression", [None, "FILE", "MESSAGE"])
def test_a_folder_of_ros2(compression, tmp_path):
    events = files.sample_events(70)
    folder = tmp_path / "a"
    path = ros_files.write(
        folder, {"/e": (NAMES[0], split(events))}, "db3", compression=compression
    )
    source = bag.stream(folder, ReadOptions())
    assert np.array_equal(gather(source.chunks), events) and source.sensor_size == (260, 346)
    if compression == "MESSAGE":  # only the folder's metadata say that they are packed
        with pytest.raises(InputError, match="its messages are packed; rewrite it with ros2 bag"):
            read_events(path)


@pytest.mark.parametrize("kind", ros_files.KINDS)
def test_the_camera_of_several(kind, tmp_path):
    left, right = [(1, 2, 3, 1)], [(4, 5, 6, 0), (7, 8, 9, 1)]
    topics = {"/right": (NAMES[1], [right]), "/left": (NAMES[0], [left])}
    path = ros_files.write(tmp_path / "a.bag", topics, kind)
    with pytest.raises(InputError, match=r"2 cameras: 0 \(/left\), 1 \(/right\); choose"):
        read(path)
    for camera, events in (("/left", left), ("0", left), ("/right", right), ("1", right)):
        assert read(path, camera=camera)[0].events.tolist() == events


def test_what_is_refused(tmp_path):
    path = ros_files.write(tmp_path / "a", {"/t": ("std_msgs/msg/String", ["x"])}, "mcap")
    with pytest.raises(
        InputError, match=r"no topic of dvs_msgs.*, but /t \(std_msgs/msg/String\); r"
    ):
        read(path)
    path.write_bytes(path.read_bytes().replace(b"/t", b"/\n"))  # messages stay one line
    with pytest.raises(InputError, match=r"but / \(std_msgs/msg/String\); record"):
        read(path)
    path = ros_files.write(tmp_path / "b", {"/t": (NAMES[2], [[]])}, "bag", encoding="libcaer_cmp")
    with pytest.raises(InputError, match=r"b: event_camera_msgs in the encoding 'libcaer_cmp', of"):
        read(path)
    path = ros_files.write(tmp_path / "c", {"/t": (NAMES[0], [[(1, 40_000, 2, 0)]])}, "bag")
    with pytest.raises(InputError, match="'x' reaches from 40000 to 40000"):
        read(path)


def test_no_events_and_no_size(tmp_path):
    topics = {"/t": (NAMES[0], [[], []])}
    for kind in ros_files.KINDS:
        path = ros_files.write(tmp_path / kind, topics, kind, size=(0, 0))
        recording, _ = read(path)
        assert len(recording.events) == 0 and recording.sensor_size is None


@pytest.mark.parametrize("compression", [None, "packed"])
@pytest.mark.parametrize("kind", ros_files.KINDS)
def test_cut_off(kind, compression, tmp_path):
    """What a recorder leaves that was killed: whole chunks, and no index."""
    if compression:
        compression = {"bag": "LZ4", "db3": None, "mcap": "STORAGE"}[kind]
    events = files.sample_events(70)
    topics = {"/e": (NAMES[0], split(events)), "/f": (NAMES[1], [[(1, 2, 3, 1)]])}
    source = ros_files.write(tmp_path / "a", topics, kind, compression=compression, chunk=600)
    whole = source.read_bytes()
    path = tmp_path / f"cut.{kind}"
    counts = []
    for length in [*range(0, len(whole), 1 + len(whole) // 200), len(whole) - 1]:
        path.write_bytes(whole[:length])
        try:
            recording, said = read(path, camera="/e")
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        counts.append(len(recording.events))
        assert np.array_equal(recording.events, events[: counts[-1]])
        if kind != "db3":
            assert len(said) == 1 and "is cut off: its index is missing, and the last " in said[0]
            with pytest.raises(InputError, match=r"damaged bag \(.*rosbag reindex or mcap recover"):
                read(path, camera="/e", strict=True)
    assert counts == sorted(counts)
    if kind != "db3":
        assert len(set(counts)) > 2 and counts[-1] == 70
    with pytest.raises(InputError, match=r"damaged bag \(.*rosbag reindex or mcap recover"):
        path.write_bytes(whole[:40])
        read(path)


def test_the_package_is_named(tmp_path, monkeypatch):
    path = ros_files.write(tmp_path / "a", {"/e": (NAMES[0], [[(1, 2, 3, 1)]])}, "bag")
    monkeypatch.setitem(__import__("sys").modules, "rosbags.rosbag1", None)
    with pytest.raises(InputError, match=r'rosbags\.rosbag1 .*pip install "sj-ottt\[ros\]"'):
        read(path)
