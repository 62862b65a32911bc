"""`sj-ottt data view`: the command, and its page in a real browser."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from sj_ottt.cli.data_view import page
from sj_ottt.cli.main import main
from sj_ottt.data import ReadOptions, find_recordings, read_labels, write_events
from sj_ottt.data.prepare.view import view_recording
from sj_ottt.data.recordings.label_table import parse_duration
from sj_ottt.errors import InputError
from tests.browser import browser, find_browser
from tests.data.prepare.test_view import by_loop, moving

SIZE = ReadOptions(sensor_size=(40, 60))
MS = 1000


@pytest.fixture(scope="module")
def chromium():
    if (program := find_browser()) is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with browser(program) as started:
        yield started


@pytest.fixture(scope="module")
def events():
    return moving()


@pytest.fixture(scope="module")
def recording(tmp_path_factory, events):
    path = tmp_path_factory.mktemp("monday") / "one.npz"
    write_events(path, events)
    return path


def paged(path: Path, out: Path, **kwargs) -> Path:
    """Write the page of a recording."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out.write_text(page(view_recording(path, SIZE, **kwargs), path), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def whole(recording):
    return paged(recording, recording.with_name("one.html"))


@pytest.fixture
def opened(chromium, whole):
    """The page of the whole recording, newly opened; nothing may have gone wrong at its end."""
    chromium.errors.clear()
    chromium.requested.clear()
    chromium.open(whole)
    yield chromium
    assert chromium.errors == []
    assert [u for u in chromium.requested if not u.startswith(("file:", "blob:"))] == []


def test_the_command(recording, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = ("--sensor-size", "40", "60")
    assert main(["data", "view", str(recording), *size]) == 0
    out = capsys.readouterr().out
    assert "recording 3,000 events in 0.305 s" in out and "40 x 60 pixels" in out
    assert "page      data_info/one.html (" in out
    html = (tmp_path / "data_info" / "one.html").read_text(encoding="utf-8")
    assert "http:" not in html and "https:" not in html and "{{" not in html
    assert main(["data", "info", str(recording), *size, "--out", "pictures"]) == 0
    assert f"view      sj-ottt data view {recording}\n" in capsys.readouterr().out
    part = ("--start", "100ms", "--length", "0.05s", "--out", "part.html")
    assert main(["data", "view", str(recording), *size, *part]) == 0
    assert "events in 0.050 s" in capsys.readouterr().out
    link = tmp_path / "left" / "a.npz"  # is named by its own folder in the table of labels
    link.parent.mkdir()
    link.symlink_to(recording)
    assert main(["data", "view", str(link), *size, "--out", "link.html"]) == 0
    assert '"file":"left/a.npz"' in (tmp_path / "link.html").read_text(encoding="utf-8")
    capsys.readouterr()
    for wrong, words in (
        (("--out", "page.png"), "--out page.png: give a file whose name ends in .html"),
        (("--start", "100"), "time '100' has no unit"),
        (("--start", "9s"), "no event lies from 9000000 µs"),
        (("--length", "0s"), "give a start from 0 on, and a length"),
    ):
        assert main(["data", "view", str(recording), *size, *wrong]) == 2
        assert words in capsys.readouterr().err


def counts_in(browser, first: int, n: int, pool: int = 1) -> dict:
    """The page's counts by (row, column, polarity)."""
    flat = browser.evaluate(f"Array.from(frameCounts({first}, {n}, {pool}))")
    wide = browser.evaluate(f"Math.ceil(columns / {pool})")
    return {(i // 2 // wide, i // 2 % wide, i % 2): count for i, count in enumerate(flat) if count}


def expected(events, start: int, end: int, factor: int) -> dict:
    t = events["t"] - events["t"][0]
    part = events[(t >= start) & (t < end)]
    return {key[1:]: n for key, n in by_loop(part, 0, 1 << 60, factor).items()}


def test_frames_are_those_of_a_plain_loop(opened, events):
    frames = opened.evaluate("data.frames")
    for first, n in ((0, 1), (0, frames), (frames - 1, 1), (777, 256), (frames // 2, 64)):
        for pool in (1, 3):
            wanted = expected(events, first * 125, (first + n) * 125, pool)
            assert counts_in(opened, first, n, pool) == wanted
    rates = [opened.evaluate(f"summed[{p}].at(-1)") for p in (0, 1)]
    assert rates == [np.sum(events["p"] == p) for p in (0, 1)]
    facts = opened.evaluate("$('facts').innerText")
    assert "40 \u00d7 60" in facts and "3,000" in facts and "304.9 ms" in facts


def test_long_recordings_are_shown_coarsely_and_say_so(chromium, recording, events, tmp_path):
    chromium.open(paged(recording, tmp_path / "coarse.html", most=2000))
    step, note = chromium.evaluate("step"), chromium.evaluate("$('note').innerText")
    assert step > 125 and f"frames last {step // MS} ms at least" in note
    assert "one in" not in note
    assert counts_in(chromium, 2, 3) == expected(events, 2 * step, 5 * step, 1)
    chromium.open(paged(recording, tmp_path / "coarse.html", most=100))
    share = chromium.evaluate("data.share")
    assert share > 1 and f"one in {share} events" in chromium.evaluate("$('note').innerText")
    assert 0 < sum(counts_in(chromium, 0, 1000).values()) < len(events) / 2
    # Rates and totals are of all events, drawn or not.
    assert chromium.evaluate("eventsIn(0, data.frames)") == len(events)


def test_a_part_keeps_the_recordings_times(chromium, recording, events, tmp_path):
    part = paged(recording, tmp_path / "part.html", start=100 * MS, length=60 * MS)
    chromium.open(part)
    assert "0.1 s to 0.16 s of the recording" in chromium.evaluate("$('note').innerText")
    assert counts_in(chromium, 8, 80) == expected(events, 101 * MS, 111 * MS, 1)
    chromium.evaluate("seek(8)")
    chromium.key("i")
    assert chromium.evaluate("$('start').value") == "0.101"
    chromium.evaluate("seek(1e9)")
    chromium.key("o")
    assert chromium.evaluate("$('end').value") == "0.16"


def test_slider_keys_clicks_and_play_change_the_picture(opened):
    picture = "$('frame').toDataURL()"
    seen = [opened.evaluate(picture)]

    def moved() -> int:
        seen.append(opened.evaluate(picture))
        assert seen[-1] != seen[-2]
        return opened.evaluate("at")

    exposure = opened.evaluate("exposure")
    opened.evaluate("$('slider').value = 900; $('slider').dispatchEvent(new Event('input'))")
    assert moved() == 900
    opened.key("ArrowRight")
    assert moved() == 900 + exposure
    opened.key("ArrowLeft", "ArrowLeft")
    assert moved() == 900 - exposure
    box = opened.evaluate("(b => [b.left, b.top, b.width])($('rate').getBoundingClientRect())")
    opened.click(box[0] + box[2] * 0.25, box[1] + 40)
    assert moved() == pytest.approx(opened.evaluate("data.frames") / 4, abs=5)
    opened.evaluate("$('exposure').value = 1; $('exposure').dispatchEvent(new Event('change'))")
    moved()
    opened.evaluate("setExposure(64); go(lastIndex() - 100); $('speed').value = 0.1")
    opened.key(" ")
    assert opened.evaluate("$('play').innerText") == "Pause"
    opened.wait("at === lastIndex() && $('play').innerText === 'Play'")
    opened.key(" ")  # from the beginning again
    opened.wait("at > 0 && at < 1000")
    opened.key(" ")
    opened.wait("!playing")


def test_hot_pixels_are_marked(chromium, recording, events, tmp_path):
    hot = events.copy()
    hot["x"][::5], hot["y"][::5] = 50, 3
    write_events(tmp_path / "hot.npz", hot)
    chromium.open(paged(tmp_path / "hot.npz", tmp_path / "hot.html"))
    assert chromium.evaluate("data.hot") == [[3, 50]]
    green = """(() => {
        const scale = $('frame').width / width, at = [(50.5) * scale, 3.5 * scale + scale];
        return Array.from($('frame').getContext('2d').getImageData(at[0], at[1], 1, 1).data);
    })()"""
    marked = chromium.evaluate(green)
    chromium.evaluate("$('hot').click()")
    assert chromium.evaluate(green) != marked


def label(browser, index: int, until: int, name: str) -> None:
    """Label a stretch by keyboard alone."""
    browser.evaluate(f"seek({index})")
    browser.key("i")
    browser.evaluate(f"seek({until} - exposure)")
    browser.key("o")
    browser.type(name)
    browser.key("Enter")


def saved(browser, path: Path) -> Path:
    """Download the table."""
    path.write_bytes(b"")
    browser.evaluate("$('download').click()")
    found = browser.downloaded("one_labels.csv")
    found.replace(path)
    return path


NAMES = ("walk", 'a "quoted", one', "semi;colon", "Fußgänger 走る", "=1+1")


def test_labels_become_the_table_that_slice_takes(opened, recording, tmp_path):
    for i, name in enumerate(NAMES):
        label(opened, 400 * i, 400 * i + 400, name)
    opened.evaluate("$('session').focus()")
    opened.type("first, day")
    assert opened.evaluate("unsaved")
    table = saved(opened, tmp_path / "labels.csv")
    assert not opened.evaluate("unsaved")
    assert table.read_text(encoding="utf-8").startswith("file,start,end,label,session\n")
    [found] = read_labels(table, find_recordings([recording.parent]))
    assert (found.path, found.session) == (recording, "first, day")
    assert [(s.start, s.end, s.label) for s in found.stretches] == [
        (50 * MS * i, 50 * MS * (i + 1), name) for i, name in enumerate(NAMES)
    ]
    opened.choose_file("#load", table)
    opened.wait("$('said').innerText.startsWith('Loaded')")
    assert saved(opened, tmp_path / "again.csv").read_bytes() == table.read_bytes()


def test_tables_of_several_recordings(opened, recording, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(
        '\ufeffLabel;File;Start;End;Note\nwave;two.npz;20ms;1.5 s;"x; y"\nrest;one.npz;;30000;\n'
        f"walk;{recording.parent.name}/one.npz;0.1s;;z\n",
        encoding="utf-8",
    )
    opened.choose_file("#load", table)
    opened.wait("$('said').innerText === 'Loaded 2 labels of this recording, and 1 of others.'")
    label(opened, 400, 640, "wave")
    folder = recording.parent.name
    assert saved(opened, tmp_path / "new.csv").read_text(encoding="utf-8").splitlines() == [
        "file,start,end,label,session,note",
        'two.npz,20ms,"1.5 s",wave,,"x; y"',
        f"{folder}/one.npz,0,30000,rest,,",
        f"{folder}/one.npz,50000,80000,wave,,",
        f"{folder}/one.npz,100000,,walk,,z",
    ]
    write_events(tmp_path / "two.npz", moving(500))
    found = read_labels(tmp_path / "new.csv", [recording, tmp_path / "two.npz"])
    assert [len(one.stretches) for one in found] == [3, 1]


def test_labels_are_edited_deleted_and_refused(opened):
    said = "$('said').innerText"
    rows = "Array.from($('stretches').rows, r => Array.from(r.cells, c => c.innerText).slice(0, 3))"
    label(opened, 400, 800, "walk")
    label(opened, 600, 1000, "wave")
    assert opened.evaluate(said).startswith("Overlaps “walk” from 0.05 s to 0.1 s")
    opened.evaluate("$('start').value = '100ms'")
    opened.key("Enter")
    label(opened, 0, 400, "../up")
    assert "It becomes a folder" in opened.evaluate(said)
    opened.key("Escape")
    opened.evaluate("submit()")
    assert opened.evaluate(said).startswith("Mark the start first")
    two = [["walk", "0.05", "0.1"], ["wave", "0.1", "0.125"]]
    assert opened.evaluate(rows) == two
    button = "document.querySelector('#stretches tr:nth-child({}) [aria-label^={}]').click()"
    opened.evaluate(button.format(2, "Edit"))
    opened.evaluate("$('end').value = ''; $('label').value = 'last'; $('label').focus()")
    opened.key("Enter")
    assert opened.evaluate(rows) == [two[0], ["last", "0.1", "end"]]
    opened.evaluate(button.format(1, "Delete"))
    assert opened.evaluate(rows) == [["last", "0.1", "end"]]
    opened.evaluate(button.format(1, "Go"))
    assert opened.evaluate("at") == 800
    # Within the frame shown, a stretch begins where the one before it ends.
    opened.evaluate("edit(stretches[0]); $('end').value = 0.15; submit(); seek(1200 - 10)")
    opened.key("i")
    assert opened.evaluate("$('start').value") == "0.15"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,start,end\none.npz,1,2\n", "lacks the column “label”"),
        ("file,start,end,label\none.npz,1,2\n", "Line 2: has 3 cells, not 4"),
        ("file,start,end,label\none.npz,1,2x,a\n", "Line 2: its times are none"),
        ("file,start,end,label\none.npz,5,2,a\n", "Line 2: its end is not behind its start"),
        ("file,start,end,label\none.npz,1,2,.a\n", "Line 2: its class cannot name a folder"),
        ("file,start,end,label\none.npz,1,9,a\n\none.npz,2,3,b\n", "Line 4: overlaps another"),
    ],
)
def test_wrong_tables_are_refused(text, words, opened, recording, tmp_path):
    opened.evaluate("load('file,start,end,label\\none.npz,1,2,kept')")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError):
        read_labels(tmp_path / "labels.csv", [recording])
    opened.choose_file("#load", tmp_path / "labels.csv")
    opened.wait("$('said').classList.contains('wrong')")
    assert words in opened.evaluate("$('said').innerText")
    assert opened.evaluate("stretches.map(s => s.label)") == ["kept"]


TIMES = (
    "1500",
    "200ms",
    "1.5 s",
    "3us",
    "2µs",
    ".5s",
    " 2min ",
    "",
    "ms",
    "-1",
    "1h",
    "1e3",
    "1,5s",
)


def test_times_are_read_as_tables_are(opened):
    for text in TIMES:
        try:
            wanted = parse_duration(text)
        except InputError:
            wanted = None
        assert opened.evaluate(f"parseTime({json.dumps(text)})") == wanted, text
    for us in (0, 1, 125, 1_500_000, 299_123_456, 10**13 + 1):
        assert opened.evaluate(f"parseTime(seconds({us}), 's')") == us


@pytest.mark.parametrize(
    "name",
    [
        "x<|script><script>hacked=1<|script><!--.npz",
        "x\"'><img src=x onerror=hacked=1>.npz",
        "{{script}}${hacked=1}`-->&lt;|..npz",
    ],
)
def test_no_name_runs_anything(name, chromium, events, tmp_path):
    """Names of files and folders are a stranger's; a | stands for what parts them."""
    path = tmp_path.joinpath(*name.split("|"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_events(path, events)
    chromium.errors.clear()
    chromium.requested.clear()
    chromium.open(paged(path, tmp_path / "page.html"))
    assert chromium.evaluate("typeof hacked") == "undefined"
    assert chromium.evaluate("[document.title, $('name').innerText]") == [path.name] * 2
    assert chromium.evaluate("document.scripts.length") == 2
    assert chromium.evaluate("data.file") == "/".join(path.parts[-2:])
    assert chromium.requested == [(tmp_path / "page.html").as_uri()] and chromium.errors == []
    label(chromium, 0, 400, "<img src=x onerror=hacked=1>")
    assert chromium.evaluate("typeof hacked + document.images.length") == "undefined0"
    chromium.evaluate("unsaved = false")


def test_the_policy_stops_what_is_put_into_the_page(chromium, whole, tmp_path):
    """The control: the policy alone stops scripts and requests, even were names not escaped."""
    text = whole.read_text(encoding="utf-8").replace(
        "</h1>", "</h1><script>hacked=1</script><img src='https://example.invalid/x'>"
    )
    (tmp_path / "put.html").write_text(text, encoding="utf-8")
    chromium.open(tmp_path / "put.html")
    assert chromium.evaluate("typeof hacked") == "undefined"
    assert sum("Content Security Policy" in error for error in chromium.errors) == 2
    chromium.errors.clear()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_screen(width, scheme, chromium, whole, tmp_path):
    chromium.open(whole, width=width, color_scheme=scheme)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    corner = chromium.evaluate(
        "Array.from($('frame').getContext('2d').getImageData(1, 1, 1, 1).data).slice(0, 3)"
    )
    assert (max(corner) < 40) if scheme == "dark" else (min(corner) > 220)
    chromium.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
