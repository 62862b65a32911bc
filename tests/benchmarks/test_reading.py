"""The recordings of the reading benchmark hold what they should, and a slower decoder shows."""

import argparse
import warnings

import numpy as np
import pytest

from benchmarks import reading
from benchmarks.recordings import FORMATS, random_events
from sj_ottt.data import read_recording
from sj_ottt.data.recordings.readers import recording_suffixes

READ = [name for name, row in FORMATS.items() if row[0] in recording_suffixes()]


@pytest.mark.parametrize("name", READ)
def test_recordings_are_read_as_written(name, tmp_path):
    events = random_events(3000)
    ending, write, _ = FORMATS[name]
    write(events, tmp_path / f"a{ending}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_recording(tmp_path / f"a{ending}").events
    if name.endswith("_rows"):
        assert 2000 < len(found) < 4000 and len(np.unique(found["x"] % 32)) == 32
    else:
        whole = name not in ("bin", "aedat2")  # whose sensors are smaller
        assert all(np.array_equal(found[f], events[f]) for f in ("txyp" if whole else "tp"))


def test_the_table(monkeypatch, capsys):
    seconds = {"sj_ottt": 0.3, "sj_ottt by blocks": 0.2, "faery": 0.2, "expelliarmus": 0.1}

    def run(decoder, path, rivals):
        n = 999 if decoder == "evlib" else 1000
        if decoder not in seconds and decoder != "evlib":
            return []
        return [{"events": n, "seconds": seconds.get(decoder, 0.001), "bytes": 17_000}]

    monkeypatch.setattr(reading, "_run", run)
    args = argparse.Namespace(formats=["evt2"], events=1000, repeats=2, rivals=None)
    rows = {row["decoder"]: row for row in reading.reading(args)}
    assert set(rows) == set(seconds)
    assert rows["sj_ottt"]["time to the fastest other's"] == "3.00"
    assert rows["sj_ottt by blocks"]["time to the fastest other's"] == "-"
    assert rows["expelliarmus"]["time to the fastest other's"] == "1.00"
    assert rows["sj_ottt"]["bytes/event"] == "17.0"
    assert "evlib reads 999 events for 1000" in capsys.readouterr().out
