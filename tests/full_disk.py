"""A disk that is full from some write on: the n-th, for every n until a command gets through.

    python -m tests.full_disk

Opening for writing, writing, flushing to the disk, renaming, linking and making a folder all count,
under the folder that is said to be full; removing works, as on a disk. The command has to end with
one line that says what cannot be written, and leaves nothing half-made; what was there before can
be read, and the same command, once there is space, ends as if nothing had been.
"""

import builtins
import contextlib
import errno
import io
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from sj_ottt.cli.main import main as sj_ottt
from sj_ottt.run.checkpoint import load_checkpoint
from tests.helpers import assert_same_run, write_recordings


class Disk:
    """Counts writes under a folder; from a certain one on, all fail.

    Args:
        root: The folder.
        full_at: The number of the first that fails, from 1; None for none.
    """

    def __init__(self, root: Path, full_at: int | None = None) -> None:
        self.root, self.full_at, self.writes = str(root), full_at, 0

    def write(self, path: Any) -> None:
        """Count a write; raise `OSError` where there is no space for it."""
        if isinstance(path, int) or not os.path.abspath(os.fspath(path)).startswith(self.root):
            return
        self.writes += 1
        if self.full_at is not None and self.writes >= self.full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def watched(self) -> Iterator["Disk"]:
        """Have this process's writes go through here."""
        disk, opened = self, io.open

        class Raw(io.FileIO):
            def write(self, data):
                disk.write(self.name)
                return super().write(data)

        def open_(file, mode="r", *args, **kwargs):
            if not set(mode) & set("wxa+") or isinstance(file, int):
                return opened(file, mode, *args, **kwargs)
            disk.write(file)
            if "b" not in mode:
                return io.TextIOWrapper(io.BufferedWriter(Raw(os.fspath(file), mode)), "utf-8")
            return io.BufferedWriter(Raw(os.fspath(file), mode.replace("b", "")))

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(path, *args, **kwargs):
                place = path
                if isinstance(path, int):  # an open file's number
                    place = os.readlink(f"/proc/self/fd/{path}")
                if function is mkdir or os.path.lexists(place):
                    disk.write(place)
                return function(path, *args, **kwargs)

            return call

        mkdir, names = os.mkdir, ("fsync", "replace", "rename", "link", "mkdir")
        with contextlib.ExitStack() as patches:
            for owner in (builtins, io):
                patches.enter_context(mock.patch.object(owner, "open", open_))
            for name in names:
                patches.enter_context(mock.patch.object(os, name, counted(getattr(os, name))))
            yield self


def command(argv: list[str]) -> tuple[int, list[str]]:
    """Run the command; return its code and what it said of errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("ignore")
        code = sj_ottt(argv)
    return code, [line for line in err.getvalue().splitlines() if line.startswith("sj-ottt: err")]


class Case(NamedTuple):
    """A command that writes.

    Attributes:
        argv: Its arguments, of the folder to work in.
        again: Those after it has failed, of the same folder.
        prepare: Fills the folder.
        check: Raises `AssertionError` where what is in the folder is not what it should be.
    """

    argv: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]
    prepare: Callable[[Path], None]
    check: Callable[[Path], None]


class Table:
    """The commands, and what each makes on a disk with space.

    Args:
        folder: Where everything is; it holds nothing yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = write_recordings(folder / "data", {"train": 4, "test": 2})
        self.whole = folder / "whole"
        os.environ["SJ_OTTT_CACHE"] = str(folder / "cache")
        self.half = folder / "half"
        assert command(self.train(self.half, epochs=2))[0] == 0  # what resumes goes on from here
        self._back_to_first_epoch(self.half)
        assert command(self.train(self.whole, epochs=2))[0] == 0
        self.cases = {
            "train": Case(
                lambda work: self.train(work / "run", epochs=2),
                self._resume,
                self._without_cache,
                self._check_run,
            ),
            "resume": Case(
                self._resume,
                self._resume,
                lambda work: shutil.copytree(self.half, work / "run") and None,
                self._check_run,
            ),
            "export": self._case("export --checkpoint {whole} --to nir --out", "made/a.nir"),
            "slice": self._case(
                "data slice {data}/train --label-from-folder --window 80ms --stride 80ms"
                " --min-events 1 --out",
                "set",
            ),
            "info": self._case("data info {data}/train/left --out", "info"),
            "view": self._case("data view {data}/train/left/0.npz --out", "view/a.html"),
            "adapt": self._case(
                "adapt --checkpoint {whole} --label-from-folder {data}/train/left --out", "run"
            ),
            "analyze": self._case("analyze --checkpoint {whole} --what rates --out", "report"),
        }

    def train(self, out: Path, epochs: int) -> list[str]:
        options = {"model": "test_ottt_vgg", "data": self.data, "out": out, "steps": 2}
        options |= {"epochs": epochs, "batch-size": 9, "val-fraction": 0, "optimizer": "adam"}
        options |= {"device": "cpu", "lr": 0.01, "drop-rate": 0.1}
        return ["train", *(word for k, v in options.items() for word in (f"--{k}", str(v)))]

    def _back_to_first_epoch(self, run: Path) -> None:
        """Leave a run as if it had been killed behind its first epoch."""
        os.replace(run / "previous.pt", run / "last.pt")
        for name in ("result.json", "curves.png", "frames.png"):
            (run / name).unlink()
        assert load_checkpoint(run)["epoch"] == 1

    def _resume(self, work: Path) -> list[str]:
        run = work / "run"
        if (run / "last.pt").exists():
            return ["train", "--resume", "--out", str(run)]
        return self.train(run, epochs=2)

    def _without_cache(self, work: Path) -> None:
        os.environ["SJ_OTTT_CACHE"] = str(work / "cache")

    def _check_run(self, work: Path) -> None:
        if (work / "run" / "result.json").exists():
            assert_same_run(self.whole, work / "run")
        elif (work / "run" / "last.pt").exists():
            load_checkpoint(work / "run")

    def _case(self, words: str, out: str) -> Case:
        """A command that makes something anew, and what in the folder it is to make."""
        words = words.format(data=self.data, whole=self.whole)

        def argv(work: Path) -> list[str]:
            return [*words.split(), str(work / out)]

        return Case(argv, argv, lambda work: None, lambda work: None)


def try_at(table: Table, name: str, full_at: int) -> bool:
    """Run a command on a disk that is full from a write on; return whether it got through.

    Raises:
        AssertionError: It did not end as it should, or not go on as it should.
    """
    case = table.cases[name]
    cache = os.environ["SJ_OTTT_CACHE"]
    with tempfile.TemporaryDirectory(dir=table.folder) as place:
        work = Path(place)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                case.prepare(work)
                with Disk(work, full_at).watched() as disk:
                    code, said = command(case.argv(work))
                if disk.writes < full_at:
                    assert code == 0
                    case.check(work)
                    return True
                assert code == 2, f"{name}, write {full_at}: code {code}, said {said}"
                assert len(said) == 1 and "No space left" in said[0], f"write {full_at}: {said}"
                left = list(work.rglob(".*.tmp"))
                assert not left, f"{name}, write {full_at}: left {left}"
                case.check(work)
                again = case.again(work)
                code, said = command(again)
                # All that was missing may have been the last look at the disk.
                done = code == 2 and ("exists already" in said[0] or "holds a model" in said[0])
                assert code == 0 or done, f"{name}, write {full_at}, again: {code}, {said}"
                case.check(work)
        finally:
            os.environ["SJ_OTTT_CACHE"] = cache
    return False


def main() -> int:
    """Try every write of every command."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="full-disk") as folder, mock.patch.dict(os.environ):
        table = Table(Path(folder))
        for name in sys.argv[1:] or table.cases:
            full_at = 1
            while not try_at(table, name, full_at):
                full_at += 1
            print(f"{name:8} {full_at - 1:4} writes, each the first for which there was no space")
    return 0


if __name__ == "__main__":
    sys.exit(main())
