"""Labels of stretches: times, tables, and what is wrong with them."""

import pytest

from sj_ottt import InputError
from sj_ottt.data.recordings.folders import find_recordings
from sj_ottt.data.recordings.label_table import (
    find_named,
    labels_from_folders,
    parse_duration,
    read_labels,
)
from tests.data.long_recordings import labels_file


@pytest.mark.parametrize(
    ("text", "us"),
    [("1500", 1500), ("200ms", 200_000), ("1.5 s", 1_500_000), ("3us", 3), ("2µs", 2),
     (".5s", 500_000), (" 2min ", 120_000_000)],
)  # fmt: skip
def test_durations(text, us):
    assert parse_duration(text) == us


@pytest.mark.parametrize("text", ["", "ms", "-1", "1h", "1e3", "nan", "1,5s", "5 m", "1.5"])
def test_wrong_durations(text):
    with pytest.raises(InputError, match="as in 200ms"):
        parse_duration(text)


def test_joined_and_open_stretches(raw, tmp_path):
    recordings = find_recordings([raw])
    path = labels_file(
        tmp_path, "monday/0.npz,1s,2s,a", "monday/0.npz,0.5s,1.5s,a", "monday/0.npz,2s,,b",
        "monday/1.npz,,,b", head="\ufeffFile, Start, End, Label",
    )  # fmt: skip
    first, second = read_labels(path, recordings)
    assert [(s.start, s.end, s.label) for s in first.stretches] == [
        (500_000, 2_000_000, "a"),
        (2_000_000, None, "b"),
    ]
    assert [(s.start, s.end) for s in second.stretches] == [(0, None)]
    path = labels_file(tmp_path, "monday/0.npz;0;1s;a;x", head="file;start;end;label;session")
    assert read_labels(path, recordings)[0].session == "x"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["9.npz,0,1s,a"], r"labels.csv line 2: file '9.npz' is none of the recordings"),
        (["0.npz,0,1s,a"], r"line 2: file '0.npz' fits .*monday/0.npz and .*tuesday/0.npz"),
        (["monday/0.npz,0,1s,a", "monday/0.npz,2s,1s,a"], "line 3: end 1s is not behind start 2s"),
        (["monday/0.npz,0,1x,a"], "line 2: time '1x'"),
        (["monday/0.npz,-1,1s,a"], "line 2: time '-1'"),
        (["monday/0.npz,0,1s,"], "line 2: label '' cannot name a folder"),
        (["monday/0.npz,0,1s,../a"], "line 2: label '../a' cannot"),
        (["monday/0.npz,0,1s"], "line 2: 3 cells, where the first line names 4"),
        (["monday/0.npz,0,2s,a", "monday/0.npz,1s,3s,b"], "line 3: 'b' overlaps 'a' of .* line 2"),
        ([",0,1s,a"], "line 2: names no file"),
        ([], "holds no labels"),
    ],
)
def test_wrong_rows_are_named(lines, words, raw, tmp_path):
    with pytest.raises(InputError, match=words):
        read_labels(labels_file(tmp_path, *lines), find_recordings([raw]))


def test_wrong_files_of_labels(raw, tmp_path):
    recordings = find_recordings([raw])
    with pytest.raises(InputError, match="line 1: lacks the column 'end'"):
        read_labels(labels_file(tmp_path, head="file,start,label"), recordings)
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        read_labels(tmp_path / "none.csv", recordings)
    rows = ["monday/0.npz,0,1s,a,x", "monday/0.npz,1s,2s,a,y"]
    path = labels_file(tmp_path, *rows, head="file,start,end,label,session")
    with pytest.raises(InputError, match="line 3: session 'y', where an earlier line says 'x'"):
        read_labels(path, recordings)


def test_sessions_are_named_from_the_folder_that_holds_them_all(tmp_path):
    def sessions(*names):
        paths = [tmp_path / "raw" / name for name in names]
        return [one.session for one in labels_from_folders(paths)]

    assert sessions("A/seven/1.npz", "A/one/2.npz", "B/deep/one/1.npz") == ["A", "A", "B/deep"]
    assert sessions("seven/1.npz", "one/2.npz") == ["raw", "raw"]
    # A folder and one inside it are two sessions, whatever they are called.
    assert sessions("seven/1.npz", "raw/one/2.npz") == ["raw", "raw/raw"]


def test_names_find_recordings_by_as_much_of_their_path_as_is_needed(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a/0.npz", "b/0.npz", "b/1.npz")]
    assert find_named("1.npz", paths, "x") == find_named("b/1.npz", paths, "x") == paths[2]
    assert find_named(str(paths[0]), paths, "x") == paths[0]
    (tmp_path / "c").mkdir()
    monkeypatch.chdir(tmp_path / "c")
    assert find_named("../a/0.npz", paths, "x") == paths[0]
    assert find_named("2.npz", paths, "x") is None
    with pytest.raises(InputError, match=r"x: file '0\.npz' fits .*a/0\.npz and .*give its folder"):
        find_named("0.npz", paths, "x")


def test_a_link_belongs_to_its_own_folder_whatever_it_leads_to(tmp_path):
    """As where one pool of recordings is sorted into classes by links."""
    links = [tmp_path / name for name in ("A/left/a.npz", "B/right/a.npz")]
    for i, link in enumerate(links):
        target = tmp_path / "pool" / f"rec{i}.npz"
        target.parent.mkdir(exist_ok=True)
        target.touch()
        link.parent.mkdir(parents=True)
        link.symlink_to(target)
    found = labels_from_folders(find_recordings([tmp_path / "A", tmp_path / "B"]))
    assert [(one.stretches[0].label, one.session) for one in found] == [
        ("left", "A"),
        ("right", "B"),
    ]
    assert find_named("right/a.npz", links, "x") == links[1]
    assert find_named("rec1.npz", links, "x") == links[1]
    with pytest.raises(InputError, match="fits"):
        find_named("a.npz", links, "x")
    table = labels_file(tmp_path, "left/a.npz,,,x", "right/a.npz,,,y")
    assert [one.session for one in read_labels(table, links)] == ["A/left", "B/right"]
