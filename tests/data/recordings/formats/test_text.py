"""Text: what columns are by name or by what they hold, units of time, pieces, archives, cuts."""

import gzip
import tracemalloc
import warnings

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import EVENT_DTYPE, ReadOptions, open_recording, read_events, read_recording
from sj_ottt.data.recordings.formats.text import TextStream, files, parse
from sj_ottt.data.recordings.source import gather
from tests.data.recordings.formats.text_files import in_zip, lines
from tests.inference.recordings import as_text, band
from tests.recording_files import sample_events

EVENTS = sample_events(150)


def save(folder, data, name="a.csv"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read(path, **options):
    """Read without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_recording(path, ReadOptions(**options))


@pytest.mark.parametrize(
    ("name", "n", "first", "last", "on", "size"),
    [
        ("real/mueggler_slider_depth_chunk.txt", 40_000, 3811, 141_413, 16_344, None),
        ("wrong/xytp_prophesee.csv", 320, 2458, 2808, 181, None),
        ("wrong/np_savetxt.txt", 1001, 0, 25_262, 500, None),
        ("wrong/pandas_index.csv", 1000, 0, 25_252, 499, None),
        ("wrong/timestamps_us_head.csv", 1000, 0, 25_252, 499, None),
        ("wrong/metavision_evt3_raw_file_decoder.csv", 1000, 0, 25_252, 499, (260, 346)),
    ],
)
def test_real_files(camera_files, name, n, first, last, on, size):
    events, stated = read(camera_files / name, strict=True)
    assert (len(events), events["t"][0], events["t"][-1]) == (n, first, last)
    assert events["p"].sum() == on and stated == size
    if size or n in (1000, 1001):
        truth = np.load(camera_files / "wrong/v2e_truth.npy")[:n]
        assert all(np.array_equal(events[k] - events[k][0], truth[k] - truth[k][0]) for k in "txyp")
        assert all(np.array_equal(events[k], truth[k]) for k in "xyp")
    elif n == 320:
        assert np.ptp(events["x"]) == 1243 - 175 and (events["y"].min(), events["y"].max()) == (
            19,
            593,
        )
    else:
        assert (events["x"].max(), events["y"].max()) == (239, 179)


HEADS = {
    "t,x,y,p": "{t},{x},{y},{p}",
    "timestamp_us,x,y,polarity": "{t},{x},{y},{p}",
    "t_us [us] x y p": "{t} {x} {y} {p}",
    "Time (us);X;Y;Pol": "{t};{x};{y};{p}",
    "t,x@120,y@100,on": "{t},{x},{y},{p}",
    '"p","y","x","t"': "{p},{y},{x},{t}",
    "t\tx_pos\ty_pos\tOn/Off": "{t}\t{x}\t{y}\t{word}",
    "timestamp,x,y,polarity": "{t},{x},{y},{truth}",
    "\ufeffts,xs,ys,ps": "{t},{x},{y},{p}\r",
    "timestamp_ns,x,y,p": "{t}000,{x},{y},{p}",
    "t_s,x,y,p": "{s:.6f},{x},{y},{p}",
    "t_ms,x,y,p": "{ms:.3f},{x},{y},{p}",
    ",t,x,y,p": "{i},{t},{x},{y},{p}",
    '"t" "x" "y" "p"': '"{i}" {t} {x} {y} {p}',
    "frame,t,x,y,p,label": "7,{t},{x},{y},{p},a cat",
    "# t x y p": "{t} {x} {y} {p}",
    "#p,t,x,y": "{p},{t},{x},{y}",
    "# columns: x y t p": "{x} {y} {t} {p}",
    "%geometry:120,100": "{x},{y},{p},{t}",
    "# width: 120, height: 100": "{t} {x} {y} {p}",
    "# width height\n120 100": "{t} {x} {y} {p}",
    "# height width\n100 120": "{t} {x} {y} {p}",
    "120 100": "{s:.9f} {x} {y} {p}",
    "": "{t} {x} {y} {p} ",
    "# note\n\n": "{x},{y},{t},{p},",
    "\n": "{p} {t} {x} {y}",
    "# -": "{s:.7f}, {x}, {y}, {p}",
    "# e": "{t:.18e} {x:.18e} {y:.18e} {p:.18e}",
    "# .": "{t}.0\t{x}.0\t{y}.0\t{p}.0",
    "# i": "{i},{t},{x},{y},{p}",
    "# +-": "{t} {x} {y} {sign}",
    "# True": "{t} {x} {y} {truth}",
}


@pytest.mark.parametrize("head", HEADS)
def test_tables_as_tools_write_them(head, tmp_path, monkeypatch):
    rows = []
    for i, (t, x, y, p) in enumerate(EVENTS.tolist()):
        words = {"word": ("Off", "On")[p], "truth": bool(p), "sign": 2 * p - 1}
        rows.append(
            HEADS[head].format(t=t, x=x, y=y, p=p, i=i, s=t / 1e6, ms=t / 1e3, **words) + "\n"
        )
    data = (head + "\n" * bool(head) + "".join(rows)).encode()
    size = (100, 120) if "120" in head else None
    path = save(tmp_path, data)
    for piece in (1 << 21, 300):
        monkeypatch.setattr(files, "_PIECE", piece)
        events, stated = read(path, strict=True)
        assert np.array_equal(events, EVENTS) and stated == size
    # As a stream, in pieces of any size: the same.
    for piece in (1, 50, 10_000):
        stream = TextStream("x", ReadOptions(strict=True))
        parts = [stream.feed(data[i : i + piece]) for i in range(0, len(data), piece)]
        parts.append(stream.feed(b"", last=True))
        assert np.array_equal(np.concatenate(parts), EVENTS) and stream.sensor_size == size


def test_seconds_need_a_fraction_and_nanoseconds_are_said(tmp_path):
    whole = save(tmp_path, "0.0 1 2 1\n82.0 3 4 0\n106.0 2 1 0\n")
    assert read(whole).events["t"].tolist() == [0, 82, 106]
    assert read(whole, time_unit="s").events["t"].tolist() == [0, 82_000_000, 106_000_000]
    epoch = save(tmp_path, lines(EVENTS, "1600000000{t:06}000 {x} {y} {p}"))
    with pytest.warns(UserWarning, match=r"taken as nanoseconds; name the column t_us, .*--time-"):
        found = read_events(epoch)
    assert np.array_equal(found["t"], EVENTS["t"] + 16 * 10**14)
    assert np.array_equal(read(epoch, time_unit="ns").events, found)
    with pytest.raises(InputError, match=r"--strict refuses"):
        read_events(epoch, ReadOptions(strict=True))
    slow = sample_events(2000)
    path = save(tmp_path, lines(slow, "{t}000 {x} {y} {p}"))
    with pytest.warns(UserWarning, match=r"taken as µs, though the first 2000 events then last"):
        assert np.array_equal(read_events(path)["t"], slow["t"] * 1000)
    for text in ("1e12 1 2 1\n1000000000000.5 1 2 1\n",):
        with pytest.raises(InputError, match="with fractions: name the column t_us"):
            read_events(save(tmp_path, text))


def test_what_contradicts_the_first_lines_is_refused_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE", 200)
    head = "# note\nt,x,y,p\n\n" + lines(EVENTS, "{t},{x},{y},{p}")
    for line, words in (
        ("50000.5,1,2,1", r"line 154: time 50000\.5 has a fraction, .* taken as us"),
        ("50000,1.5,2,1", r"line 154: column x holds fractions \(1\.5\)"),
        ("50000,1,2,-1", r"line 154: polarity -1, but darker events before it have 0"),
        ("50000,1,2,cat", r"line 154: not four numbers \('cat' is no number\)"),
        ("50000,1,2,nan", r"line 154: p nan: a number beyond all bounds"),
        ("50000,1,2,1_0", r"line 154: not four numbers"),
        ("50000,1,2", r"line 154: not four numbers \(3 cells, not 4\)"),
        ("50000,1,2,1,7", r"line 154: not four numbers \(5 cells, not 4\)"),
        ("90000000000000000000,1,2,1", r"line 154: time .* beyond all bounds"),
        ("50000,40000,2,1", r"'x' reaches"),
    ):
        text = f"{head}{line}\n{line}\n"
        with pytest.raises(InputError, match=words):
            read_events(save(tmp_path, text))
        stream = TextStream("x")
        with pytest.raises(InputError, match=words):
            [stream.feed(text[i : i + 7].encode()) for i in range(0, len(text), 7)]


def test_a_stream_keeps_to_its_first_lines():
    stream = TextStream("x")
    text = lines(EVENTS, "{t} {x} {y} {p}").encode()
    assert len(stream.feed(text)) == 150
    with pytest.raises(InputError, match=r"x: line 151: time 51000\.5 has a fraction"):
        stream.feed(b"51000.5 1 2 1\n")
    # Whole times in the notation of real ones may be seconds: they wait for a fraction.
    stream = TextStream("x")
    assert len(stream.feed(b"t x y p\n" + b"0.0 7 7 1\n" * 127)) == 0
    assert stream.feed(b"0.5 7 7 0\n")["t"].tolist() == [0] * 127 + [500_000]
    stream = TextStream("x")
    assert len(stream.feed(b"t x y p\n" + b"3.0 7 7 1\n" * 1000)) == 1000
    # A header that says all waits for nothing.
    assert len(TextStream("x").feed(b"t_us x y p\n1 7 7 1\n")) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("t,x,y\n1,2,3\n", r"line 1 \('t,x,y'\) names no column p; name the columns"),
        ("t,time_us,x,y,p\n1,1,2,3,1\n", None),
        ("time,ts,x,y,p\n1,1,2,3,1\n", "'time' and 'ts' may both be t"),
        ("1,2,3\n", "has 3 cells, not t, x, y and p; name the columns"),
        ("1,2,3,4,5,6\n", "has 6 cells"),
        ("t,x,y,p\n1,2,3\n", "has 3 cells for 4 names"),
        ("0,5;1;2;1\n1,5;1;2;1\n", "decimal commas; write decimal points"),
        ("0,5 1 2 1\n1,5 1 2 1\n", "decimal commas"),
        ("0,003811,1,2,1\n", "decimal commas"),
        ("t;x;y;p\n0,5;1;2;1\n", None),
        ("5 7 9 8\n4 6 8 9\n", "none of the columns holds polarities"),
        ("5 7 0 8\n4 6 1 7\n3 5 0 6\n", "none of the columns holds times, which never fall"),
        ("1.5 2.5 3 1\n", "several columns hold fractions"),
        ("hello\n", "does not begin as a file of the format text"),
        ("\xff\xfet\0", "does not begin as"),
        ("# note\n1 2\n3 4\n", "has 2 cells"),
    ],
)
def test_what_cannot_be_told_is_refused(text, words, tmp_path):
    path = save(tmp_path, text)
    if words is None:
        words = "not four numbers" if ";" in text else None
    if words is None:
        assert read(path).events.tolist() == [(1, 2, 3, 1)]
        return
    with pytest.raises(InputError, match=words):
        read_events(path)


def test_utf16_and_endless_lines_are_refused(tmp_path):
    with pytest.raises(InputError, match="UTF-16; save it as UTF-8"):
        read_events(save(tmp_path, "t,x,y,p\n1,2,3,1\n".encode("utf-16")))
    with pytest.raises(InputError, match="a line of more than 65536 bytes"):
        read_events(save(tmp_path, b"t,x,y,p\n1,2,3,1\n" + b"1" * 3_000_000))
    with pytest.raises(InputError, match="no event in its first 10000 lines"):
        read_events(save(tmp_path, b"t,x,y,p\n" + b"\n" * 20_000))


def test_polarity_and_time_among_alike_columns(tmp_path):
    """A second column in {0, 1}, and others that never fall."""
    events = sample_events(300)
    events["y"] %= 2
    with pytest.raises(InputError, match="several columns may be the polarity"):
        read_events(save(tmp_path, lines(events, "{t} {x} {y} {p}")))
    assert np.array_equal(
        read(save(tmp_path, "t x y p\n" + lines(events, "{t} {x} {y} {p}"))).events, events
    )
    events["y"] = 1  # one row only: what never changes is no polarity where another column does
    assert np.array_equal(read(save(tmp_path, lines(events, "{t} {x} {y} {p}"))).events, events)
    events["x"] = np.arange(300) // 10  # a bar that moves; and times from epoch on
    events["t"] += 10**15
    assert np.array_equal(read(save(tmp_path, lines(events, "{x} {y} {p} {t}"))).events, events)
    late = events.copy()
    late["t"][200:202] -= 400
    with pytest.warns(UserWarning, match="ran back by up to"):
        found = read_events(save(tmp_path, lines(late, "{y} {x} {t} {p}").replace("\n", "\r\n")))
    assert sorted(found["t"].tolist()) == sorted(late["t"].tolist())


def test_a_fifth_column_is_a_camera(tmp_path, monkeypatch):
    rows = [f"{t} {x} {y} {p} {i % 2}" for i, (t, x, y, p) in enumerate(EVENTS.tolist())]
    two = "\n".join(rows) + "\n"
    monkeypatch.setattr(files, "_PIECE", 300)
    for text in ("t x y p camera\n" + two,):
        path = save(tmp_path, text)
        with pytest.raises(InputError, match="of camera 1, those before it of 0; choose one"):
            read_events(path)
        assert np.array_equal(read(path, camera="1").events, EVENTS[1::2])
        with pytest.raises(InputError, match="give a camera's number"):
            read_events(path, ReadOptions(camera="left"))
    one = save(tmp_path, lines(EVENTS, "{t} {x} {y} {p} 3"))
    with pytest.warns(UserWarning, match="the fifth of five columns is taken for a camera's"):
        assert np.array_equal(read_events(one), EVENTS)
    assert np.array_equal(read(one, camera="3").events, EVENTS)
    with pytest.raises(InputError, match="five columns without names may mean several things"):
        read_events(save(tmp_path, lines(EVENTS, "{t} {x} {y} {p} {x}.5")))


def test_zipped_text(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE", 300)
    data = ("%geometry:120,100\n" + lines(EVENTS, "{s:.9f} {x} {y} {p}")).encode()
    for name, packed in (
        ("a.gz", gzip.compress(data)),
        ("a.zip", in_zip(("a/only.csv", data))),
        ("b.zip", in_zip(("calib.txt", b"1 2"), ("images/1.png", b"x"), ("s/events.txt", data))),
    ):
        events, size = read(save(tmp_path, packed, name))
        assert np.array_equal(events, EVENTS) and size == (100, 120)
    for name, packed, words in (
        (
            "a.zip",
            in_zip(("a.txt", data), ("b.txt", data)),
            r"without one text of events \(it holds a",
        ),
        ("a.zip", in_zip(), "holds nothing"),
        ("a.zip", in_zip(("events.txt", b"\0\1\2")), "holds no text of events"),
        ("a.gz", gzip.compress(b"\x89HDF\r\n\x1a\n"), "holds no text of events; unpack it"),
        ("a.zip", in_zip(("events.txt", data))[:-30], "truncated or damaged archive"),
    ):
        with pytest.raises(InputError, match=words):
            read_events(save(tmp_path, packed, name))


def test_a_packed_bomb_stays_small(tmp_path):
    event = b"t,x,y,p\n1,2,3,1\n"
    bomb = save(tmp_path, gzip.compress(event + b"\n" * 20_000_000, 1), "a.gz")
    tracemalloc.start()
    assert sum(map(len, open_recording(bomb).chunks)) == 1
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


@pytest.mark.parametrize("form", ["{t},{x},{y},{p}", "{x} {y} {p} {t}", "{s:.9f} {x} {y} {sign}"])
def test_cut_off_everywhere(form, tmp_path):
    events = EVENTS[:12].copy()
    events["t"] += 10_000  # as many digits each, so that a cut one is smaller than the one before
    rows = [
        form.format(t=t, x=x, y=y, p=p, s=t / 1e6, sign=2 * p - 1) + "\n"
        for t, x, y, p in events.tolist()
    ]
    data = "".join(rows).encode()
    ends = np.cumsum([len(row) for row in rows])
    for length in range(3 * ends[0], len(data) + 1):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = read_events(save(tmp_path, data[:length]))
        whole = int((ends <= length).sum())
        assert np.array_equal(found, events[: len(found)]) and len(found) - whole in (0, 1)
        # What is left of the line is an event, or that it is none is said.
        cut = [warning for warning in said if "is cut off" in str(warning.message)]
        assert len(cut) == (len(found) == whole and length not in ends), length
    half = save(tmp_path, data[: int(ends[-1]) - 6], "half.txt")
    with pytest.warns(UserWarning, match=r"half\.txt: is cut off: (its last line|the time in its)"):
        assert np.array_equal(read_events(half), events[:-1])
    with pytest.raises(InputError, match="read what is intact without --strict"):
        read_events(half, ReadOptions(strict=True))


def test_a_zip_whose_names_are_damaged_is_refused(tmp_path):
    data = in_zip(("events.txt", lines(EVENTS, "{t},{x},{y},{p}").encode()))
    # The directory's entry says that names are UTF-8, which these are not.
    at = data.rindex(b"PK\1\2")
    name = data.rindex(b"events.txt")
    data = bytearray(data)
    data[at + 9] |= 8
    data[name] = 0x85
    with pytest.raises(InputError, match="truncated or damaged archive"):
        read_events(save(tmp_path, bytes(data), "a.zip"))


def test_a_gzip_that_ends_early(tmp_path):
    data = gzip.compress(lines(EVENTS, "{t},{x},{y},{p}").encode(), mtime=0)
    counts = set()
    for length in range(40, len(data) - 8, 60):
        path = save(tmp_path, data[:length], "a.gz")
        with pytest.warns(UserWarning, match=r"a\.gz: is cut off: the compressed data end early"):
            events = read_events(path)
        assert np.array_equal(events[:-1], EVENTS[: max(len(events) - 1, 0)])
        counts.add(len(events))
    assert len(counts) > 3


def test_plain_numbers_are_those_of_python(monkeypatch):
    """The fast path against `float`, number by number; and that it was taken."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(parse, "_real", lambda *args: pytest.fail("not parsed as plain numbers"))
    for digits, points in ((1, 0), (9, 0), (18, 0), (3, 4), (9, 6), (1, 9), (6, 1)):
        cells = [
            ("-" if rng.random() < 0.3 else "")
            + "".join(map(str, rng.integers(0, 10, rng.integers(1, digits + 1))))
            + ("." + "".join(map(str, rng.integers(0, 10, points))) if points else "")
            for _ in range(400)
        ]
        rows = [" ".join(cells[i : i + 4]) for i in range(0, 400, 4)]
        columns = parse.parse(("\n".join(rows) + "\n").encode(), 4, [0, 3], None)
        kind = float if points else int
        assert columns[0].tolist() == [kind(cell) for cell in cells[::4]]
        assert columns[1].tolist() == [kind(cell) for cell in cells[3::4]]


def test_pieces_of_any_size_and_no_events():
    events = band(1, 30)
    for head in (b"", b"# a comment\n", b"t x y p\n", b"16 16\n"):
        text = head + as_text(events).replace(b",", b" ")
        for piece in (1, 3, 50, 10_000):
            stream = TextStream("x")
            parts = [stream.feed(text[i : i + piece]) for i in range(0, len(text), piece)]
            parts.append(stream.feed(b"", last=True))
            assert np.array_equal(np.concatenate(parts), events), (head, piece)
            assert stream.sensor_size == ((16, 16) if b"16" in head else None)
    empty = TextStream("x")
    assert len(gather([empty.feed(b"t\tx\ty\tp\n"), empty.feed(b"", last=True)])) == 0
    assert empty.feed(b"", last=True).dtype == EVENT_DTYPE
