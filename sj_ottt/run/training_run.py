"""The state of a training run, and its epochs; `sj_ottt.run.training` drives it."""

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from sj_ottt.data import transforms
from sj_ottt.data.loading import BatchLoader, Pass, seed_of, to_device
from sj_ottt.errors import InputError, NotFiniteError
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
from sj_ottt.run.checkpoint import ModelInfo, digest, save_checkpoint, write_model
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.evaluation import SEED, count_right, measure, resolve_device
from sj_ottt.run.group import ALONE, Group
from sj_ottt.run.not_finite import first_not_finite, note_broken
from sj_ottt.run.result import device_name, versions, write_result
from sj_ottt.run.resuming import check_same_run
from sj_ottt.run.silence import warn_of_silence
from sj_ottt.run.training_data import TrainingData


@dataclasses.dataclass
class Progress:
    """How far an epoch has come.

    Attributes:
        batch: How many batches are done; all processes have as many.
        loss_sum: Sum of the losses of their samples, as this process has seen them.
        right: How many were labelled rightly.
        seen: How many there were.
    """

    batch: int = 0
    loss_sum: float = 0.0
    right: float = 0
    seen: float = 0

    def add(self, loss: float, right: int, size: int) -> None:
        """Count one more batch, of ``size`` samples of a mean loss."""
        self.batch += 1
        self.loss_sum += loss * size
        self.right += right
        self.seen += size

    def sums(self) -> tuple[float, float, float]:
        """Return what is added up over processes."""
        return self.loss_sum, self.right, self.seen

    def means(self) -> dict[str, str]:
        """Return what the progress bar shows."""
        n = max(self.seen, 1)  # a process may have seen none of the first batch
        return {"loss": f"{self.loss_sum / n:.3f}", "acc": f"{self.right / n:.3f}"}


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
        pull_digest: The same of the weights that it is pulled to; None without a pull.
        epoch: How many epochs are done.
        middle: How far the next one has come.
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
        torch.manual_seed(seed_of(cfg.run.seed, 0))
        self.model = build_model(cfg, self.data, resumed=state is not None).to(self.device)
        # Where there is a pull, the model begins at the weights that it is pulled to.
        pulled = cfg.network.pull_to is not None
        self.pull_digest = digest(self.model.state_dict()) if pulled else None
        self.optimizer = build_optimizer(cfg, self.model, self.data.steps)
        self.trainer = build_trainer(cfg, self.optimizer)
        self.ema = build_average(cfg, self.model)
        self.loss_fn = build_loss(cfg, self.data, self.device)
        self.autocast, self.scaler = build_mixed_precision(cfg, self.device)
        self.epoch, self.seconds = 0, 0.0
        self.middle = Progress()
        self._begun: float | None = None
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"epoch": 0, "val_accuracy": None, "model": {}}
        self.data_digest = self.data.digest()
        self._loader = BatchLoader(
            *(self.data.train, self.data.validation, self.data.test),
            batch_size=cfg.optimisation.batch_size,
            workers=cfg.run.workers,
            part=group.part,
            pin=self.device.type == "cuda",
        )
        self._validation, self._test = (self._loader.one_pass(i, seed=SEED) for i in (1, 2))
        if state is not None:
            self.restore(state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to the state of a checkpoint.

        Raises:
            InputError: It is of another configuration or other recordings.
        """
        check_same_run(self.cfg, self.data_digest, self.pull_digest, state)
        self.model.load_state_dict(state["model"])
        self.trainer.load_state_dict(state["optimizer"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history, self.best = state["history"], state["best"]
        self.middle = Progress(**state.get("middle", {}))
        if not self.group.first:  # the sums of all processes go on in the first
            self.middle = Progress(self.middle.batch)

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or enough for an early stop."""
        stopped = finetune.stopped_early(self.history, self.cfg.optimisation.early_stop)
        return self.epoch >= self.cfg.optimisation.epochs or stopped

    def run_epoch(self, pause: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Train for one epoch, or what is left of it, validate, and return its row of the history.

        Args:
            pause: Is called between updates, where the run may be saved or end.
        """
        self._begun = time.perf_counter()
        loader = self._training_loader()
        title = f"epoch {self.epoch + 1}/{self.cfg.optimisation.epochs}"
        with tqdm(
            total=len(loader) + self.middle.batch,
            initial=self.middle.batch,
            desc=title,
            unit="batch",
            dynamic_ncols=True,
            disable=not self.group.first,
        ) as bar:
            loss, train_accuracy = self._train_on(loader, bar, pause)
            val_accuracy = self._validate()
            if val_accuracy is not None:
                means = {"loss": loss, "acc": train_accuracy, "val": val_accuracy}
                bar.set_postfix({name: f"{mean:.3f}" for name, mean in means.items()})
        self.check_finite()
        self.epoch, self.middle = self.epoch + 1, Progress()
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
        self._count_time()
        self._begun = None
        return row

    def check_finite(self) -> None:
        """Refuse weights that are no longer numbers, which a checkpoint must not hold.

        A membrane that is not a number never fires: the losses would stay finite, and wrong.

        Raises:
            NotFiniteError: A parameter is not finite, in this process or in another one.
        """
        named = self.model.named_parameters()
        broken = next((name for name, p in named if not p.isfinite().all()), None)
        if self.group.largest(broken is not None, self.device):
            what = f"the parameter {broken}" if broken else "a parameter of another process"
            raise NotFiniteError(
                f"epoch {self.epoch + 1}: {what} is no longer finite; the last checkpoint is from "
                "before: lower the learning rate, or set clip_norm"
            )

    def _count_time(self) -> None:
        if self._begun is not None:
            now = time.perf_counter()
            self.seconds, self._begun = self.seconds + now - self._begun, now

    def _training_loader(self) -> Pass:
        seed = seed_of(self.cfg.run.seed, self.epoch + 1)
        order = torch.Generator().manual_seed(seed)
        return self._loader.one_pass(0, order, skip=self.middle.batch, seed=seed)

    def _train_on(self, loader: Pass, bar: tqdm, pause: Callable[[], None]) -> tuple[float, float]:
        """Train on the batches of an epoch; return their mean loss and accuracy, of all samples."""
        head_only = self.epoch < self.cfg.optimisation.head_epochs
        middle, k = self.middle, self.cfg.optimisation.accumulate
        n_batches = middle.batch + len(loader)
        self.model.train()
        with finetune.only_classifier(self.model) if head_only else contextlib.nullcontext():
            finetune.keep_statistics(self.model)
            for loss, right, size in self._train_batches(loader):
                middle.add(loss, right, size)
                bar.set_postfix(middle.means(), refresh=False)
                bar.update()
                # Gradients on the way to an update are not saved.
                if middle.batch % k == 0 or middle.batch == n_batches:
                    pause()
        loss_sum, all_right, n = self.group.added_up(middle.sums(), self.device)
        if not n:
            raise InputError(f"epoch {self.epoch + 1}: no batch had a finite loss; see {self.out}")
        return loss_sum / n, all_right / n

    def _train_batches(self, loader: Pass) -> Iterator[tuple[float, int, int]]:
        """Train on each batch; yield its loss, its right answers and its size."""
        cutmix, learning = self.cfg.augmentation.cutmix, self.cfg.learning
        k, first = self.cfg.optimisation.accumulate, self.middle.batch
        n_batches = first + len(loader)
        for index, (x_seq, target) in enumerate(loader, first):
            torch.manual_seed(
                seed_of(self.cfg.run.seed, self.epoch + 1, index + 1, self.group.rank)
            )
            x_seq, target = to_device((x_seq, target), self.device)
            if self.data.on_device:
                x_seq = self.data.on_device(x_seq)
            if cutmix and torch.rand(()) < cutmix:
                x_seq, target = transforms.cutmix(x_seq, target, len(self.data.classes))
            self._set_learning_rate(
                self.epoch * n_batches + index, self.cfg.optimisation.epochs * n_batches
            )
            done = 0.0, 0, 0  # a batch that is skipped counts, without samples
            with self._broken_batches_named(index, x_seq), self.autocast():
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
                    accumulation=(index % k, min(k, n_batches - index + index % k))
                    if k > 1
                    else None,
                    clip_norm=self.cfg.optimisation.clip_norm,
                    ema=self.ema,
                    chunk=self.cfg.run.chunk,
                    cuda_graph=self.cfg.run.cuda_graph,
                )
                # The last batch may be smaller than there are processes.
                right = count_right(logits, target) if len(target) else 0
                done = float(loss), right, len(target)
            if self.group.first and self.epoch == index == 0 and done[2]:
                warn_of_silence(self.model, x_seq, self.data.shown_steps)
            yield done

    @contextlib.contextmanager
    def _broken_batches_named(self, index: int, x_seq: torch.Tensor) -> Iterator[None]:
        """Say of a batch whose loss is not finite what is broken, and skip it if that is wanted.

        Raises:
            NotFiniteError: It is not to be skipped.
        """
        try:
            yield
        except NotFiniteError as error:
            layer = "this process has no sample of the batch"
            if x_seq.numel():
                layer = first_not_finite(self.model, x_seq, self.data.shown_steps)
            skipped = self.cfg.run.on_nan == "skip"
            said = {"loss": str(error), "where": layer, "skipped": skipped}
            place = {"epoch": self.epoch + 1, "batch": index + 1}
            if self.out.is_dir():  # there is none where a run is only looked at
                note_broken(self.out, self.group.rank, **place, **said)
            text = f"epoch {self.epoch + 1}, batch {index + 1}: {error}; {layer}"
            if not skipped:
                raise NotFiniteError(text) from error
            # Their gradients were added up with those of the batch, and are gone with them.
            shared = index % self.cfg.optimisation.accumulate
            others = ", and those before it that share its update" if shared else ""
            warnings.warn(f"{text}; the batch is skipped{others}", stacklevel=2)

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
            return self._accuracy(model, self._validation)

    def _accuracy(self, model: nn.Module, loader: Pass) -> float:
        share_buffers(model)
        how = self.data.shown_steps, self.device, self.group, self.cfg.run.chunk
        return measure(model, loader, *how)[0]

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
        self._count_time()
        middle = Progress(self.middle.batch, *self.group.added_up(self.middle.sums(), self.device))
        if not self.group.first:
            return
        state = {
            "config": self.cfg.flat(),
            "data_digest": self.data_digest,
            "pull_digest": self.pull_digest,
            "epoch": self.epoch,
            "middle": dataclasses.asdict(middle),
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
        """Write ``last.safetensors`` and ``best.safetensors``, the models of whole epochs."""
        if not (self.history and self.group.first):
            return
        if not self.middle.batch:
            last = self._info(self.history[-1])
            write_model(self.out / "last.safetensors", self._weights(), last)
        write_model(self.out / "best.safetensors", self.best["model"], self._info(self.best))

    def _info(self, epoch: Mapping[str, Any]) -> ModelInfo:
        """Describe the model of an epoch, given by its number and its ``val_accuracy``."""
        cfg, data = self.cfg, self.data
        return ModelInfo(
            model=cfg.network.model.partition(".")[0],
            classes=data.classes,
            in_chans=data.in_chans,
            data=cfg.dataset.data,
            reading=cfg.dataset.reading,
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
            last_accuracy = self._accuracy(model, self._test)
        test_accuracy = last_accuracy
        if self.best["epoch"] != self.epoch:
            self.model.load_state_dict(self.best["model"])
            test_accuracy = self._accuracy(self.model, self._test)
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


def _cpu_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
