"""AEDAT 2 and 1: which camera wrote it, which way round it is, and files that are cut off."""

import struct

import numpy as np
import pytest
from spikingjelly.datasets.cifar10_dvs import _load_origin_data

from sj_ottt import InputError
from sj_ottt.data.recordings.events import check_events
from sj_ottt.data.recordings.readers import read_events, read_recording
from tests import recording_files as files
from tests.data.recordings.formats.aedat_files import blocks, camera_file, read

FIRST = b"#!AER-DAT2.0\r\n"


def chip(name: str) -> bytes:
    return f"# AEChip: {name}\r\n".encode()


def addresses(*pairs: tuple[int, int], kind: str = ">II") -> bytes:
    return b"".join(struct.pack(kind, *pair) for pair in pairs)


@pytest.mark.parametrize("name", ["v2e_346_no_aechip", "v2e_346_with_aechip"])
def test_what_v2e_writes_is_what_it_was_given(name):
    path = camera_file(f"wrong/{name}.aedat")
    truth = np.load(camera_file("wrong/v2e_truth.npy"))
    recording, said = read(path)
    for field in "xyp":
        assert np.array_equal(recording.events[field], truth[field])
    # v2e counts from the first event, in seconds, of which it cuts off what is below 1 µs.
    early = truth["t"] - truth["t"][0] - recording.events["t"]
    assert early.min() == 0 and early.max() == 1
    assert recording.sensor_size == (260, 346)
    if "no_aechip" in name:
        assert len(said) == 1 and "a DAVIS's, and the smallest that holds all, 260 x 346" in said[0]
        with pytest.raises(InputError, match=r"which --strict refuses; state .* --sensor-size"):
            read(path, strict=True)
        told, silence = read(path, sensor_size=(260, 346), strict=True)
        assert np.array_equal(told.events, recording.events) and not silence
    else:
        assert not said


def test_a_real_dvs128():
    """37.0% ON, and who walks there stands upright: first, the head fills the uppermost rows."""
    path = camera_file("wrong/dvs128_walking.aedat")
    recording, said = read(path, strict=True)
    events = recording.events
    assert not said and recording.sensor_size == (128, 128)
    assert len(events) == 19_182 and round(100 * events["p"].mean(), 1) == 37.0
    early = events[: len(events) // 4]
    rows = np.bincount(early["y"], minlength=128)
    assert rows[:10].sum() > 2 * rows[-10:].sum()
    theirs = _load_origin_data(path)
    assert np.array_equal(theirs["p"], events["p"]) and np.array_equal(theirs["t"], events["t"])
    # Theirs is turned over the diagonal besides.
    assert np.array_equal(theirs["x"], events["y"]) and np.array_equal(theirs["y"], events["x"])


@pytest.mark.parametrize("name", files.MIRRORED)
def test_cameras_that_are_named(name, tmp_path, monkeypatch):
    events = files.sample_events(100, files.MIRRORED[name])
    path = tmp_path / "a.aedat"
    path.write_bytes(files.aedat2(events.tolist(), name))
    recording, said = read(path, strict=True)
    assert np.array_equal(recording.events, events) and not said
    assert recording.sensor_size == files.MIRRORED[name]
    parts = blocks(path, monkeypatch)
    assert len(parts) > 10 and np.array_equal(np.concatenate(parts), events)
    if name == "DVS128":
        theirs = _load_origin_data(path)
        assert np.array_equal(theirs["y"], events["x"]) and np.array_equal(theirs["p"], events["p"])


@pytest.mark.parametrize(
    ("name", "address", "event", "size"),
    [
        ("DVS128", 1 << 1 | 2 << 8, (7, 126, 125, 1), (128, 128)),
        ("ch.unizh.ini.jaer.chip.retina.Tmpdiff128", 1, (7, 127, 127, 0), (128, 128)),
        ("Dvs128", 1, (7, 127, 127, 0), (128, 128)),
        ("eu.seebetter.ini.chips.DAViS.DAViS240", 1 << 12 | 2 << 22, (7, 238, 177, 0), (180, 240)),
        ("DVS240", 1 << 11, (7, 239, 179, 1), (180, 240)),
        ("eu.seebetter.ini.chips.davis.Davis346blue", 0, (7, 345, 259, 0), (260, 346)),
        ("Davis346redColor", 0, (7, 345, 259, 0), (260, 346)),
        ("Davis208PixelParade", 0, (7, 207, 191, 0), (192, 208)),
        ("Davis128", 0, (7, 127, 127, 0), (128, 128)),
        ("Davis640", 639 << 12, (7, 0, 479, 0), (480, 640)),
        ("DVS640", 1 | 1 << 1 | 2 << 11, (7, 638, 477, 1), (480, 640)),
        (
            "ch.unizh.ini.jaer.chip.retina.DVXplorer",
            5 << 12 | 6 << 22 | 1 << 11,
            (7, 5, 6, 1),
            None,
        ),
        ("DAVI346", 5 << 12, (7, 5, 259, 0), (260, 346)),
    ],
)
def test_layouts(name, address, event, size, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(FIRST + chip(name) + addresses((address, 7)))
    recording, said = read(path, strict=True)
    assert recording.events.tolist() == [event] and recording.sensor_size == size and not said


@pytest.mark.parametrize(
    "name", ["Cochlea64", "DavisRGBW640", "CDAVIS", "DVS1280x720SD", "DVS128andCochleaAMS1b", "x"]
)
def test_cameras_that_are_not_known_are_named(name, tmp_path):
    path = tmp_path / "a.aedat"
    path.write_bytes(FIRST + chip(f"eu.seebetter.{name}") + addresses((1, 7)))
    with pytest.raises(
        InputError, match=rf"a\.aedat: AEDAT 2\.0 of a eu\.seebetter\.{name}, whose"
    ):
        read_events(path)


def test_what_is_no_event_is_left_out(tmp_path):
    path = tmp_path / "a"
    marks = ((0x8000_0000 | 5 << 12, 1), (0x8000_0C00, 2), (0x400, 3), (0x401, 4))
    path.write_bytes(FIRST + chip("DAVIS240C") + addresses(*marks, (0, 7), *marks))
    assert read_events(path).tolist() == [(7, 239, 179, 0)]
    path.write_bytes(FIRST + chip("DVS128") + addresses((0x8000, 1), (0, 7), (0x8000_0001, 8)))
    assert read_events(path).tolist() == [(7, 127, 127, 1)]


def test_another_line_names_the_camera(tmp_path):
    path = tmp_path / "a"
    for line, event in (
        (b"# HardwareInterface: DVS128-V1 0298\r\n", (7, 127, 127, 1)),
        (b"# HardwareInterface: DAVIS240 FX2\r\n", (7, 239, 179, 0)),
        (b"# Device: DAVIS346\r\n", (7, 345, 259, 0)),
        (b"# HardwareInterface: DAVIS346 1\r\n# AEChip: DVS128\r\n", (7, 127, 127, 1)),
    ):
        path.write_bytes(FIRST + line + addresses((0, 7)))
        recording, said = read(path, strict=True)
        assert recording.events.tolist() == [event] and not said, line


def test_addresses_tell_where_no_line_does(tmp_path):
    path = tmp_path / "a.aedat"
    for name, size in (
        ("DVS128", (128, 128)),
        ("DAVIS240C", (180, 240)),
        ("DAVIS346red", (260, 346)),
    ):
        events = [(5, size[1] - 1, 0, 1), (6, 0, size[0] - 1, 0), (7, 0, 0, 1)]
        path.write_bytes(files.aedat2(events, name, lines=b"# AEChip:\r\n"))
        recording, said = read(path)
        assert recording.events.tolist() == events and recording.sensor_size == size
        assert len(said) == 1 and f"{size[0]} x {size[1]}" in said[0] and "--sensor-size" in said[0]
        assert not read(path, sensor_size=size)[1]
        with pytest.raises(InputError, match=r"no line names the camera; .*--strict refuses"):
            read(path, strict=True)
    # A DAVIS346 of which no event lies beyond a DAVIS240: the user's word turns it back.
    path.write_bytes(files.aedat2([(5, 345, 259, 1), (6, 300, 250, 0)], "DAVIS346red", lines=b""))
    assert read(path)[0].sensor_size == (180, 240)
    told, said = read(path, sensor_size=(260, 346))
    assert told.events.tolist() == [(5, 345, 259, 1), (6, 300, 250, 0)] and not said
    # A wrong word gives events outside the sensor, which are refused by name.
    path.write_bytes(files.aedat2([(5, 0, 0, 1)], "DAVIS346red", lines=b""))
    with pytest.raises(InputError, match=r"event 0 at x=-106, y=-80 lies outside the sensor"):
        check_events(read(path, sensor_size=(180, 240))[0].events, path, (180, 240))


def test_addresses_that_tell_no_camera_are_refused(tmp_path):
    path = tmp_path / "a.aedat"
    for pairs in (
        ((600 << 1 | 400 << 11, 1), (3 << 1 | 1, 2)),
        ((0x12345678 & ~0x400, 1),),
        ((700 << 12, 1),),
    ):
        path.write_bytes(FIRST + addresses(*pairs))
        with pytest.raises(InputError, match=r"tell none; write its name .* --sensor-size 480 640"):
            read(path)
    path.write_bytes(FIRST + addresses((600 << 1 | 400 << 11 | 1, 1)))
    assert read(path, sensor_size=(480, 640))[0].events.tolist() == [(1, 39, 79, 1)]


def test_a_wrong_name_is_noticed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(FIRST + chip("DVS128") + addresses((2, 1), (16 << 12 | 100 << 22, 2)))
    with pytest.raises(InputError, match=r"event 1 has the address 0x19010000, which its camera"):
        read(path)
    path.write_bytes(FIRST + chip("DAVIS240C") + addresses((0, 1), (5 << 1 | 9 << 8, 2)))
    with pytest.raises(InputError, match="event 1 has the address 0x0000090a, which its camera"):
        read(path)


def test_headers(tmp_path):
    path = tmp_path / "a"
    event = addresses((0x23 << 24 | 0x20_2020, 7))  # begins as a line does
    for end in (b"#End Of ASCII Header\r\n", b"# End of ASCII Header\r\n", b""):
        path.write_bytes(FIRST + chip("DAVIS346") + end + event)
        assert read_events(path)["t"].tolist() == [7]
    path.write_bytes(FIRST + b"#x" * 100)
    with pytest.raises(InputError, match="is cut off within its header"):
        read(path)
    for version in ("3.0", "5.0", ""):
        path.write_bytes(f"#!AER-DAT{version}\r\n".encode() + event)
        with pytest.raises(InputError, match=rf"AEDAT {version}, of which 1\.0, 2\.0, 3\.1 and 4"):
            read(path)


def test_aedat1(tmp_path):
    path = tmp_path / "a.dat"
    body = addresses((1 << 1 | 2 << 8, 2**32 - 1), (0x8000, 0), (1, 4), kind=">HI")
    events = [(2**32 - 1, 126, 125, 1), (2**32 + 4, 127, 127, 0)]
    path.write_bytes(b"#!AER-DAT1.0\r\n" + chip("Tmpdiff128") + body)
    recording, said = read(path, strict=True)
    assert recording.events.tolist() == events and not said
    path.write_bytes(b"#!AER-DAT1.0\r\n" + body)
    recording, said = read(path)
    assert recording.events.tolist() == events and "a DVS128 (128 x 128) is assumed" in said[0]
    path.write_bytes(b"#!AER-DAT1.0\r\n" + chip("DAVIS240C") + body)
    with pytest.raises(InputError, match="addresses of 16 bits, too few"):
        read(path)


@pytest.mark.parametrize("lines", [chip("DAVIS240C"), b""])
def test_cut_off_at_every_byte(lines, tmp_path):
    events = files.sample_events(6, (180, 240)).tolist()
    events[0] = (1, 0, 0, 1)
    whole = files.aedat2(events, "DAVIS240C", lines)
    begin = len(whole) - 8 * len(events)
    path = tmp_path / "a.aedat"
    for length in range(len(b"#!AER-DAT"), len(whole)):
        path.write_bytes(whole[:length])
        n, torn = divmod(length - begin, 8)
        if length < begin and not whole[:length].endswith(b"\n"):
            with pytest.raises(InputError, match=r"header|AEDAT , |does not begin"):
                read(path)
        elif n > 0:
            recording, said = read(path, sensor_size=(180, 240))
            assert recording.events.tolist() == events[:n]
            assert len(said) == bool(torn) and all("is cut off" in text for text in said)
            if torn:
                with pytest.raises(InputError, match=r"is cut off: .* without --strict"):
                    read(path, sensor_size=(180, 240), strict=True)
    assert len(read_recording(path).events) == len(events) - 1
