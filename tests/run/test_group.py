"""Runs in several processes, as ``torchrun`` starts them: the same run as in one."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sj_ottt import InputError
from sj_ottt._files import only_writer
from sj_ottt.cli.main import main
from sj_ottt.data.loading import BatchLoader
from sj_ottt.run import training
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.group import _agree_on_a_name
from tests.forks import FORKS
from tests.helpers import assert_same_run, weights
from tests.run.kills import child, free_port, group_environment

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(*arguments: str, command=TWO) -> subprocess.Popen:
    """Start the command as a user does."""
    interface = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return subprocess.Popen(
        [*command, "-m", "sj_ottt", *arguments],
        env={**os.environ, **interface, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *arguments: str) -> str:
    """Run the command in two processes that have their imports done; return what both say."""
    said = [folder / f"{rank}.txt" for rank in range(2)]
    port = free_port()
    both = [
        FORKS.Process(target=command_child, args=(arguments, said[rank], rank, port))
        for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    text = "".join(path.read_text() for path in said)
    assert [process.exitcode for process in both] == [0, 0], text[-3000:]
    return text


def command_child(arguments: tuple[str, ...], said: Path, rank: int, port: int) -> None:
    with open(said, "w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    group_environment(rank, 2, port)
    torch.set_num_threads(1)
    sys.exit(main(arguments))


@pytest.fixture
def flags(recordings) -> dict[str, object]:
    """A run without dropout and shifts, which each process would draw for itself."""
    return {
        "model": "test_ottt_vgg",
        "data": str(recordings),
        "steps": 3,
        "epochs": 2,
        "batch_size": 5,  # of 24 samples: the last batch has 4
        "lr": 0.05,
        "device": "cpu",
        "val_fraction": 0.2,
    }


def as_arguments(flags) -> list[str]:
    named = ((f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items())
    return [word for pair in named for word in pair]


@pytest.mark.slow
def test_two_processes_are_one_run(flags, tmp_path):
    """Weights equal to rounding, also where the second epoch has another number of processes."""
    alone = training.train(TrainConfig(**flags, out=str(tmp_path / "one")))
    out = run(tmp_path, "train", *as_arguments(flags), "--out", str(tmp_path / "two"))
    assert out.count("test accuracy") == 1
    # Begun by one process, and carried on by two.
    begun = training.TrainingRun(TrainConfig(**flags, out=str(tmp_path / "changed")))
    begun.out.mkdir()
    begun.run_epoch()
    begun.save()
    train_in_two(flags, begun.out)
    start_weights = {k: v.clone() for k, v in weights(tmp_path / "one").items()}
    for name in ("two", "changed"):
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert result["world_size"] == 2
        for row, expected in zip(result["history"], alone["history"], strict=True):
            assert row == pytest.approx(expected, rel=1e-5)
        assert result["test_accuracy"] == alone["test_accuracy"]
        for key, value in weights(tmp_path / name).items():
            assert torch.allclose(value, start_weights[key], rtol=1e-5, atol=1e-6), key
    table = run(tmp_path, "eval", "--checkpoint", str(tmp_path / "two"), "--split", "train")
    assert table.count("accuracy") == 1 and " 30 " in table
    assert alone["world_size"] == 1


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_run_resumes(flags, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", *as_arguments({**flags, "epochs": 200}), "--out", str(out)]
    process = start(*arguments)
    wait_for(out / "last.safetensors")
    _, second = children(process)
    os.kill(second, signal.SIGKILL)
    began = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - began < 40 and process.returncode != 0
    assert "SIGKILL" in error or "Signal 9" in error
    assert error.count("sj-ottt: error: process 0 of 2 lost another one, whose own message") == 1
    assert not list(out.glob("*.tmp"))
    # One process goes on from the last checkpoint.
    state = torch.load(out / "last.pt", weights_only=True)
    config = training.configure(None, {"out": str(out)}, resume=True)
    resumed = training.TrainingRun(config, state)
    assert 1 <= resumed.epoch < 200 and resumed.run_epoch()["epoch"] == state["epoch"] + 1


@pytest.mark.slow
def test_torchrun_starts_again_what_a_killed_process_has_ended(flags, tmp_path):
    """It goes on from the last checkpoint, within the epoch, and ends with the same bits."""
    flags = {**flags, "epochs": 5, "drop_rate": 0.1, "save_every": 1e-9}
    out = tmp_path / "run"
    elastic = [*TWO, "--max-restarts", "2"]
    process = start("train", *as_arguments(flags), "--out", str(out), command=elastic)
    wait_for(out / "last.pt")
    first = children(process)
    os.kill(first[1], signal.SIGKILL)
    began = time.monotonic()
    while set(children(process)) & set(first) and time.monotonic() - began < 60:
        time.sleep(0.05)
    ended = time.monotonic() - began
    _, error = process.communicate(timeout=180)
    assert process.returncode == 0, error[-3000:]
    assert ended < 40, f"the other process ended after {ended:.0f} s"
    assert "SIGKILL" in error or "Signal 9" in error or "exitcode: -9" in error
    assert_same_run(train_in_two(flags, tmp_path / "whole"), out)
    assert json.loads((out / "result.json").read_text())["world_size"] == 2


def train_in_two(flags: dict[str, object], out: Path) -> Path:
    """Train, or go on, in two processes that have their imports done, and that nobody kills."""
    place = out.with_name("place")
    place.write_bytes(b"\0")
    job = {**flags, "out": str(out)}, out.with_name("cache"), place
    port = free_port()
    both = [FORKS.Process(target=child, args=(*job, rank, 2, port, None)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    return out


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} does not appear")


def children(process: subprocess.Popen) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    )
    return [int(number) for number in found.stdout.split()]


def test_parts_of_batches_are_the_batches(recordings):
    from sj_ottt.data import EventFolder

    dataset = EventFolder(recordings, 2, split="train")
    for size in (1, 2, 4, 7):
        loaders = [
            BatchLoader(dataset, batch_size=4, workers=0, part=(rank, size)).one_pass(
                0, torch.Generator().manual_seed(3)
            )
            for rank in range(size)
        ]
        whole = BatchLoader(dataset, batch_size=4, workers=0).one_pass(
            0, torch.Generator().manual_seed(3)
        )
        for one, *parts in zip(whole, *loaders, strict=True):
            x = torch.empty_like(one[0])
            labels = torch.empty_like(one[1])
            for rank, (x_part, y_part) in enumerate(parts):
                x[:, rank::size], labels[rank::size] = x_part, y_part
                assert x_part.shape[2:] == x.shape[2:]
            assert torch.equal(x, one[0]) and torch.equal(labels, one[1])


@pytest.mark.slow
def test_a_folder_has_one_writer(flags, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    holding = "import sys, time, pathlib; from sj_ottt._files import only_writer\n"
    holding += "with only_writer(pathlib.Path(sys.argv[1])):\n print(flush=True); time.sleep(60)"
    other = subprocess.Popen(
        [sys.executable, "-c", holding, str(out)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    other.stdout.readline()
    with pytest.raises(InputError, match="run: another process is writing to it; wait"):
        training.train(TrainConfig(**flags, out=str(out)))
    other.kill()  # which leaves no lock behind
    other.wait()
    with only_writer(out):
        pass
    assert not list(out.iterdir())


def agreed(store, size: int) -> list[str]:
    """Have so many threads agree on a name, the first of them the last to come."""
    with ThreadPoolExecutor(size) as pool:
        later = [pool.submit(_agree_on_a_name, store, rank, size) for rank in range(1, size)]
        time.sleep(0.05)
        first = pool.submit(_agree_on_a_name, store, 0, size)
        return [found.result(10) for found in (first, *later)]


def test_processes_that_start_again_agree_on_a_new_name():
    store = dist.HashStore()
    names = [agreed(store, 3) for _ in range(3)]
    assert all(len(set(start)) == 1 for start in names) and len({n for n, *_ in names}) == 3
    # One that had said its part, and was killed before it was confirmed.
    store.set("sj_ottt/repeated/1", f"{names[-1][0]} 1234")
    assert len(set(agreed(store, 3))) == 1
