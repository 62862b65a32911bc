"""Damaged files of every format; and the harness itself, with readers that must not pass."""

import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from sj_ottt import InputError
from sj_ottt.data import EVENT_DTYPE, ReadOptions, read_events
from sj_ottt.data.recordings.readers import READERS, SNIFFED_BYTES
from tests.data.recordings import damage
from tests.data.recordings.damage import cut_everywhere, damaged, samples, survives
from tests.recording_files import evt3, sample_events

SAMPLES = samples()


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_files_of_every_format(name, tmp_path):
    sample, other = SAMPLES[name], SAMPLES["evt2" if name == "evt3" else "evt3"]
    outcomes = survives(
        sample.write(),
        sample.suffix,
        tmp_path,
        files=120,
        densest=sample.densest,
        other=other.write(),
    )
    # Without a mark, any bytes are events.
    assert outcomes["refused"] or sample.suffix == ".bin", outcomes
    assert outcomes["refused"] < 120, outcomes


@pytest.mark.parametrize("name", SAMPLES)
def test_strict_reading_repairs_nothing(name, tmp_path):
    sample = SAMPLES[name]
    path = tmp_path / f"intact{sample.suffix}"
    path.write_bytes(sample.write())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read_events(path)
    if said:  # even the intact file leaves something to be assumed
        with pytest.raises(InputError, match="which --strict refuses"):
            read_events(path, ReadOptions(strict=True))
        return
    outcomes = survives(
        sample.write(),
        sample.suffix,
        tmp_path,
        files=40,
        seed=1,
        densest=sample.densest,
        read=lambda path: read_events(path, ReadOptions(strict=True)),
    )
    assert not outcomes["warned"], outcomes


def test_every_reader_has_a_file_that_is_damaged():
    found = set()
    for sample in SAMPLES.values():
        head = sample.write()[:SNIFFED_BYTES]
        known = (r.name for r in READERS if r.sniff is not None and r.sniff(head))
        found.add(next(known, next((r.name for r in READERS if sample.suffix in r.suffixes), "")))
    assert {reader.name for reader in READERS} <= found


def test_copies_are_the_same_again_and_of_every_kind():
    data = bytes(range(256)) * 8
    copies = [damaged(data, number, seed=3, other=b"\0" * 500) for number in range(400)]
    assert copies == [damaged(data, number, seed=3, other=b"\0" * 500) for number in range(400)]
    assert {name for how, _ in copies for name in how.split(", ")} == {
        name for name, _ in damage._DAMAGES
    }
    assert sum(copy == data for _, copy in copies) < 20
    assert copies != [damaged(data, number, seed=4, other=b"\0" * 500) for number in range(400)]
    for number in range(200):  # nothing is too short to be damaged
        damaged(b"", number)
        damaged(b"\n", number)


def _sleepless(path):
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    return np.zeros(1, EVENT_DTYPE)


def _raise(error):
    raise error


def _says(text):
    warnings.warn(text, stacklevel=1)
    return np.zeros(1, EVENT_DTYPE)


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda path: _raise(ValueError("no")), "ValueError: no"),
        (lambda path: _raise(InputError("damaged")), "not one line that names the file"),
        (lambda path: _raise(InputError(f"{path}: a\nb")), "not one line that names the file"),
        (lambda path: _raise(InputError(f"{path}: does not fit into memory")), "asked for"),
        (lambda path: _says("overflow"), "not one line that names the file"),
        (lambda path: np.zeros(1), "float64"),
        (lambda path: np.zeros(10_000, EVENT_DTYPE), "10000 events of a file of"),
        (lambda path: np.empty(90 << 20, np.int8)[:0].astype(EVENT_DTYPE), "took 90 MiB"),
        (lambda path: np.empty(1 << 40, np.int8), "MemoryError"),
        (_sleepless, r"took 0\.\d s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_readers_that_must_not_pass(read, words, tmp_path, monkeypatch):
    monkeypatch.setattr(damage, "SECONDS", 0.05)
    calls = iter(range(100))
    intact = np.zeros(0, EVENT_DTYPE)
    with pytest.raises(AssertionError, match=words) as failure:
        survives(
            b"0" * 100,
            ".raw",
            tmp_path,
            files=3,
            read=lambda path: read(path) if next(calls) else intact,
        )
    assert "copy 0 of seed 0" in str(failure.value)
    assert (tmp_path / "damaged.raw").read_bytes() == damaged(b"0" * 100, 0)[1]


def test_cutting_off_gives_the_first_events(tmp_path):
    events = sample_events(20)
    data = evt3([tuple(event) for event in events.tolist()])
    found = cut_everywhere(data, ".raw", tmp_path, step=3)
    counts = [n for n in found.values() if n is not None]
    assert counts == sorted(counts) and max(counts) >= 19

    def last_ones(path: Path) -> np.ndarray:
        return read_events(path)[-2:]

    with pytest.raises(AssertionError, match="other events, cut at"):
        cut_everywhere(data, ".raw", tmp_path, read=last_ones)
