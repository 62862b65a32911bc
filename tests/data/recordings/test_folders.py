"""Which files of a folder are recordings."""

import pytest

from sj_ottt import InputError
from sj_ottt.data.recordings.folders import find_recordings
from tests.data.long_recordings import record, sliced


def test_finding_recordings(raw, tmp_path):
    sliced(raw, raw / "made")
    (raw / ".hidden").mkdir()
    record(raw / ".hidden" / "9.npz", 1)
    (raw / "notes.md").write_text("x")
    assert len(find_recordings([raw])) == 6 < len(find_recordings([raw / "made"]))
    with pytest.raises(InputError, match="none: no such recording or folder"):
        find_recordings([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no recordings"):
        find_recordings([tmp_path / "empty"])


def test_a_table_of_labels_among_the_recordings_is_none(raw):
    everything = sorted(raw.rglob("*.npz"))
    for name, text in (("labels.csv", "file,start,end,label"), ("a.txt", " File;START; end;label")):
        (raw / name).write_text(f"{text}\n0.npz,,,a\n")
    assert sorted(find_recordings([raw])) == everything
    notes = raw / "notes.txt"
    notes.write_text("recorded on Monday\n")
    assert notes in find_recordings([raw])
