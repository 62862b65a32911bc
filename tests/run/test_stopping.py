"""Runs that end in the middle of an epoch, and checkpoints that a disk has damaged."""

import io
import json
import multiprocessing
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch

from sj_ottt import InputError
from sj_ottt.cli.main import main
from sj_ottt.data.loading import BatchLoader, seed_of
from sj_ottt.errors import NotFiniteError
from sj_ottt.run import checkpoint, training, training_run
from sj_ottt.run.checkpoint import load_checkpoint, save_checkpoint
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.not_finite import BROKEN, first_not_finite, note_broken
from sj_ottt.run.stopping import Every, RunStopped, Stopping
from sj_ottt.run.training_run import TrainingRun
from tests.helpers import assert_same_run
from tests.run.helpers import train


def stop_after(monkeypatch, batches: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal once so many batches of the run are done."""
    add, count = training.TrainingRun.run_epoch, 0

    def run_epoch(self, pause):
        def pause_(pause=pause):
            nonlocal count
            count += 1
            if count == batches:
                os.kill(os.getpid(), number)
            pause()

        return add(self, pause_)

    monkeypatch.setattr(training.TrainingRun, "run_epoch", run_epoch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "workers"),
    [
        ({}, 0),
        ({"accumulate": 2, "ema": 0.5}, 0),
        ({"amp": "float16"}, 0),
        ({"cutmix": 0.5, "backward_steps": 2}, 0),
        ({"augment_on": "device", "drop_events": 0.3, "time_jitter": 0.5}, 0),
        # Processes that load draw the shifts, and nothing else.
        ({}, 2),
        ({"cutmix": 0.5, "backward_steps": 2}, 2),
    ],
)
def test_stopped_in_the_middle_of_an_epoch_it_is_the_same_run(
    options, tmp_path, monkeypatch, changes, workers
):
    options = {**options, **changes, "workers": workers, "batch_size": 4}
    train(options)
    again = {**options, "out": str(tmp_path / "again")}
    stops = 0
    for batches_done in (2, 3, None):
        if batches_done:
            stop_after(monkeypatch, batches_done)
            with pytest.raises(
                RunStopped, match=r"SIGTERM: saved .* in epoch [12], after"
            ) as stopped:
                train(again, resume=stops > 0)
            monkeypatch.undo()
            stops += 1
            assert stopped.value.exit_code == 143
            assert load_checkpoint(again["out"])["middle"]["batch"]
        else:
            train(again, resume=True)
    assert_same_run(options["out"], again["out"])


def test_exit_codes_and_advice(options, monkeypatch, capsys):
    arguments = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
    stop_after(monkeypatch, 1, signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments])
    assert stopped.value.code == 130
    assert "SIGINT: saved" in (said := capsys.readouterr().err)
    assert f"continue with: sj-ottt train --resume --out {options['out']}" in said
    monkeypatch.undo()
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--resume", "--out", options["out"], "--time-limit", "0.0001"])
    assert stopped.value.code == 75 and "time limit: saved" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds a run already"):
        train(options)
    assert main(["train", "--resume", "--out", options["out"], "--time-limit", "60"]) == 0


def test_torchrun_does_not_start_again_what_is_out_of_time(monkeypatch):
    for restarts, codes in ((0, [75, 143]), (3, [0, 143])):
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(restarts))
        assert [RunStopped("", code, "").exit_code for code in (75, 143)] == codes


@pytest.fixture
def interrupted():
    """SIGINT as Python has it, where whoever runs the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_does_what_it_always_did(interrupted):
    before = signal.getsignal(signal.SIGTERM)
    with Stopping() as stopping:
        assert stopping.code == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.code == 130 and stopping.why(130) == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_every_so_many_minutes():
    now = 0.0
    every = Every(2, lambda: now)
    found = []
    for now in (0, 119, 120, 121, 239, 240, 1000, 1001):  # noqa: B007, the clock reads it
        found.append(every.due())
    assert found == [False, False, True, False, False, True, True, False]


def test_an_update_of_more_batches_than_an_epoch_has_does_not_keep_a_run_from_stopping(options):
    with pytest.raises(RunStopped, match=r"time limit: saved .* in epoch 1, after 3 batches"):
        train(options, accumulate=8, time_limit=1e-9)
    assert train(options, accumulate=8, resume=True)["epochs"] == options["epochs"]


@pytest.mark.slow
def test_saves_within_an_epoch(options, monkeypatch):
    saved = []
    save = TrainingRun.save

    def note(self):
        save(self)
        saved.append(load_checkpoint(self.out)["middle"]["batch"])

    monkeypatch.setattr(TrainingRun, "save", note)
    train(options, save_every=1e-9, epochs=1, batch_size=6)
    assert saved == [0, 1, 2, 3, 4, 0]


def test_random_numbers_are_of_the_sample(recordings, monkeypatch):
    """Whoever loads it, and whatever was skipped before it."""
    from sj_ottt.data import EventFolder
    from sj_ottt.data.transforms import RandomShift

    dataset = EventFolder(recordings, 2, split="train").with_transform(RandomShift(6))

    def order():
        return torch.Generator().manual_seed(1)

    state = torch.get_rng_state()
    with monkeypatch.context() as patch:  # a GPU's random numbers are none of a sample's business
        patch.setattr(torch.cuda, "manual_seed_all", None)
        whole = list(BatchLoader(dataset, batch_size=4, workers=0).one_pass(0, order(), seed=7))
    assert torch.equal(torch.get_rng_state(), state)
    loader = BatchLoader(dataset, batch_size=4, workers=2)
    for skip in (0, 3, 0):
        some = loader.one_pass(0, order(), seed=7, skip=skip)
        assert len(some) == len(whole) - skip
        for a, b in zip(some, whole[skip:], strict=True):
            assert all(map(torch.equal, a, b))
    given_up = iter(loader.one_pass(0, order(), seed=9))
    next(given_up)
    other, again = (list(loader.one_pass(0, order(), seed=seed)) for seed in (8, 7))
    assert not torch.equal(other[0][0], whole[0][0])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(again, whole, strict=True))
    assert len({seed_of(*words) for words in ((0, 1), (1, 2), (2, 1), (1,))}) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_one_loader_serves_several_data_sets_one_pass_at_a_time(recordings, workers):
    """With the same processes; what an older pass would give is not what it was asked for."""
    from sj_ottt.data import EventFolder

    train, test = (EventFolder(recordings, 2, split=split) for split in ("train", "test"))
    before = set(multiprocessing.active_children())
    loader = BatchLoader(train, test, batch_size=4, workers=workers)
    for which, data in ((0, train), (1, test), (0, train)):
        samples = torch.cat([x.transpose(0, 1) for x, _ in loader.one_pass(which)])
        assert torch.equal(samples, torch.stack([data[i][0] for i in range(len(data))]))
    assert len(set(multiprocessing.active_children()) - before) == workers
    older = iter(loader.one_pass())
    next(older)
    assert len(list(loader.one_pass(1))) == 3
    with pytest.raises(RuntimeError, match="another pass of the same loader has begun"):
        list(older)
    a, b = loader.one_pass(0, seed=1), loader.one_pass(0, seed=2)
    with pytest.raises(RuntimeError, match="another pass"):
        list(zip(a, a, strict=True))
    assert len(list(a)) == len(list(b)) == len(list(a)) == 8  # one after the other


def test_a_run_has_no_more_processes_than_it_was_given(options, monkeypatch):
    before, counts, real = set(multiprocessing.active_children()), [], training_run.measure

    def counted(*args):
        measured = real(*args)
        counts.append(len(set(multiprocessing.active_children()) - before))
        return measured

    monkeypatch.setattr(training_run, "measure", counted)
    train({**options, "workers": 2})
    assert len(counts) >= 3 and set(counts) == {2}


def test_processes_that_load_answer_to_no_signal_to_all_and_to_one_of_their_own(recordings):
    from sj_ottt.data import EventFolder

    before = set(multiprocessing.active_children())

    def loading():
        return BatchLoader(EventFolder(recordings, 2, split="train"), batch_size=2, workers=2)

    loader = loading()
    begun = iter(loader.one_pass())
    found = [next(begun), next(begun)]  # one from each, which has begun
    started = set(multiprocessing.active_children()) - before
    groups = {os.getpgid(process.pid) for process in started}
    assert len(groups) == 2 and os.getpgrp() not in groups
    found += begun
    assert len(found) == len(list(loader.one_pass())) == 15
    assert set(multiprocessing.active_children()) - before == started  # for the next pass
    del begun, loader
    for process in started:
        process.join(10)
        assert process.exitcode == 0

    begun = iter(loading().one_pass())
    found = [next(begun), next(begun)]
    for process in set(multiprocessing.active_children()) - before:
        process.terminate()
        process.join(10)
        assert process.exitcode is not None


# Damaged checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    state = {
        "epoch": 1,
        "middle": {"batch": 0},
        "model": {"w": torch.arange(6.0)},
        "config": {"lr": 0.1},
        "best": [None],
    }
    save_checkpoint(tmp_path, {**state, "epoch": 0})
    save_checkpoint(tmp_path, state)
    return tmp_path, state


def test_a_checkpoint_damaged_in_any_byte_gives_way_to_the_one_before(checkpoints):
    folder, state = checkpoints
    path = folder / "last.pt"
    data = path.read_bytes()
    assert load_checkpoint(folder)["epoch"] == 1
    used = 0
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 0x55
        path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = load_checkpoint(folder)
        if found["epoch"] == 0:  # the one before
            used += 1
            ours = [w for w in said if "last.pt is damaged" in str(w.message)]
            assert len(ours) == 1 and "previous.pt" in str(ours[0].message)
        else:  # a byte that holds nothing
            assert torch.equal(found["model"]["w"], state["model"]["w"])
            assert {**found, "model": 0, "format": 0} == {**state, "model": 0, "format": 0}
    assert used > len(data) // 4


def test_without_digests_some_damage_would_go_unseen():
    """The control: why they are there."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(6.0)}, buffer)
    data, wrong = buffer.getvalue(), 0
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 0x55
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.load(io.BytesIO(damaged), weights_only=True)
            wrong += not torch.equal(found["w"], torch.arange(6.0))
        except Exception:
            continue
    assert wrong


def test_a_damaged_checkpoint_takes_no_good_ones_place(checkpoints, monkeypatch):
    """Also where the disk is full just then."""
    folder, state = checkpoints
    (folder / "last.pt").write_bytes(b"no checkpoint")

    def full(*_):
        raise InputError("the disk is full")

    monkeypatch.setattr(checkpoint, "write_file", full)
    with pytest.raises(InputError, match="disk is full"):
        save_checkpoint(folder, {**state, "epoch": 2})
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="is damaged"):
        assert load_checkpoint(folder)["epoch"] == 0
    for epoch in (2, 3):
        save_checkpoint(folder, {**state, "epoch": epoch})
    (folder / "last.pt").write_bytes(b"no checkpoint")
    with pytest.warns(UserWarning, match="is damaged"):
        assert load_checkpoint(folder)["epoch"] == 2


def test_both_damaged_is_refused(checkpoints):
    folder, _ = checkpoints
    for name in ("previous.pt", "last.pt"):
        (folder / name).write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"last\.pt is damaged .* another --out"):
        load_checkpoint(folder)


# Losses that are not finite


@pytest.mark.parametrize("name", ["fc.weight", "the first"])
def test_what_is_not_finite_is_named(options, name):
    """Also where neurons hide it: a membrane that is not a number never fires."""
    run = TrainingRun(TrainConfig(**options))
    if name == "the first":
        name = next(name for name, p in run.model.named_parameters() if p.dim() > 1)
    with torch.no_grad():
        run.model.get_parameter(name).fill_(float("nan"))
    words = rf"epoch 1, batch 1: .*time step 0 is nan.* the parameter {name} is"
    with pytest.raises(NotFiniteError, match=words if "fc" in name else f"parameter {name} is no"):
        run.run_epoch()


def test_weights_that_are_not_finite_are_not_saved(options, monkeypatch):
    """Every resume would end at them."""
    step, count = training_run.train_step, 0

    def overflows(model, *args, **kwargs):
        nonlocal count
        count += 1
        done = step(model, *args, **kwargs)
        if count == 3:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] = float("nan")
        return done

    monkeypatch.setattr(training_run, "train_step", overflows)
    options = {**options, "batch_size": 4, "save_every": 1e-9}
    with pytest.raises(NotFiniteError, match=r"epoch 1: the parameter .* the last checkpoint is"):
        train(options)
    state = load_checkpoint(options["out"])
    assert state["middle"]["batch"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_batch_that_is_not_finite_is_skipped(options, monkeypatch):
    run = TrainingRun(TrainConfig(**options, on_nan="skip"))
    run.out.mkdir()
    loss_fn, count = run.loss_fn, 0

    def sometimes(y, target):
        nonlocal count
        count += 1
        return loss_fn(y, target) * (float("inf") if 4 <= count <= 6 else 1.0)

    run.loss_fn = sometimes
    with pytest.warns(UserWarning, match="batch 2: the loss of time step 0 is inf.*is skipped"):
        row = run.run_epoch()
    assert row["loss"] < 10 and all(p.isfinite().all() for p in run.model.parameters())
    (line,) = (run.out / BROKEN).read_text().splitlines()
    broken = json.loads(line)
    assert (broken["epoch"], broken["batch"], broken["skipped"]) == (1, 2, True)
    assert broken["loss"].startswith("the loss of time step 0 is inf")
    assert broken["where"] == "all layers give finite values: the loss itself overflowed"


@pytest.mark.parametrize(("accumulate", "paused"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6])])
def test_a_skipped_batch_counts(options, monkeypatch, accumulate, paused):
    """Or a run that is saved after it would go on at a batch that it has seen."""
    cfg = TrainConfig(
        **{**options, "batch_size": 4, "accumulate": accumulate, "on_nan": "skip", "epochs": 1}
    )
    run = TrainingRun(cfg)
    step, count, found = training_run.train_step, 0, []

    def breaks(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 2:
            raise NotFiniteError("broken")
        return step(*args, **kwargs)

    monkeypatch.setattr(training_run, "train_step", breaks)
    others = ", and those before it that share its update" if accumulate > 1 else ""
    with pytest.warns(UserWarning, match=f"batch 2: broken.* is skipped{others}$"):
        run.run_epoch(lambda: found.append(run.middle.batch))
    assert found == paused


def test_the_batch_that_ends_a_run_is_written_down(options):
    run = TrainingRun(TrainConfig(**options))
    run.out.mkdir()
    run.save()
    with torch.no_grad():
        run.model.get_parameter("fc.weight").fill_(float("nan"))
    with pytest.raises(NotFiniteError):
        run.run_epoch()
    said = {"epoch": 1, "batch": 1, "where": "the parameter fc.weight is not finite"}
    broken = json.loads((run.out / BROKEN).read_text())
    assert said.items() <= broken.items() and not broken["skipped"]
    note_broken(run.out, 1, epoch=2)
    note_broken(run.out, 0, epoch=3)
    assert [path.name for path in sorted(run.out.glob("not_finite*"))] == [BROKEN, f"{BROKEN}.1"]
    assert len((run.out / BROKEN).read_text().splitlines()) == 2


def test_the_first_layer_that_breaks():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2), torch.nn.Linear(2, 2))
    x_seq = torch.ones(2, 5, 3)
    assert "the loss itself" in first_not_finite(net, x_seq, None)
    with torch.no_grad():
        net[1].weight.fill_(3e38)
        net[0].bias.fill_(10.0)
    assert first_not_finite(net, x_seq, None).startswith("1 (Linear) is the first layer to break")
    assert not net[0]._forward_hooks


def test_the_options_are_in_the_result(finished):
    out, _ = finished
    config = json.loads((Path(out) / "result.json").read_text())["config"]
    assert config["save_every"] == 10.0 and config["on_nan"] == "stop"
