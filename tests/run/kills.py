"""Runs that are killed at random moments and go on, again and again; each ends as if undisturbed.

    python -m tests.run.kills --kills 200 --processes 2

A network of a moment is trained, with a checkpoint at every batch. Its processes are killed, and
started again as ``torchrun`` does it: resuming where there is a checkpoint. Half of the kills are
SIGKILL at a random moment between the start and the end of the run; as those seldom meet what takes
a fraction of a millisecond, the other half strike within a chosen kind of work, by a timer of the
system that ends the process as suddenly. Now and then the cache of frames is removed as well, so
that it is built again. After each kill the checkpoint can be read; a run that reaches its end has
the weights, moments, history and result of an undisturbed one, bit for bit, and another run begins.
"""

import argparse
import mmap
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sj_ottt.run import training, training_run
from sj_ottt.run.checkpoint import load_checkpoint
from sj_ottt.run.config import TrainConfig
from tests.forks import FORKS
from tests.helpers import assert_same_run, write_recordings

PLACES = (
    "start",
    "cache",
    "read the checkpoint",
    "train",
    "validate, test",
    "write a file",
    "flush a file",
    "rename a file",
    "write a model",
    "TensorBoard",
    "pictures, result",
)
_STUCK_S = 120.0


def options(folder: Path, processes: int) -> dict[str, object]:
    """A run that uses everything random and writes as often as it can."""
    return {
        "model": "test_ottt_vgg",
        "data": str(folder / "data"),
        "steps": 2,
        "epochs": 6,
        "batch_size": 9,
        "lr": 0.01,
        "optimizer": "adam",
        "shift": 1,
        "drop_rate": 0.1,
        "ema": 0.5,
        "val_fraction": 0.2,
        "save_every": 1e-9,
        "device": "cpu",
    }


# What runs in a process of its own


class Aim(NamedTuple):
    """Where a process ends itself.

    Attributes:
        place: Kind of work.
        count: In which call, from 1.
        seconds: How long after its beginning.
    """

    place: int
    count: int
    seconds: float


def child(
    options: dict, cache: Path, place: Path, rank: int, size: int, port: int, aim: Aim | None
) -> None:
    """Train, resuming where there is a checkpoint, and note in a file what is being done."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # whoever loses another process says so
    os.environ["SJ_OTTT_CACHE"] = str(cache)
    if size > 1:
        group_environment(rank, size, port)
    torch.set_num_threads(1)
    with open(place, "r+b") as file, mmap.mmap(file.fileno(), 1) as shared:
        if rank == 0:
            _watch(shared, aim)
        resume = (Path(str(options["out"])) / "last.pt").exists()
        training.train(TrainConfig(**options), resume=resume)


def group_environment(rank: int, size: int, port: int) -> None:
    """Make this process one of several, as `torchrun` says it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"


def _watch(shared: mmap.mmap, aim: Aim | None) -> None:
    """Have functions note that they run, and end the process in the one that is aimed at."""
    calls = Counter[int]()

    def noting(owner: object, name: str, place: str) -> None:
        inner, number = getattr(owner, name), PLACES.index(place)

        def outer(*args, **kwargs):
            before, shared[0] = shared[0], number
            calls[number] += 1
            if aim is not None and (aim.place, aim.count) == (number, calls[number]):
                # Nobody handles it: the system ends the process, whatever that is doing.
                signal.setitimer(signal.ITIMER_REAL, aim.seconds)
            try:
                return inner(*args, **kwargs)
            finally:
                shared[0] = before

        setattr(owner, name, outer)

    noting(os, "fsync", "flush a file")
    noting(os, "replace", "rename a file")
    noting(training_run, "save_checkpoint", "write a file")
    noting(training_run, "write_model", "write a model")
    noting(training_run, "write_result", "pictures, result")
    noting(training, "load_checkpoint", "read the checkpoint")
    noting(training_run.TrainingData, "open", "cache")
    noting(training_run.TrainingRun, "run_epoch", "train")
    noting(training_run.TrainingRun, "_accuracy", "validate, test")
    noting(training.TensorBoardLog, "__init__", "TensorBoard")
    noting(training.TensorBoardLog, "scalars", "TensorBoard")
    shared[0] = PLACES.index("start")


# What watches them


class Trial:
    """Starts and kills runs of so many processes in a folder.

    Args:
        folder: Where everything is; it holds nothing yet.
        processes: How many train together.
        seed: Of the moments.
    """

    def __init__(self, folder: Path, processes: int, seed: int = 0) -> None:
        self.folder, self.size = folder, processes
        self.rng = np.random.default_rng(seed)
        self.kills: Counter[str] = Counter()
        self.runs = self.resumed = self.alone = 0
        write_recordings(folder / "data", {"train": 10, "test": 3})
        self.place = folder / "place"
        self.place.write_bytes(b"\0")
        self.cache = folder / "cache"
        self.whole = folder / "whole"
        self._options = options(folder, processes)
        self._finish(self._start(self.whole))
        # Once more: the first one has waited for the server, and has built the cache.
        began = time.monotonic()
        self._finish(self._start(folder / "again"))
        self.seconds = time.monotonic() - began
        assert_same_run(self.whole, folder / "again")

    def _start(self, out: Path, aim: Aim | None = None) -> list[BaseProcess]:
        self.place.write_bytes(b"\0")
        job = {**self._options, "out": str(out)}, self.cache, self.place
        port = free_port()
        started = [
            FORKS.Process(target=child, args=(*job, rank, self.size, port, aim))
            for rank in range(self.size)
        ]
        for process in started:
            process.start()
        return started

    def _finish(self, started: list[BaseProcess]) -> None:
        for process in started:
            process.join(_STUCK_S)
            assert process.exitcode == 0, f"a process ended with {process.exitcode}"

    def run(self, kills: int, until: float = float("inf")) -> None:
        """Kill runs so often; the last one then goes on to its end.

        Args:
            kills: How often.
            until: No further kill from this moment of the monotonic clock on.
        """
        out = self.folder / "run"
        while self._left(kills, until) or out.exists():
            if self.rng.random() < 0.2:
                shutil.rmtree(self.cache, ignore_errors=True)
            self.resumed += (out / "last.pt").exists()
            left = self._left(kills, until)
            aim = self._aim() if left and self.rng.random() < 0.5 else None
            started = self._start(out, aim)
            seconds = 10 * self.seconds if aim else self.rng.uniform(0, self.seconds)
            if not left:
                self._finish(started)
            elif not self._end_at(started, seconds):
                self._check(out)
                continue
            assert_same_run(self.whole, out)
            shutil.rmtree(out)
            self.runs += 1

    def _left(self, kills: int, until: float) -> bool:
        return self.kills.total() < kills and time.monotonic() < until

    def _aim(self) -> Aim:
        place = int(self.rng.integers(1, len(PLACES)))
        return Aim(place, int(self.rng.integers(1, 5)), 10 ** self.rng.uniform(-6, -1.5))

    def _end_at(self, started: list[BaseProcess], seconds: float) -> bool:
        """Kill the processes after some time; return whether they had come to their end."""
        sentinels = [process.sentinel for process in started]
        end = time.monotonic() + seconds
        while sentinels and time.monotonic() < end:
            ended = wait(sentinels, max(0.0, end - time.monotonic()))
            sentinels = [sentinel for sentinel in sentinels if sentinel not in ended]
            if any(process.exitcode not in (None, 0) for process in started):
                break
        codes = [process.exitcode for process in started]
        if codes == [0] * self.size:
            return True
        assert started[0].exitcode in (None, 0, -signal.SIGALRM), f"processes ended with {codes}"
        self.kills[PLACES[self.place.read_bytes()[0]]] += 1
        # One of them first, as a rule; torchrun ends the others, somewhat later.
        order = [*range(self.size)] if codes[0] else self.rng.permutation(self.size)
        started[order[0]].kill()
        if self.size > 1 and self.rng.random() < 0.7:
            self.alone += 1
            time.sleep(self.rng.uniform(0, 0.3))
        for i in order[1:]:
            started[i].kill()
        for process in started:
            process.join()
        return False

    def _check(self, out: Path) -> None:
        """Assert that what is there can be read."""
        if (out / "last.pt").exists():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                load_checkpoint(out)


def free_port() -> int:
    """Return the number of a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Run the trial, and say where the kills struck."""
    parser = argparse.ArgumentParser(description="Kill runs at random moments, and resume them.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no further kill then")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills") as name:
        trial = Trial(Path(name), args.processes, args.seed)
        trial.run(args.kills, began + 60 * args.minutes)
    print(
        f"{args.processes} process(es): {trial.kills.total()} kills in {trial.runs} runs, "
        f"{trial.resumed} resumes, {time.monotonic() - began:.0f} s; no unreadable checkpoint, all "
        "ends the same bit for bit"
    )
    for place in PLACES:
        print(f"  {trial.kills[place]:4}  {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
