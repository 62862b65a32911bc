"""Runs that are killed or meet a full disk: nothing is lost, and a resume gives the same bits."""

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from sj_ottt.errors import InputError
from sj_ottt.run import training
from sj_ottt.run.checkpoint import load_checkpoint, write_file
from sj_ottt.run.config import TrainConfig
from tests.forks import FORKS
from tests.helpers import assert_same_run, write_recordings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The options and the folder of a run that nothing disturbed, in a process like the others."""
    recordings = write_recordings(tmp_path_factory.mktemp("bands"), {"train": 10, "test": 3})
    out = tmp_path_factory.mktemp("whole") / "run"
    options = {
        "model": "test_ottt_vgg",
        "data": str(recordings),
        "out": str(out),
        "steps": 2,
        "epochs": 3,
        "batch_size": 9,
        "lr": 0.01,
        "shift": 1,
        "drop_rate": 0.1,
        "val_fraction": 0.2,
        "device": "cpu",
    }
    assert in_process(options) == 0
    return options, out


def in_process(options, *, resume=False, **kwargs) -> int:
    """Train in a process of its own and return its exit code, negative if it was killed."""
    process = FORKS.Process(
        target=_child, args=(options, resume, os.environ["SJ_OTTT_CACHE"]), kwargs=kwargs
    )
    process.start()
    process.join()
    return process.exitcode


def _child(options, resume, cache_dir, kill_before_rename=None):
    os.environ["SJ_OTTT_CACHE"] = cache_dir
    torch.set_num_threads(1)
    rename, count = os.replace, 0

    def replace(source, target):
        nonlocal count
        count += str(target).startswith(options["out"])
        if count == kill_before_rename:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace
    training.train(TrainConfig(**options), resume=resume)


# Renames of a run of three epochs: last.pt; then three times previous.pt, last.pt, last and
# best.safetensors; then the two pictures and result.json.
@pytest.mark.slow
@pytest.mark.parametrize("rename", [2, 3, 4, 5, 6, 11, 13, 14, 16])
def test_killed_around_each_write_then_resumed_it_is_the_same_run(whole, tmp_path, rename):
    options, out = whole
    options = {**options, "out": str(tmp_path / "run")}
    assert in_process(options, kill_before_rename=rename) == -signal.SIGKILL
    state = load_checkpoint(options["out"])  # always loads
    assert state["epoch"] == min(rename // 4, 3)
    assert in_process(options, resume=True) == 0
    assert_same_run(out, options["out"])


@pytest.mark.slow
def test_killed_from_outside_again_and_again_it_is_the_same_run(whole, tmp_path):
    options, out = whole
    options = {**options, "out": str(tmp_path / "run")}
    checkpoint = tmp_path / "run" / "last.pt"
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    kills, done = 0, False
    while not done:
        process = FORKS.Process(
            target=_child, args=(options, checkpoint.exists(), os.environ["SJ_OTTT_CACHE"])
        )
        process.start()
        # Five kills at any moment, also before the first checkpoint; then it may end.
        process.join(rng.uniform(0.05, 0.4) if kills < 5 else None)
        done = process.exitcode == 0
        if not done:
            process.kill()
            process.join()
            kills += 1
        if checkpoint.exists():
            load_checkpoint(tmp_path / "run")
    assert kills
    assert_same_run(out, tmp_path / "run")


# A full disk


@pytest.mark.slow
def test_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on(whole, tmp_path):
    """The file size limit lets one epoch's small files through, then refuses the checkpoint."""
    options, out = whole
    options = {**options, "out": str(tmp_path / "run")}
    errors = tmp_path / "errors"
    process = FORKS.Process(
        target=_limited_child, args=(options, os.environ["SJ_OTTT_CACHE"], str(errors))
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    message = errors.read_text()
    assert "last.pt" in message and "--resume" in message and "\n" not in message
    assert load_checkpoint(options["out"])["epoch"] == 1
    assert not [p for p in Path(options["out"]).iterdir() if p.name.endswith(".tmp")]
    assert in_process(options, resume=True) == 0
    assert_same_run(out, options["out"])


def _limited_child(options, cache_dir, errors):
    os.environ["SJ_OTTT_CACHE"] = cache_dir
    torch.set_num_threads(1)
    save = training.TrainingRun.save

    def save_then_fill(self):
        if self.epoch == 2:
            size = (self.out / "last.pt").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
        save(self)

    training.TrainingRun.save = save_then_fill
    try:
        training.train(TrainConfig(**options))
    except InputError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        Path(errors).write_text(str(error))


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    if call == "write":
        monkeypatch.setattr("builtins.open", _failing_open(full))
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match="No space left") as caught:
        write_file(path, b"new")
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def _failing_open(full):
    def open_(path, mode):
        file = __import__("io").open(path, mode)

        class Full:
            __enter__ = lambda self: self  # noqa: E731
            __exit__ = lambda self, *args: file.close()  # noqa: E731
            write = staticmethod(full)

        return Full()

    return open_
