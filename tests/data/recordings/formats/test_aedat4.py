"""AEDAT 4: containers whole, cut off and damaged, several cameras, and real recordings."""

import struct

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data.recordings.readers import open_recording, read_events
from sj_ottt.data.recordings.source import ReadOptions
from tests import recording_files as files
from tests.data.recordings.formats.aedat_files import blocks, camera_file, read

EVENTS = [(10, 3, 4, 1), (20, 5, 6, 0), (30, 345, 259, 1)]
WRITERS = {"none": files.aedat4, "lz4": files.aedat4_lz4, "zstd": files.aedat4_zstd}


@pytest.mark.parametrize(
    ("name", "n", "first", "last", "off"),
    [
        ("real/aedat4_davis346.aedat4", 6676, 1589163147368868, 1589163147538809, 3113),
        ("wrong/killed_recorder.aedat4", 12_000, 1589163147368868, 1589163147691102, 5640),
    ],
)
def test_real_recordings(name, n, first, last, off):
    """The killed recorder's times and polarities are what dv-processing 2.0.4 reads of it."""
    path = camera_file(name)
    recording, said = read(path)
    events = recording.events
    assert recording.sensor_size == (260, 346)
    assert (len(events), events["t"][0], events["t"][-1]) == (n, first, last)
    assert np.count_nonzero(events["p"] == 0) == off
    if "killed" in name:
        lost = f"{path}: is cut off: the last 38618 of its 131894 bytes hold no whole packet; what"
        assert len(said) == 1 and said[0].startswith(lost)
        with pytest.raises(InputError, match=r"38618 .* without --strict"):
            read(path, strict=True)
    else:
        assert not said
        assert np.array_equal(events, np.load(camera_file("wrong/v2e_truth.npy")))


@pytest.mark.parametrize("name", WRITERS)
def test_blocks(name, tmp_path, monkeypatch):
    events = files.sample_events(100)
    packets = [files.aedat4_packet(events[i : i + 3].tolist()) for i in range(0, 100, 3)]
    path = tmp_path / "a"
    path.write_bytes(files.aedat4_header() + b"".join(packets))
    parts = blocks(path, monkeypatch)
    assert len(parts) > 10 and np.array_equal(np.concatenate(parts), events)


def test_long_packets_are_unpacked_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("sj_ottt.data.recordings.formats.unpacking._STEP", 50)
    for write in (files.aedat4_lz4, files.aedat4_zstd):
        events = files.sample_events(40)
        (tmp_path / "a").write_bytes(write(events.tolist()))
        assert np.array_equal(read_events(tmp_path / "a"), events)


def test_an_index_behind_the_packets_and_no_packets(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(indexed(EVENTS))
    recording, said = read(path)
    assert recording.events.tolist() == EVENTS and not said
    path.write_bytes(files.aedat4_header())
    assert len(read_events(path)) == 0


def indexed(events) -> bytes:
    """A file that was closed: two packets, and an index behind them."""
    packets = files.aedat4_packet(events[:2]) + files.aedat4_packet(events[2:])
    end = len(files.aedat4_header()) + len(packets)
    return files.aedat4_header(end=end) + packets + b"the index behind the packets"


def test_the_camera_of_several(tmp_path):
    streams = ((0, 346, 260, "left"), (2, 640, 480, "right"))
    path = tmp_path / "a"
    path.write_bytes(
        files.aedat4_header(streams)
        + files.aedat4_packet(EVENTS[:1], 0)
        + files.aedat4_packet(EVENTS[1:], 2)
    )
    listed = r"0 \(left\), 1 \(right\)"
    with pytest.raises(InputError, match=rf"events of 2 cameras: {listed}; choose .* --camera"):
        read_events(path)
    for name, number, events, size in (
        ("left", "0", EVENTS[:1], (260, 346)),
        ("right", "1", EVENTS[1:], (480, 640)),
    ):
        for camera in (name, number):
            source = open_recording(path, ReadOptions(camera=camera))
            assert np.concatenate(list(source.chunks)).tolist() == events
            assert source.sensor_size == size
    for camera in ("2", "middle", "-1"):
        with pytest.raises(InputError, match=rf"holds no camera '{camera}'; choose .*{listed}"):
            read_events(path, ReadOptions(camera=camera))
    path.write_bytes(files.aedat4_header(((0, 346, 260, "x"), (1, 346, 260, "x"))))
    with pytest.raises(InputError, match=r"0 \(stream 0\), 1 \(stream 1\)"):
        read_events(path)
    path.write_bytes(files.aedat4_header(()))
    with pytest.raises(InputError, match="no stream of events"):
        read_events(path)


@pytest.mark.parametrize("name", [*WRITERS, "indexed"])
def test_cut_off_at_every_byte(name, tmp_path):
    events = files.sample_events(12).tolist()
    whole, half = (indexed(events), 2) if name == "indexed" else (WRITERS[name](events), 6)
    begin = len(files.aedat4_header())
    path = tmp_path / "a.aedat4"
    counts, silent = [], []
    for length in range(len(b"#!AER-DAT") if name == "lz4" else begin, len(whole)):
        path.write_bytes(whole[:length])
        if length < begin:
            with pytest.raises(InputError, match=r"header|AEDAT , |does not begin|empty"):
                read(path)
            continue
        recording, said = read(path)
        counts.append(len(recording.events))
        assert recording.events.tolist() == events[: counts[-1]]
        if said:
            assert len(said) == 1 and "is cut off" in said[0]
            with pytest.raises(InputError, match="is cut off"):
                read(path, strict=True)
        else:
            silent.append(counts[-1])
    assert counts == sorted(counts)
    if name == "indexed":  # the header says where the packets end; all that lacks is the index
        assert set(counts) == {0, half, 12} and set(silent) == {12}
    else:  # between two packets, a recorder may as well have been closed
        assert set(counts) == {0, half} and silent == [0, half]


def test_damage_is_named(tmp_path):
    header = files.aedat4_header()
    path = tmp_path / "a"
    for data, words in (
        (header[:14] + struct.pack("<I", 2**32 - 1) + header[18:], "a header of 4294967295 bytes"),
        (header.replace(b"<dv", b"<!ENTITY"), "no plain XML"),
        (header.replace(b"</dv>", b"</vd>"), "mismatched tag"),
        (indexed(EVENTS).replace(b"EVTS\6", b"IMUS\6"), r"damaged packet \(it holds no events\)"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=words):
            read_events(path)
    whole = bytearray(indexed(EVENTS))
    whole[len(header) : len(header) + 4] = struct.pack("<i", 7)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=rf"damaged: no packet at byte {len(header)}; copy"):
        read_events(path)
    whole[len(header) : len(header) + 8] = struct.pack("<iI", 0, 1000)
    path.write_bytes(whole)
    with pytest.raises(InputError, match="a packet that is too long at byte"):
        read_events(path)


def test_a_packet_that_says_it_holds_more(tmp_path):
    """The count of events, and what Zstandard says of the size, allocate nothing."""
    data = files.aedat4_packet(EVENTS)
    at = data.index(struct.pack("<I", 3), 20)
    data = data[:at] + struct.pack("<I", 2**31) + data[at + 4 :]
    end = len(files.aedat4_header()) + len(data)
    path = tmp_path / "a"
    path.write_bytes(files.aedat4_header(end=end) + data)
    with pytest.raises(InputError, match="2147483648 events in"):
        read_events(path)
    zeros = bytes.fromhex("28b52ffd8058") + struct.pack("<I", 1 << 30)
    block = (128 << 10) << 3 | 1 << 1  # one byte repeated 128 Ki times
    packed = zeros + (block.to_bytes(3, "little") + b"\0") * 4000
    header = files.aedat4_header(compression=3)
    header = files.aedat4_header(compression=3, end=len(header) + 8 + len(packed))
    path.write_bytes(header + struct.pack("<iI", 0, len(packed)) + packed)
    with pytest.raises(InputError, match="unpacks to more than 256 MiB"):
        read_events(path)
