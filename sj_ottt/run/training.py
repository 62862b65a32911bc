"""The training run: epochs, checkpoints, pictures and the result.

What makes a run repeatable:

* Everything random derives from the seed, the epoch and the number of the batch or the sample, so
  a checkpoint needs no generator states, and a run that was killed and resumed ends with the same
  bits (on the CPU, with the same number of threads) as one that was not.
* ``last.pt`` alone is the state of a run (`checkpoint`). The model files are written after it, and
  again on a resume: whenever a run is killed, its files fit together once it is resumed.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sj_ottt._files import only_writer
from sj_ottt.errors import InputError
from sj_ottt.run.checkpoint import (
    load_checkpoint,
    remove_leftovers,
)
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.evaluation import resolve_device
from sj_ottt.run.group import Group, joined
from sj_ottt.run.result import read_result
from sj_ottt.run.stopping import Every, RunStopped, Stopping
from sj_ottt.run.tensorboard_log import TensorBoardLog
from sj_ottt.run.training_run import TrainingRun


def configure(
    yaml_file: str | Path | None, overrides: Mapping[str, Any], *, resume: bool = False
) -> TrainConfig:
    """Put together the configuration of a run from a recipe and overrides.

    On a resume the run's own configuration stands in for the defaults, so its ``out`` is enough;
    what is named again must be the same, which `train` checks.

    Raises:
        InputError: A bad file, key or value; on a resume, no usable checkpoint.
    """
    base = None
    if resume:
        out = TrainConfig.out_of(yaml_file, overrides)
        base = TrainConfig(**{**load_checkpoint(out)["config"], "out": out})
    return TrainConfig.from_sources(yaml_file, overrides, base=base)


def train(cfg: TrainConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train a model and test it.

    The folder ``cfg.run.out`` then holds ``result.json`` (what is returned), the models
    ``best.safetensors`` and ``last.safetensors``, the pictures ``curves.png`` and ``frames.png``,
    the checkpoint ``last.pt`` and TensorBoard scalars in ``tb``. Part of the training samples is
    kept aside to choose the best epoch; the test part is only used at the end, on that epoch's
    model and on the last one.

    Args:
        cfg: The run's configuration.
        resume: Continue from ``last.pt``; a finished run returns its result again.

    Returns:
        The result, in values that JSON can hold: accuracies, counts, times, what the run was made
        with, and its ``history``.

    SIGTERM, SIGINT and the end of a time limit save the run and end it, behind the batch or the
    validation that is under way.

    Raises:
        InputError: Bad data, an unknown model, a folder that holds another run or that another
            process writes to, a checkpoint that is missing, damaged or of another configuration, a
            loss that is not finite, a full disk.
        RunStopped: The run was asked to stop, and has saved itself.
    """
    with joined(resolve_device(cfg.run.device)) as group, _convolutions_tuned():
        return _train(cfg, resume, group)


@contextlib.contextmanager
def _convolutions_tuned() -> Iterator[None]:
    """Let a GPU choose the fastest convolutions by trying them: all batches have one shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _train(cfg: TrainConfig, resume: bool, group: Group) -> dict[str, Any]:
    out = Path(cfg.run.out)
    with contextlib.ExitStack() as closing:
        is_there = out.is_dir()
        if group.first and is_there:
            closing.enter_context(only_writer(out))
        if not resume:
            _refuse_other_work(out)
        state = load_checkpoint(out) if resume else None
        run = TrainingRun(cfg, state, group)
        if state and run.done:
            result = read_result(out)
            if result is not None and result.get("history") == run.history:  # or it is another's
                return result
        if group.first and not is_there:  # a run that cannot begin leaves no folder
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"cannot make the folder {out}: {error.strerror}; choose --out"
                ) from error
            closing.enter_context(only_writer(out))
        if group.first:
            remove_leftovers(out)
        if resume:
            run.export()
        else:
            run.save()
        log = None
        if group.first and not run.done:
            log = TensorBoardLog(out / "tb", purge_step=run.epoch + 1)
            closing.enter_context(contextlib.closing(log))
        with Stopping(cfg.run.time_limit) as stopping:
            pause = Pause(run, stopping)
            while not run.done:
                row = run.run_epoch(pause)
                if log is not None:
                    log.scalars(row["epoch"], {k: v for k, v in row.items() if k != "epoch"})
                run.save()
        return run.finish()


def _refuse_other_work(out: Path) -> None:
    """Refuse a folder in which a new run would overwrite what is not its own.

    A run that failed at once may start again.

    Raises:
        InputError: It holds a run, or what is left of one, or a model.
    """
    if (out / "last.pt").exists():
        state = load_checkpoint(out)
        if state["epoch"] or state.get("middle", {}).get("batch"):
            raise InputError(
                f"{out} holds a run already; continue it with --resume, or choose --out"
            )
    for name in ("result.json", "best.safetensors", "last.safetensors"):
        if (out / name).exists():
            raise InputError(
                f"{out / name} is there already, and a new run would overwrite it; move it to "
                "another folder, or choose --out"
            )


class Pause:
    """Saves a run between two updates where it is time to, and ends it where it was asked to stop.

    Args:
        run: The run.
        stopping: Knows whether it was asked to stop.
    """

    def __init__(self, run: TrainingRun, stopping: Stopping) -> None:
        self._run, self._stopping = run, stopping
        self._every = Every(run.cfg.run.save_every)

    def __call__(self) -> None:
        """Save the run, or end it, or do nothing.

        Raises:
            NotFiniteError: It is to be saved, and a parameter is not finite.
            RunStopped: It was asked to stop.
        """
        run = self._run
        # All processes save and stop at the same batch, whichever of them was asked.
        code = run.group.largest(self._stopping.code, run.device)
        due = run.group.largest(run.group.first and self._every.due(), run.device)
        if code or due:
            run.check_finite()
            run.save()
        if code:
            where = f"{run.out} in epoch {run.epoch + 1}, after {run.middle.batch} batches"
            raise RunStopped(self._stopping.why(code), code, where)
