"""Damaged files: copies of an intact one, each damaged in another way, and what a reader may do.

The one harness of all formats. Intact files are listed as ``SAMPLES`` beside their writer, in
``formats/NAME_files.py`` or ``tests/recording_files.py``. The suite damages each a few times,
this command as often as asked:

    SAMPLES = {"evt3": Sample(".raw", lambda: evt3(sample_events(200)))}

    python -m tests.data.recordings.damage --files 10000
"""

import argparse
import contextlib
import importlib
import multiprocessing
import resource
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sj_ottt import InputError
from sj_ottt.data import EVENT_DTYPE, read_events

SECONDS = 1.0
"""Of processor time that reading one small file may take."""
MEMORY = 64 << 20
"""Bytes that Python and numpy may hold at once, beside 1,000 for each of the file."""
_CEILING = 2 << 30  # bytes; asking for more fails, so that a test never fills the machine's memory
_STUCK_S = 20.0
_HUGE = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40)
_HUGE += ((1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_TEXTS = (b"", b"-1", b"0", b"99999999999999999999", b"1e308", b"nan", b"\xff\xfe", b"\0", b"x")


class Sample(NamedTuple):
    """An intact file to be damaged.

    Attributes:
        suffix: The file's ending.
        write: Makes its bytes.
        densest: Events that a byte can hold at most; 6 is EVT3's, whose words of 2 bytes hold 12.
            Packed formats hold more: Deflate packs 1,032 bytes into one, that is 80 events.
    """

    suffix: str
    write: Callable[[], bytes]
    densest: float = 6.0


def samples() -> dict[str, Sample]:
    """Gather the ``SAMPLES`` of every module that writes recordings."""
    here = Path(__file__).parent / "formats"
    names = [f"{__package__}.formats.{path.stem}" for path in sorted(here.glob("*_files.py"))]
    found: dict[str, Sample] = {}
    for name in ("tests.recording_files", *names):
        rows = getattr(importlib.import_module(name), "SAMPLES", {})
        assert not found.keys() & rows.keys(), f"{name}: names a sample that another module has"
        found |= rows
    return found


def damaged(data: bytes, number: int, seed: int = 0, other: bytes = b"") -> tuple[str, bytes]:
    """Return how one copy is damaged, and the copy.

    Args:
        data: The intact file.
        number: Of the copy, from 0 on; the same number gives the same copy.
        seed: Of all copies.
        other: Another file, for copies that begin as one and go on as the other.
    """
    rng = np.random.default_rng([seed, number])
    names, copy = [], data
    for _ in range(1 if rng.random() < 0.7 else int(rng.integers(2, 4))):
        name, change = _DAMAGES[int(rng.integers(len(_DAMAGES)))]
        copy = change(copy, rng, other or data)
        names.append(name)
    return ", ".join(names), copy


def survives(
    data: bytes,
    suffix: str,
    folder: Path,
    *,
    files: int = 300,
    seed: int = 0,
    read: Callable[[Path], np.ndarray] = read_events,
    densest: float = 6.0,
    other: bytes = b"",
    progress: Callable[[int], None] = lambda number: None,
) -> Counter[str]:
    """Read damaged copies of a file, and assert what is asked of each.

    Each gives an `InputError` of one line that names the file, or events of `EVENT_DTYPE`, no more
    than the file can hold, with warnings that name the file; in `SECONDS` and `MEMORY`.

    Args:
        data: The intact file.
        suffix: Its ending.
        folder: Where the one file is written that becomes each copy in turn. Where a copy fails,
            it is left there.
        files: How many copies.
        seed: Of the copies.
        read: The reader.
        densest: Events that a byte can hold at most.
        other: See `damaged`.
        progress: Called with the number of each copy, before it is read.

    Returns:
        How many copies were ``"refused"``, ``"warned"`` about, and ``"read"`` without a word.
    """
    path = folder / f"damaged{suffix}"
    outcomes: Counter[str] = Counter()
    path.write_bytes(data)
    with contextlib.suppress(InputError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(path)  # loads the packages it needs, once
    resident = _resident()
    with _measured():
        for number in range(files):
            how, copy = damaged(data, number, seed, other)
            path.write_bytes(copy)
            progress(number)
            tracemalloc.reset_peak()
            held, started = tracemalloc.get_traced_memory()[0], time.process_time()
            try:
                outcome = _outcome(read, path, densest * len(copy) + 16)
                seconds = time.process_time() - started
                peak = tracemalloc.get_traced_memory()[1] - held
                assert seconds < SECONDS, f"took {seconds:.1f} s"
                assert peak < MEMORY + 1000 * len(copy), f"took {peak >> 20} MiB"
                # What compiled libraries take, which Python does not see.
                grown = _resident() - resident
                assert grown < 4 * MEMORY, f"grew to {grown >> 20} MiB"
            except Exception as error:
                raise AssertionError(
                    f"copy {number} of seed {seed} ({how}), left as {path}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            outcomes[outcome] += 1
    path.unlink()
    return outcomes


def cut_everywhere(
    data: bytes,
    suffix: str,
    folder: Path,
    *,
    read: Callable[[Path], np.ndarray] = read_events,
    step: int = 1,
) -> dict[int, int | None]:
    """Cut a file off at every length, and assert that the first of its events are read, or none.

    Args:
        data: The intact file.
        suffix: Its ending.
        folder: Where copies are written.
        read: The reader.
        step: Try each so many-th length only.

    Returns:
        For each length how many events were read; None where the file was refused. That fewer
        events than the file's come with a warning is asserted only where ``data`` states their
        number, so by the caller.
    """
    path = folder / f"cut{suffix}"
    path.write_bytes(data)
    events = read(path)
    found: dict[int, int | None] = {}
    for length in range(0, len(data), step):
        path.write_bytes(data[:length])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                part = read(path)
        except InputError as error:
            _check_words(str(error), path)
            found[length] = None
        else:
            assert np.array_equal(part, events[: len(part)]), f"other events, cut at {length}"
            found[length] = len(part)
    return found


def _outcome(read: Callable[[Path], np.ndarray], path: Path, most: float) -> str:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            events = read(path)
        except InputError as error:
            _check_words(str(error), path)
            assert "does not fit into memory" not in str(error), f"asked for {_CEILING} bytes"
            return "refused"
    assert events.dtype == EVENT_DTYPE and events.ndim == 1, (events.dtype, events.shape)
    assert len(events) <= most, f"{len(events)} events of a file of {path.stat().st_size} bytes"
    for warning in said:
        _check_words(str(warning.message), path)
    return "warned" if said else "read"


def _check_words(text: str, path: Path) -> None:
    assert str(path) in text and "\n" not in text, f"not one line that names the file: {text!r}"


@contextlib.contextmanager
def _measured() -> Iterator[None]:
    """Trace memory, and let no one ask for more than the machine can spare."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    tracemalloc.start()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + _CEILING, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        tracemalloc.stop()


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Damages: functions of the bytes, random numbers and another file's bytes.


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Draw a place, as often among the first bytes, where headers are, as anywhere."""
    reach = len(data) if rng.random() < 0.5 else min(len(data), int(rng.choice([32, 128, 512])))
    return int(rng.integers(reach + 1))


def _run(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    first = _place(data, rng)
    return first, min(len(data), first + int(2 ** rng.uniform(0, np.log2(len(data) + 2))))


def _put(data: bytes, place: int, new: bytes) -> bytes:
    """Overwrite, and never lengthen."""
    return (data[:place] + new + data[place + len(new) :])[: len(data)]


def _flip(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    copy = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if (place := _place(data, rng)) < len(copy):
            copy[place] ^= 1 << int(rng.integers(8))
    return bytes(copy)


def _overwrite(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    for _ in range(int(rng.integers(1, 9))):
        value = (b"\0", b"\xff", rng.bytes(1))[int(rng.integers(3))]
        data = _put(data, _place(data, rng), value)
    return data


def _overwrite_run(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    first, last = _run(data, rng)
    fill = (bytes(last - first), b"\xff" * (last - first), rng.bytes(last - first))
    return _put(data, first, fill[int(rng.integers(3))])


def _remove(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    first, last = _run(data, rng)
    return data[:first] + data[last:]


def _insert(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    place = _place(data, rng)
    return data[:place] + rng.bytes(int(2 ** rng.uniform(0, 10))) + data[place:]


def _double(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    first, last = _run(data, rng)
    return data[:last] + data[first:last] + data[last:]


def _shuffle(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    ends = sorted(int(end) for end in rng.integers(len(data) + 1, size=7))
    pieces = [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]
    return b"".join(pieces[i] for i in rng.permutation(len(pieces)))


def _truncate(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    return data[: _place(data, rng)]


def _length(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Set what may be a length, count or offset to a huge value."""
    width = int(rng.choice([1, 2, 4, 8]))
    value = _HUGE[int(rng.integers(len(_HUGE)))] & ((1 << 8 * width) - 1)
    order = "little" if rng.random() < 0.7 else "big"
    align = 1 if rng.random() < 0.5 else width
    return _put(data, _place(data, rng) // align * align, value.to_bytes(width, order))


def _line(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Change one of the first lines: another number in it, doubled, removed, moved, ended anew."""
    head, tail = data[:4096], data[4096:]
    lines = head.split(b"\n")
    i = int(rng.integers(min(len(lines), 12)))
    match int(rng.integers(6)):
        case 0:
            words = lines[i].replace(b",", b" ").split(b" ")
            text = _TEXTS[int(rng.integers(len(_TEXTS)))]
            lines[i] = lines[i].replace(words[int(rng.integers(len(words)))] or b" ", text)
        case 1:
            lines.insert(i, lines[int(rng.integers(len(lines)))])
        case 2:
            del lines[i]
        case 3:
            lines[i] = lines[i][: int(rng.integers(len(lines[i]) + 1))]
        case 4:
            lines[i] += b"\r"
        case _:
            lines[i] = lines[i].swapcase()
    return b"\n".join(lines) + tail


def _splice(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    return data[: _place(data, rng)] + other[_place(other, rng) :]


_DAMAGES = (
    ("bits flipped", _flip),
    ("bytes overwritten", _overwrite),
    ("a run overwritten", _overwrite_run),
    ("a run removed", _remove),
    ("bytes inserted", _insert),
    ("a run doubled", _double),
    ("pieces shuffled", _shuffle),
    ("cut off", _truncate),
    ("a length set", _length),
    ("a line changed", _line),
    ("two files spliced", _splice),
)


# The long command. A library may end or hang the process, so each format has one of its own.


def _child(name: str, files: int, seed: int, folder: Path, others: list[bytes], report) -> None:
    sample = samples()[name]
    started, total = time.perf_counter(), Counter()
    try:
        for i, other in enumerate(others):  # spliced with each of the other formats in turn
            total += survives(
                sample.write(),
                sample.suffix,
                folder,
                files=len(range(i, files, len(others))),
                seed=seed + i,
                densest=sample.densest,
                other=other,
                progress=lambda number, i=i: report.send((False, f"copy {number} of seed {i}")),
            )
    except AssertionError as error:
        report.send((True, f"FAILED: {error}"))
        sys.exit(1)
    seconds = time.perf_counter() - started
    listed = ", ".join(f"{count} {outcome}" for outcome, count in sorted(total.items()))
    report.send((True, f"{listed}; {seconds:.0f} s"))


def _run_apart(name: str, files: int, seed: int, folder: Path, others: list[bytes]) -> bool:
    fork = multiprocessing.get_context("fork")
    reports, report = fork.Pipe(duplex=False)
    process = fork.Process(target=_child, args=(name, files, seed, folder, others, report))
    process.start()
    report.close()
    done, text = False, "before its first copy"
    with contextlib.suppress(EOFError):
        while not done and reports.poll(_STUCK_S):
            done, text = reports.recv()
    if not done:
        died = not process.is_alive()
        process.kill()
        text = f"FAILED: {'ended the process' if died else 'hangs'} at {text}, left in {folder}"
    process.join()
    print(f"{name:24}{text}", flush=True)
    return done and process.exitcode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Read damaged files of every format.")
    parser.add_argument("--files", type=int, default=10_000, help="of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", action="append", help="only these; may be repeated")
    args = parser.parse_args()
    table = samples()
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="damage", dir=memory if memory.is_dir() else None))
    intact = {name: sample.write() for name, sample in table.items()}
    failed = []
    for name in args.format or table:
        (folder := root / name).mkdir()
        others = [data for other, data in intact.items() if other != name]
        if _run_apart(name, args.files, args.seed, folder, others):
            folder.rmdir()
        else:
            failed.append(name)
    if not failed:
        root.rmdir()
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
