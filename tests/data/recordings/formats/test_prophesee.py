"""Prophesee's files: real ones to the last event, and written ones against a plain decoder."""

import struct
import warnings

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import check_events, read_events, read_recording
from sj_ottt.data.recordings.formats import common
from sj_ottt.data.recordings.formats.prophesee.evt3 import Evt3
from sj_ottt.data.recordings.readers import open_recording
from sj_ottt.data.recordings.source import ReadOptions
from tests import recording_files as files
from tests.data.recordings.damage import cut_everywhere
from tests.data.recordings.formats import prophesee_files as prophesee

ROWS = prophesee.rows_of_events()
SCATTERED = [tuple(event) for event in files.sample_events(200).tolist()]
FORMATS = {
    "dat": (files.dat, SCATTERED),
    "dat1": (prophesee.dat1, SCATTERED),
    "evt2": (files.evt2, SCATTERED),
    "evt21": (prophesee.evt21, ROWS),
    "evt21_swapped": (lambda events: prophesee.evt21(events, swapped=True), ROWS),
    "evt3": (prophesee.evt3, ROWS),
    "evt3_scattered": (files.evt3, SCATTERED),
}


def save(folder, data, name="a.raw"):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "n", "first", "last", "size", "off"),
    [
        ("real/evt3_hd_trigger.raw", 82_469, 14_224_870, 15_476_187, (720, 1280), 41_030),
        ("real/evt3_vga_silkyev.raw", 130_173, 7_139_845, 8_196_365, (480, 640), 77_057),
        ("real/evt2_gen3_vga.raw", 223_100, 913_716_224, 913_746_609, (480, 640), 146_504),
        ("wrong/dat_version1.dat", 6_474, 0, 169_941, (240, 304), 3_009),
    ],
)
def test_real_recordings(camera_files, name, n, first, last, size, off):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        events, stated = read_recording(camera_files / name, ReadOptions(strict=True))
    assert (len(events), stated) == (n, size)
    assert (events["t"][0], events["t"][-1]) == (first, last)
    assert np.bincount(events["p"]).tolist() == [off, n - off]
    check_events(events, name, size)
    if name.endswith("1.dat"):
        assert (events["x"].min(), events["x"].max()) == (14, 303)
        assert (events["y"].min(), events["y"].max()) == (8, 239)


@pytest.mark.parametrize("name", FORMATS)
def test_by_blocks_of_any_size(name, tmp_path, monkeypatch):
    write, events = FORMATS[name]
    path = save(tmp_path, write(events))
    assert read_events(path).tolist() == events
    for block, piece in ((7, 1 << 18), (1 << 20, 24), (10, 8)):
        monkeypatch.setattr(common, "BLOCK", block)
        monkeypatch.setattr(common, "_PIECE_BYTES", piece)
        source = open_recording(path)
        chunks = list(source.chunks)
        assert len(chunks) > 2
        assert np.concatenate(chunks).tolist() == events
        assert source.expected == pytest.approx(len(events), rel=0.1)


@pytest.mark.parametrize("name", FORMATS)
def test_cut_off_anywhere(name, tmp_path):
    """What is whole is read, with a warning where a word or event is torn."""
    write, events = FORMATS[name]
    events = events[:12]
    data = write(events)
    ending = ".dat" if name.startswith("dat") else ".raw"
    found = cut_everywhere(data, ending, tmp_path)
    empty = len(write([]))
    size = {"dat": 8, "dat1": 8, "evt2": 4, "evt3": 2, "evt3_scattered": 2}.get(name, 8)
    counts = [found[length] for length in range(empty, len(data))]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] <= len(events)
    for length in range(len(data) - 9, len(data)):
        path = save(tmp_path, data[:length], "cut" + ending)
        if torn := (length - empty) % size:
            with pytest.warns(UserWarning, match=f"is cut off: {torn} bytes are left behind"):
                read_events(path)
            with pytest.raises(InputError, match="is cut off"):
                read_events(path, ReadOptions(strict=True))


@pytest.mark.parametrize("seed", range(2))
def test_evt3_is_what_a_plain_decoder_says(seed):
    """Words of all types in any order, decoded in pieces of any length."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 14, 15],
        3000,
        p=[0.16, 0.02, 0.2, 0.08, 0.16, 0.1, 0.16, 0.02, 0.04, 0.02, 0.02, 0.02],
    )
    words = kinds << 12 | rng.integers(0, 4096, 3000)
    # The clock goes on by up to a third of a turn.
    high = np.flatnonzero(kinds == 8)
    words[high] = 0x8000 | np.cumsum(rng.integers(0, 1365, len(high))) & 0xFFF
    expected = prophesee.plain_evt3(words.tolist())
    assert len(expected) > 3000 and expected[-1][0] > 3 << 24
    for length in (1, 7, 500, 3000):
        decoder = Evt3()
        pieces = [words[i : i + length].astype("<u2") for i in range(0, 3000, length)]
        assert np.concatenate([decoder(piece) for piece in pieces]).tolist() == expected, length


def test_evt3_is_what_another_decoder_says(tmp_path):
    evt3 = pytest.importorskip("evt3")
    for events in (ROWS, SCATTERED):
        words = prophesee.evt3_words(events)
        other = evt3.decode_bytes(np.array(words, "<u2").tobytes())
        ours = read_events(save(tmp_path, prophesee.of_words(words)))
        assert all(np.array_equal(ours[name], getattr(other, name)) for name in "txyp")


@pytest.mark.parametrize(
    ("highs", "turns"),
    [
        ([4000, 4095, 0, 1, 4095, 0, 1], [0, 0, 1, 1, 0, 1, 1]),  # late at the turn
        ([4095, 0, 4095, 0, 4095, 0], [0, 1, 0, 1, 0, 1]),
        ([10, 3000, 11, 12], [0, 0, 0, 0]),  # one damaged
        ([3000, 10, 3001, 3002], [0, 1, 0, 0]),
        ([10, 3000, 3001, 4000, 5], [0, 0, 0, 0, 1]),  # a pause of 12 s
        ([4000, 500, 501, 3000], [0, 1, 1, 1]),
    ],
)
def test_turns_of_evt3s_clock(highs, turns):
    words = [word for high in highs for word in (0x8000 | high, 0x6000, 0x0001, 0x2001)]
    expected = [(turn << 24) + (high << 12) for high, turn in zip(highs, turns, strict=True)]
    for length in (4, 8, len(words)):
        decoder = Evt3()
        pieces = [np.array(words[i : i + length], "<u2") for i in range(0, len(words), length)]
        assert np.concatenate([decoder(piece) for piece in pieces])["t"].tolist() == expected


def test_evt3_columns_that_run_off_are_no_others(tmp_path):
    """A base that is missing, and words of 12 pixels without end."""
    clock = [0x8000, 0x6005, 0x0003]
    assert len(read_events(save(tmp_path, prophesee.of_words([*clock, 0x4FFF, 0x5001])))) == 0
    endless = [*clock, 0x3000, *[0x4001] * 6000]
    events = read_events(save(tmp_path, prophesee.of_words(endless)))
    assert (np.diff(events["x"].astype(int)) >= 0).all()
    with pytest.raises(InputError, match="x=1284, y=3 lies outside"):
        check_events(events, "a", (720, 1280))


def test_events_before_the_first_time_and_other_words_are_left_out(tmp_path):
    early = struct.pack("<I", 1 << 28 | 5 << 11 | 6)
    data = files.evt2([(640, 1, 2, 1)], first=early) + struct.pack("<I", 10 << 28)
    assert read_events(save(tmp_path, data)).tolist() == [(640, 1, 2, 1)]
    words = [0x0007, 0x2001, 0x8001, 0xA000, 0x2002, 0x6003, 0x1009, 0x2004, 0x0008, 0x2805]
    events = read_events(save(tmp_path, prophesee.of_words(words)))
    assert events.tolist() == [(4096, 2, 7, 0), (4099, 5, 8, 1)]


def test_evt21_in_either_order_of_halves(tmp_path):
    plain = save(tmp_path, prophesee.evt21(ROWS, stated=False), "plain.raw")
    assert read_events(plain, ReadOptions(strict=True)).tolist() == ROWS
    swapped = save(tmp_path, prophesee.evt21(ROWS, swapped=True, stated=False), "swapped.raw")
    with pytest.warns(UserWarning, match=r"swapped\.raw: its header does not say in which order"):
        assert read_events(swapped).tolist() == ROWS
    with pytest.raises(InputError, match="endianness=legacy to the header's line format"):
        read_events(swapped, ReadOptions(strict=True))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("format EVT3;endianness=big", r"encoding EVT3;endianness=big, of which"),
        ("format HISTO3D;height=320;width=320", r"encoding HISTO3D;height=320;width=320, of"),
        ("evt 4.0", "encoding EVT4, of which"),
        ("system_ID 64", "encoding that its header does not name, of which"),
        ("system_ID 12345", "encoding that its header does not name, of which"),
    ],
)
def test_other_encodings_are_refused(lines, words, tmp_path):
    with pytest.raises(InputError, match=words):
        read_events(save(tmp_path, f"% {lines}\n% end\n".encode() + bytes(8)))


@pytest.mark.parametrize("encoding", ["EVT2", "EVT21;endianness=little", "EVT3"])
def test_words_of_another_encoding_are_refused(encoding, tmp_path):
    noise = np.random.default_rng(0).bytes(4096)
    with pytest.raises(InputError, match=r"is not EVT\d+, as its header says: \d+% of its first"):
        read_events(save(tmp_path, prophesee.header(encoding) + noise))


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        (["geometry 640x480"], (480, 640)),
        (["geometry 1280x720", "system_ID 21"], (720, 1280)),
        (["geometry 0x0", "system_ID 21"], (480, 640)),
        (["Width 20", "Height 10", "system_ID 49"], (10, 20)),
        (["system_ID 20"], (480, 640)),
        (["system_ID 151"], (480, 640)),  # 23, behind a bridge
        (["system_ID 40"], (480, 640)),
        (["system_ID 26"], (720, 1280)),
        (["system_ID 48"], (720, 1280)),
        (["system_ID 49"], (720, 1280)),
        (["system_ID 52"], (480, 640)),
        (["system_ID 64"], (320, 320)),
        (["plugin_name hal_plugin_gen3_fx3"], (480, 640)),
        (["plugin_name hal_plugin_gen31_evk3"], (480, 640)),
        (["plugin_name hal_plugin_gen41_evk2"], (720, 1280)),
        (["plugin_name hal_plugin_imx636_evk3"], (720, 1280)),
        (["plugin_name hal_plugin_imx647_evk3"], (480, 640)),
        (["plugin_name hal_plugin_genx320_evk3"], (320, 320)),
        (["sensor_generation 3.1"], (480, 640)),
        (["sensor_generation 4.1"], (720, 1280)),
        (["sensor_generation 4.2"], None),  # HD as well as VGA
        (["plugin_name hal_plugin_prophesee"], None),
        (["system_ID 8"], None),
        (["system_ID ²"], None),
    ],
)
def test_the_sensor_by_the_header(lines, size, tmp_path):
    body = files.evt2([(70, 1, 2, 1)]).partition(b"% end\n")[2]
    recording = read_recording(save(tmp_path, prophesee.header("EVT2", *lines) + body))
    assert recording.sensor_size == size and recording.events.tolist() == [(70, 1, 2, 1)]


def test_the_encoding_by_the_header(tmp_path):
    evt2 = files.evt2([(70, 1, 2, 1)]).partition(b"% end\n")[2]
    evt3 = files.evt3([(70, 1, 2, 1)]).partition(b"% end\n")[2]
    evt21 = prophesee.evt21([(70, 1, 2, 1)]).partition(b"% end\n")[2]
    for line, body in (
        ("evt 2.0", evt2),
        ("evt 3.0", evt3),
        ("evt 2.1", evt21),
        ("Format EVT2.1", evt21),
        ("format EVT3;height=10;width=20", evt3),
        ("system_ID 21", evt2),
        ("system_ID 40", evt3),
        ("system_ID 49", evt3),
    ):
        for end in ("% end\n", "% end\r\n", ""):
            data = f"% Date 2020-09-25\n% {line}\n{end}".encode() + body
            assert read_events(save(tmp_path, data)).tolist() == [(70, 1, 2, 1)], (line, end)


def test_a_header_ends_where_bytes_begin_that_look_like_one(tmp_path):
    head = b"% evt 2.0\n% system_ID 21\n"
    body = struct.pack("<I", 8 << 28 | 1) + struct.pack("<I", 1 << 28 | 6 << 22 | 5 << 11 | 6)
    looks = struct.pack("<I", 0x0001_2025) + b"\n\n\n\n"
    assert looks.startswith(b"% ")
    events = read_events(save(tmp_path, head + looks + body))
    assert events.tolist() == [(70, 5, 6, 1)]


def test_versions_of_dat(tmp_path):
    events = [(10, 303, 239, 1), (20, 14, 8, 0)]
    size = "% Width 304\n% Height 240\n"
    unstated = save(tmp_path, prophesee.dat1(events, size), "a.dat")
    with pytest.warns(UserWarning, match=r"a\.dat: its header states no version, .* version 1"):
        assert read_recording(unstated).events.tolist() == events
    with pytest.raises(InputError, match="add the line % Version 2"):
        read_events(unstated, ReadOptions(strict=True))
    path = save(tmp_path, files.dat(events).replace(b"% Version 2\n", b""), "b.dat")
    assert read_events(path, ReadOptions(strict=True)).tolist() == events
    path = save(tmp_path, prophesee.dat1(events, "% Version 3\n"), "c.dat")
    with pytest.raises(InputError, match="DAT of version 3, of which only 1 and 2 are known"):
        read_events(path)


def test_dat_without_events_of_contrast(tmp_path):
    data = files.dat([(1, 2, 3, 1)]).replace(bytes([12, 8]), bytes([14, 8]))
    with pytest.raises(InputError, match="type 0 or 12"):
        read_events(save(tmp_path, data, "a.dat"))
    with pytest.raises(InputError, match="names no encoding"):
        read_events(save(tmp_path, b"% Date 2020\n" + bytes(8)))
