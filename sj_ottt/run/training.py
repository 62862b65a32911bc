"""The training run: epochs, checkpoints, pictures and the result.

What makes a run repeatable:

* Everything random in an epoch derives from the pair (seed, epoch), so a checkpoint at an epoch's
  end needs no generator states, and a run that was killed and resumed ends with the same bits (on
  the CPU, with the same number of threads) as one that was not.
* ``last.pt`` alone is the state of a run (`checkpoint`). The model files are written after it, and
  again on a resume: whenever a run is killed, its files fit together once it is resumed.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sj_ottt._files import only_writer
from sj_ottt.data import transforms
from sj_ottt.data.loading import batches
from sj_ottt.errors import InputError
from sj_ottt.learning import FPTT, share_buffers, train_step
from sj_ottt.run import finetune
from sj_ottt.run.build import (
    build_average,
    build_loss,
    build_mixed_precision,
    build_model,
    build_optimizer,
    build_trainer,
)
from sj_ottt.run.checkpoint import (
    ModelInfo,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
    write_model,
)
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.evaluation import count_right, measure, resolve_device
from sj_ottt.run.group import ALONE, Group, joined
from sj_ottt.run.result import device_name, read_result, versions, write_result
from sj_ottt.run.tensorboard_log import TensorBoardLog
from sj_ottt.run.training_data import TrainingData

# What may differ between a run and its resumption: where it runs, and where it and its recordings
# are kept. That the recordings are the same ones is checked by their names and sizes.
FREE_ON_RESUME = {"out", "device", "data"}


def configure(
    yaml_file: str | Path | None, overrides: Mapping[str, Any], *, resume: bool = False
) -> TrainConfig:
    """Put together the configuration of a run from a recipe and overrides.

    On a resume the run's own configuration stands in for the defaults, so its ``out`` is enough;
    what is named again must be the same, which `train` checks.

    Raises:
        InputError: A bad file, key or value; on a resume, no usable checkpoint.
    """
    config = TrainConfig.from_sources(yaml_file, overrides)
    if resume:
        saved = load_checkpoint(config.run.out)["config"]
        base = TrainConfig(**{**saved, "out": config.run.out})
        config = TrainConfig.from_sources(yaml_file, overrides, base=base)
    return config


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

    Raises:
        InputError: Bad data, an unknown model, a folder that holds another run, a checkpoint that
            is missing, damaged or of another configuration, a loss that is not finite, a full disk.
    """
    with joined(resolve_device(cfg.run.device)) as group:
        return _train(cfg, resume, group)


def _train(cfg: TrainConfig, resume: bool, group: Group) -> dict[str, Any]:
    out = Path(cfg.run.out)
    with contextlib.ExitStack() as closing:
        is_there = out.is_dir()
        if group.first and is_there:
            closing.enter_context(only_writer(out))
        state = load_checkpoint(out) if resume else None
        # A checkpoint of epoch 0 holds no work yet: a run that failed at once may start again.
        if not resume and (out / "last.pt").exists() and load_checkpoint(out)["epoch"]:
            raise InputError(
                f"{out} holds a run already; continue it with --resume, or choose --out"
            )
        run = TrainingRun(cfg, state, group)
        if state and run.done and (result := read_result(out)) is not None:
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
        while not run.done:
            row = run.run_epoch()
            if log is not None:
                log.scalars(row["epoch"], {k: v for k, v in row.items() if k != "epoch"})
            run.save()
        return run.finish()


class TrainingRun:
    """A run's data, model and progress; `train` drives it.

    Args:
        cfg: The run's configuration.
        state: The checkpoint to continue from; None starts anew.
        group: The processes that share the run; the first one writes.

    Attributes:
        cfg: As given.
        group: As given.
        out: The run's folder.
        device: Where it runs.
        data: What it learns from, validates on and tests on.
        model: On `device`.
        optimizer: Does the steps.
        trainer: What `train_step` updates with: the optimizer, or FPTT around it.
        ema: The average of the weights that is tested and kept, else None.
        loss_fn: The loss of one time step.
        autocast: Makes the context of a training step, for mixed precision.
        scaler: Scales the loss where mixed precision needs it, else None.
        data_digest: What a resume must find again, see `TrainingData.digest`.
        epoch: How many epochs are done.
        seconds: The time that they took.
        history: A row for each epoch.
        best: The best epoch so far, its ``val_accuracy`` and, as ``model``, its weights.

    Raises:
        InputError: Bad data, an unknown model, or a checkpoint of another configuration.
    """

    def __init__(
        self, cfg: TrainConfig, state: Mapping[str, Any] | None = None, group: Group = ALONE
    ) -> None:
        self.cfg, self.out, self.group = cfg, Path(cfg.run.out), group
        self.device = resolve_device(cfg.run.device)
        with group.one_after_the_first():  # which fills the cache
            self.data = TrainingData.open(cfg)
        torch.manual_seed(_seed_of(cfg.run.seed, 0))
        self.model = build_model(cfg, self.data, resumed=state is not None).to(self.device)
        self.optimizer = build_optimizer(cfg, self.model, self.data.steps)
        self.trainer = build_trainer(cfg, self.optimizer)
        self.ema = build_average(cfg, self.model)
        self.loss_fn = build_loss(cfg, self.data, self.device)
        self.autocast, self.scaler = build_mixed_precision(cfg, self.device)
        self.epoch, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"epoch": 0, "val_accuracy": None, "model": {}}
        self.data_digest = self.data.digest()
        if state is not None:
            self.restore(state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to the state of a checkpoint.

        Raises:
            InputError: It is of another configuration or other recordings.
        """
        self._check_same_run(state)
        self.model.load_state_dict(state["model"])
        self.trainer.load_state_dict(state["optimizer"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history, self.best = state["history"], state["best"]

    def _check_same_run(self, state: Mapping[str, Any]) -> None:
        # An option that the checkpoint lacks is newer than it: the run had the default.
        before = {**TrainConfig().flat(), **state["config"]}
        now = self.cfg.flat()
        changed = [k for k in now if k not in FREE_ON_RESUME and before[k] != now[k]]
        if changed:
            listed = ", ".join(f"{k} was {before[k]!r}, now {now[k]!r}" for k in changed)
            raise InputError(
                f"cannot resume {self.out} with another configuration: {listed}; "
                "give the same values or none, or start a new run in another --out"
            )
        if state["data_digest"] != self.data_digest:
            raise InputError(
                f"the recordings in {self.cfg.dataset.data} are not those that {self.out} was "
                "trained on; put them back, or start a new run in another --out"
            )

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or enough for an early stop."""
        stopped = finetune.stopped_early(self.history, self.cfg.optimisation.early_stop)
        return self.epoch >= self.cfg.optimisation.epochs or stopped

    def run_epoch(self) -> dict[str, Any]:
        """Train for one epoch, validate, and return the epoch's row of the history."""
        start = time.perf_counter()
        self.epoch += 1
        torch.manual_seed(_seed_of(self.cfg.run.seed, self.epoch, self.group.rank))
        loader = self._training_loader()
        title = f"epoch {self.epoch}/{self.cfg.optimisation.epochs}"
        with tqdm(
            total=len(loader),
            desc=title,
            unit="batch",
            dynamic_ncols=True,
            disable=not self.group.first,
        ) as bar:
            loss, train_accuracy = self._train_on(loader, bar)
            val_accuracy = self._validate()
            if val_accuracy is not None:
                means = {"loss": loss, "acc": train_accuracy, "val": val_accuracy}
                bar.set_postfix({name: f"{mean:.3f}" for name, mean in means.items()})
        row = {
            "epoch": self.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": loss,
            "train_accuracy": train_accuracy,
            "val_accuracy": val_accuracy,
        }
        self.history.append(row)
        # Without validation every epoch is the best so far; on a tie the later one, trained longer.
        if val_accuracy is None or val_accuracy >= (self.best["val_accuracy"] or 0.0):
            self.best = {
                "epoch": self.epoch,
                "val_accuracy": val_accuracy,
                "model": self._weights(),
            }
        self.seconds += time.perf_counter() - start
        return row

    def _training_loader(self) -> DataLoader:
        cfg = self.cfg
        order = torch.Generator().manual_seed(_seed_of(cfg.run.seed, self.epoch))
        return batches(
            self.data.train,
            cfg.optimisation.batch_size,
            cfg.run.workers,
            order,
            self.group.part(),
        )

    def _train_on(self, loader: DataLoader, bar: tqdm) -> tuple[float, float]:
        """Train on the batches of an epoch; return their mean loss and accuracy, of all samples."""
        head_only = self.epoch <= self.cfg.optimisation.head_epochs
        loss_sum, right, seen = 0.0, 0, 0
        self.model.train()
        with finetune.only_classifier(self.model) if head_only else contextlib.nullcontext():
            for loss, batch_right, size in self._train_batches(loader):
                loss_sum, right, seen = loss_sum + loss * size, right + batch_right, seen + size
                shown = max(seen, 1)  # a process may have seen none of the first batch
                means = {"loss": f"{loss_sum / shown:.3f}", "acc": f"{right / shown:.3f}"}
                bar.set_postfix(means, refresh=False)
                bar.update()
        loss_sum, all_right, n = self.group.added_up((loss_sum, right, seen), self.device)
        return loss_sum / n, all_right / n

    def _train_batches(self, loader: DataLoader) -> Iterator[tuple[float, int, int]]:
        """Train on each batch; yield its loss, its right answers and its size."""
        cutmix, learning = self.cfg.augmentation.cutmix, self.cfg.learning
        done, k = (self.epoch - 1) * len(loader), self.cfg.optimisation.accumulate
        for index, (x_seq, target) in enumerate(loader):
            x_seq, target = x_seq.to(self.device), target.to(self.device)
            if cutmix and torch.rand(()) < cutmix:
                x_seq, target = transforms.cutmix(x_seq, target, len(self.data.classes))
            self._set_learning_rate(done + index, self.cfg.optimisation.epochs * len(loader))
            with self.autocast():
                loss, logits = train_step(
                    self.model,
                    self.trainer,
                    x_seq,
                    target,
                    steps=self.data.shown_steps,
                    loss_fn=self.loss_fn,
                    update=learning.update,
                    backward_steps=learning.backward_steps,
                    scaler=self.scaler,
                    # The last update of an epoch may have fewer batches.
                    accumulation=(index % k, min(k, len(loader) - index + index % k))
                    if k > 1
                    else None,
                    clip_norm=self.cfg.optimisation.clip_norm,
                    ema=self.ema,
                )
            # The last batch may be smaller than there are processes.
            yield float(loss), count_right(logits, target) if len(target) else 0, len(target)

    def _set_learning_rate(self, batch: int, total: int) -> None:
        """Set the rates of a batch, counted from 0 over all epochs, of ``total``."""
        lr = self.cfg.optimisation.lr
        if self.cfg.optimisation.schedule == "cosine":
            lr *= 0.5 * (1 + math.cos(math.pi * batch / total))
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr_scale"] * lr

    def _validate(self) -> float | None:
        """Return the accuracy on what is kept aside, None where nothing is."""
        if not len(self.data.validation):
            return None
        with self.averaged() as model:
            return self._accuracy(model, self.data.validation)

    def _accuracy(self, model: nn.Module, dataset: Dataset) -> float:
        share_buffers(model)
        size, workers = self.cfg.optimisation.batch_size, self.cfg.run.workers
        loader = batches(dataset, size, workers, part=self.group.part())
        return measure(model, loader, self.data.shown_steps, self.device, self.group)[0]

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Yield the model that is tested and kept: with FPTT or `ema`, that of the averages."""
        fptt = self.trainer if isinstance(self.trainer, FPTT) else None
        with fptt.averaged() if fptt else contextlib.nullcontext():
            yield self.ema.module if self.ema else self.model

    def _weights(self) -> dict[str, torch.Tensor]:
        with self.averaged() as model:
            return _cpu_state(model)

    def save(self) -> None:
        """Write the checkpoint, then the model files that are made from it."""
        if not self.group.first:
            return
        state = {
            "config": self.cfg.flat(),
            "data_digest": self.data_digest,
            "epoch": self.epoch,
            "model": _cpu_state(self.model),
            "optimizer": self.trainer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "ema": self.ema.state_dict() if self.ema else None,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
        }
        save_checkpoint(self.out, state)
        self.export()

    def export(self) -> None:
        """Write ``last.safetensors`` and ``best.safetensors``; before the first epoch, nothing."""
        if not (self.history and self.group.first):
            return
        last, best = self._info(self.history[-1]), self._info(self.best)
        write_model(self.out / "last.safetensors", self._weights(), last)
        write_model(self.out / "best.safetensors", self.best["model"], best)

    def _info(self, epoch: Mapping[str, Any]) -> ModelInfo:
        """Describe the model of an epoch, given by its number and its ``val_accuracy``."""
        cfg, data = self.cfg, self.data
        return ModelInfo(
            model=cfg.network.model.partition(".")[0],
            classes=data.classes,
            in_chans=data.in_chans,
            data=cfg.dataset.data,
            frames=dataclasses.replace(cfg.frames, steps=data.steps, size=data.test.frame_size),
            readout=cfg.learning.readout,
            rule_variant=cfg.learning.rule_variant,
            epoch=epoch["epoch"],
            val_accuracy=epoch["val_accuracy"],
            **data.describe_input(),
        )

    def finish(self) -> dict[str, Any]:
        """Test the best and the last model; write the pictures and the result, and return it."""
        start = time.perf_counter()
        with self.averaged() as model:
            last_accuracy = self._accuracy(model, self.data.test)
        test_accuracy = last_accuracy
        if self.best["epoch"] != self.epoch:
            self.model.load_state_dict(self.best["model"])
            test_accuracy = self._accuracy(self.model, self.data.test)
        self.seconds += time.perf_counter() - start
        result = {
            "test_accuracy": test_accuracy,
            "last_test_accuracy": last_accuracy,
            "train_accuracy": self.history[-1]["train_accuracy"],
            "val_accuracy": self.best["val_accuracy"],
            "best_epoch": self.best["epoch"],
            "epochs": self.epoch,
            "seconds": round(self.seconds, 3),
            "n_train": len(self.data.train),
            "n_val": len(self.data.validation),
            "n_test": len(self.data.test),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "device": device_name(self.device),
            "world_size": self.group.size,
            "config": self.cfg.flat(),
            "data": self.data.augmented.info(),
            "versions": versions(),
            "history": self.history,
        }
        if self.group.first:
            examples = [sample.numpy() for sample in self.data.examples(10)]
            still = self.data.raw.still
            write_result(self.out, result, examples, self.data.classes[:10], still=still)
        return result


def _seed_of(seed: int, epoch: int, rank: int = 0) -> int:
    """Return the 64-bit seed of an epoch in a process; epoch 0 is the initialisation."""
    words = (seed, epoch, rank) if rank else (seed, epoch)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def _cpu_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
