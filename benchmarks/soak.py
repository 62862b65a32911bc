"""Hours of a stream: does memory stay flat, how late do labels come, is a window ever lost?"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from benchmarks.long import SENSOR, write_dat, write_untrained
from sj_ottt.inference.adapt import adapt, open_labelled
from sj_ottt.run.evaluation import load_trained

WINDOW = 100_000  # µs
_BLOCK = 10_000  # µs of events that are written at once
_PAUSE_EVERY_S, _PAUSE_S = 60, 2  # the source goes away and comes back
_SETTLED = 0.1  # of the time, before which memory is not compared
_PATTERNS = 64
_RECORDING_S = 2


def soak(args: argparse.Namespace) -> list[dict]:
    """Three quarters of --minutes of `predict --live`, then `adapt`: memory, latency, losses."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_untrained(folder / "run")
        rows = [_live(folder, args.rate, 45 * args.minutes), _adapt(folder, 15 * args.minutes)]
    columns = {key: "-" for row in rows for key in row}
    return [{**columns, **row} for row in rows]


class Memory:
    """Samples the memory of a process, in MB: resident, and of that what is its own.

    Pages of files, such as libraries' code, are resident as well; the system takes them back when
    memory is short elsewhere, so that only a process's own pages tell a leak.

    Args:
        pid: Its number.
        period: Seconds between two samples.
    """

    def __init__(self, pid: int, period: float) -> None:
        self._file, self._period, self._next = Path(f"/proc/{pid}/statm"), period, 0.0
        self._page = os.sysconf("SC_PAGE_SIZE")
        self.samples: list[tuple[float, float]] = []

    def look(self) -> None:
        """Take a sample, if it is time to."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._period
            _, resident, of_files = (int(n) for n in self._file.read_text().split()[:3])
            megabytes = self._page / 1e6
            self.samples.append((resident * megabytes, (resident - of_files) * megabytes))

    def row(self) -> dict[str, str]:
        """Compare the middle of the first fifth, once settled, with the middle of the last."""
        settled = self.samples[int(len(self.samples) * _SETTLED) :]
        fifth = max(1, len(settled) // 5)
        row: dict[str, str] = {}
        for name, samples in zip(("MB", "own MB"), zip(*settled, strict=True), strict=True):
            first, last = statistics.median(samples[:fifth]), statistics.median(samples[-fifth:])
            row |= {
                f"{name} at first": f"{first:.1f}",
                f"{name} at last": f"{last:.1f}",
                f"{name} at most": f"{max(samples):.1f}",
                f"change of {name}": f"{last / first - 1:+.2%}",
            }
        return row


def _live(folder: Path, rate: int, seconds: float) -> dict[str, str]:
    """Write events of a camera into a pipe, in real time, and read the labels of its windows."""
    pipe = folder / "camera"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "sj_ottt", "predict", "--checkpoint", str(folder / "run")]
    command += ["--live", "--window", f"{WINDOW}us", "--idle", "10", str(pipe)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines: list[tuple[float, str]] = []

    def read() -> None:
        assert process.stdout is not None
        lines.extend((time.monotonic(), line) for line in process.stdout)

    reader = threading.Thread(target=read)
    reader.start()
    source, memory = _Source(rate), Memory(process.pid, max(0.5, seconds / 1000))
    pauses: list[tuple[int, int]] = []
    file = open(pipe, "wb", buffering=0)  # noqa: SIM115, the source comes and goes
    begin, paused = time.monotonic(), 0.0
    next_pause, now = _PAUSE_EVERY_S * 1_000_000, 0
    while now < seconds * 1e6 or now % WINDOW:
        if now >= next_pause:
            next_pause += _PAUSE_EVERY_S * 1_000_000
            file.close()
            pauses.append((now, now + _PAUSE_S * 1_000_000))
            time.sleep(_PAUSE_S)
            paused += _PAUSE_S
            now += _PAUSE_S * 1_000_000
            file = open(pipe, "wb", buffering=0)  # noqa: SIM115
        if (early := begin + (now + _BLOCK) / 1e6 - time.monotonic()) > 0:
            time.sleep(early)
        source.write(file, now)
        now += _BLOCK
        memory.look()
    took = time.monotonic() - begin - paused
    file.close()
    reader.join()
    if process.wait():
        raise SystemExit("predict --live: failed")
    rows = [(at, line.split()) for at, line in lines[1:]]
    starts = [round(float(words[0]) * 1e6) for _, words in rows]
    events = sum(int(words[-1]) for _, words in rows)
    # The last event of a window before a pause is known to be the last when the source is back.
    late = [
        (at - begin) * 1e6 - (start + WINDOW)
        for (at, _), start in zip(rows, starts, strict=True)
        if not any(first <= start + WINDOW <= last for first, last in pauses)
    ]
    cuts = statistics.quantiles(late, n=100)
    return {
        "run": "predict --live",
        "minutes": f"{seconds / 60:.1f}",
        "events/s": f"{source.written / took:.0f}",
        "windows": f"{len(rows)}",
        "windows lost": f"{now // WINDOW - len(set(starts))}",
        "events lost": f"{source.written - events}",
        "pauses": f"{len(pauses)}",
        "median ms": f"{statistics.median(late) / 1e3:.1f}",
        "99th percentile ms": f"{cuts[98] / 1e3:.1f}",
        **memory.row(),
    }


class _Source:
    """Lines of text ``t,x,y,p`` at random pixels, at an even rate.

    Args:
        rate: Events per second.
    """

    def __init__(self, rate: int) -> None:
        self.written = 0
        n = rate * _BLOCK // 1_000_000
        rng = np.random.default_rng(0)
        t = np.linspace(0, _BLOCK - 1, n).astype(int)
        self._blocks = []
        for _ in range(_PATTERNS):
            columns = zip(
                t,
                rng.integers(0, SENSOR[1], n),
                rng.integers(0, SENSOR[0], n),
                rng.integers(0, 2, n),
                strict=True,
            )
            text = "".join(f"{'0' * 8}{t:04},{x:04},{y:03},{p}\n" for t, x, y, p in columns)
            block = np.frombuffer(text.encode(), np.uint8).reshape(n, -1).copy()
            self._blocks.append(block)

    def write(self, file, now: int) -> None:
        """Write the events of `_BLOCK` from a moment in µs on."""
        block = self._blocks[now // _BLOCK % len(self._blocks)]
        block[:, :8] = np.frombuffer(f"{now // _BLOCK:08}".encode(), np.uint8)
        data = memoryview(block.tobytes())
        while data:
            data = data[file.write(data) :]
        self.written += len(block)


def _adapt(folder: Path, seconds: float) -> dict[str, str]:
    """Learn from one recording again and again in a process of its own."""
    events = 10 * 1_000_000 * _RECORDING_S  # 10 a µs
    recording = write_dat(folder / "long.dat", events)
    half = _RECORDING_S * 1_000_000 // 2
    labels = folder / "labels.csv"
    text = f"file,start,end,label\n{recording.name},0,{half},a\n{recording.name},{half},,b\n"
    labels.write_text(text)
    spawn = multiprocessing.get_context("spawn")
    results, result = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_learn, args=(folder, recording, labels, seconds, result))
    process.start()
    assert process.pid is not None
    memory = Memory(process.pid, max(0.5, seconds / 1000))
    while not results.poll(0.5):
        if not process.is_alive():
            raise SystemExit("adapt: failed")
        memory.look()
    rounds, samples, took = results.recv()
    process.join()
    return {
        "run": "adapt",
        "minutes": f"{took / 60:.1f}",
        "events/s": f"{rounds * events / took:.0f}",
        "windows": f"{samples}",
        "windows lost": f"{rounds * _RECORDING_S * 1_000_000 // WINDOW - samples}",
        **memory.row(),
    }


def _learn(folder: Path, recording: Path, labels: Path, seconds: float, result: Connection) -> None:
    torch.set_num_threads(1)
    trained = load_trained(folder / "run", "cpu")
    labelled, _ = open_labelled([recording], [], labels)
    begin, rounds, samples = time.monotonic(), 0, 0
    while time.monotonic() - begin < seconds:
        samples += adapt(trained, labelled, window=WINDOW, stride=WINDOW).samples
        rounds += 1
    result.send((rounds, samples, time.monotonic() - begin))
