"""The training run: epochs, checkpoints, pictures and the result.

What makes a run repeatable:

* Everything random in an epoch derives from the pair (seed, epoch), so a checkpoint at an epoch's
  end needs no generator states, and a run that was killed and resumed ends with the same bits (on
  the CPU, with the same number of threads) as one that was not.
* ``last.pt`` alone is the state of a run (`checkpoint`). The model files are written after it, and
  again on a resume: no moment of a kill can leave a set that does not fit together for good.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from sj_ottt import zoo
from sj_ottt.data import Augmentation, ImageSet, Preprocessing, transforms
from sj_ottt.data.loading import batches
from sj_ottt.data.splits import choose_samples, split_samples
from sj_ottt.errors import InputError
from sj_ottt.learning import FPTT, CrossEntropyMSE, Pull, train_step
from sj_ottt.run import finetune
from sj_ottt.run.checkpoint import (
    load_checkpoint,
    read_model,
    remove_leftovers,
    save_checkpoint,
    write_file,
    write_model,
)
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.evaluation import OF_MODEL, count_right, measure, resolve_device
from sj_ottt.run.tensorboard_log import EventLog

# What may differ between a run and its resumption: where it runs, and where it and its recordings
# are kept. That the recordings are the same ones is checked by their names and sizes.
FREE_ON_RESUME = {"out", "device", "data"}
PACKAGES = ("torch", "torchvision", "timm", "spikingjelly", "numpy")


# Parts of a run


def configure(
    yaml_file: str | Path | None, overrides: Mapping[str, Any], *, resume: bool = False
) -> TrainConfig:
    """Put together the configuration of a run from a recipe and overrides.

    On a resume the run's own configuration takes the place of the defaults, so its ``out`` is
    enough; what is named again must be the same, which `train` checks.

    Raises:
        InputError: A bad file, key or value; on a resume, no usable checkpoint.
    """
    config = TrainConfig.from_sources(yaml_file, overrides)
    if resume:
        base = TrainConfig(**{**load_checkpoint(config.out)["config"], "out": config.out})
        config = TrainConfig.from_sources(yaml_file, overrides, base=base)
    return config


def _seed_of(seed: int, epoch: int) -> int:
    """Return the 64-bit seed of an epoch; epoch 0 is the initialisation."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])


def _weight_file(pretrained: bool | str | None) -> Path | None:
    """Return the file that `pretrained` names by a path, None where it is a tag of the zoo."""
    if not isinstance(pretrained, str):
        return None
    path = Path(pretrained).expanduser()
    if path.is_dir():
        path /= "best.safetensors"
    return path if path.exists() or len(Path(pretrained).parts) > 1 else None


def _build_optimizer(model: nn.Module, cfg: TrainConfig) -> torch.optim.Optimizer:
    options = {"lr": cfg.lr, "weight_decay": cfg.weight_decay}
    groups = finetune.parameter_groups(model, cfg.layer_decay)
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, **options)
    kind = {"adam": "Adam", "adamw": "AdamW", "adamax": "Adamax"}[cfg.optimizer]
    return getattr(torch.optim, kind)(groups, **options)


def _build_trainer(
    optimizer: torch.optim.Optimizer, cfg: TrainConfig
) -> torch.optim.Optimizer | FPTT:
    """Return what `train_step` updates with."""
    if cfg.rule != "fptt":
        return optimizer
    return FPTT(
        optimizer,
        cfg.fptt_alpha,
        cfg.fptt_beta,
        cfg.fptt_rho,
        cfg.fptt_clip or None,
        cfg.parts,
        cfg.fptt_form,
    )


def _lr_at(cfg: TrainConfig, batch: int, total: int) -> float:
    if cfg.schedule == "constant":
        return cfg.lr
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * batch / total))


def _cpu_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


# The run


class _Run:
    """A run's data, model and progress; `train` drives it."""

    def __init__(self, cfg: TrainConfig, state: dict[str, Any] | None):
        self.cfg, self.out = cfg, Path(cfg.out)
        self.device = resolve_device(cfg.device)
        self.preprocessing = Preprocessing.from_options(vars(cfg))
        plain = self.preprocessing.open(cfg.data, "train")
        self.test = self.preprocessing.open(cfg.data, "test")
        self.augmented = self.preprocessing.augment(plain, Augmentation.from_options(vars(cfg)))
        if self.test.classes != self.augmented.classes:
            raise InputError(
                f"{cfg.data}: train and test have different classes: "
                f"{', '.join(self.augmented.classes)} and {', '.join(self.test.classes)}"
            )
        self.raw = plain.unprocessed()
        chosen = choose_samples(plain.targets, cfg.train_samples, cfg.seed)
        windows = None if isinstance(plain, ImageSet) else plain.windows()
        train, val = split_samples(
            plain.targets[chosen],
            cfg.val_fraction,
            cfg.seed,
            None if windows is None else [windows[i] for i in chosen],
        )
        if cfg.early_stop is not None and not len(val):
            raise InputError(
                f"{cfg.data}: there are too few samples to keep some aside for validation, which "
                "early_stop needs: leave it out, or record more"
            )
        self.train_part = Subset(self.augmented, chosen[train])
        self.val_part = Subset(plain, chosen[val])
        # An item is a sequence [T, C, ...], or a still image [C, H, W] for all cfg.steps steps.
        item = plain[0][0]
        self.in_chans = item.shape[0] if plain.still else item.shape[1]
        self.steps = cfg.steps if plain.still else item.shape[0]
        self.shown_steps = self.steps if plain.still else None
        if cfg.steps not in (self.steps, TrainConfig.steps):
            raise InputError(
                f"steps={cfg.steps}: encoding={cfg.encoding} makes {self.steps} of an image of "
                f"{cfg.data}; leave steps out"
            )

        torch.manual_seed(_seed_of(cfg.seed, 0))
        start = _weight_file(cfg.pretrained)
        only_some = {"spike_drop_rate": cfg.spike_drop_rate} if cfg.spike_drop_rate else {}
        self.model = zoo.create(
            cfg.model,
            len(self.augmented.classes),
            # A resumed run has its weights already, even where the model zoo has gone.
            in_chans=self.in_chans,
            pretrained=None if state or start else cfg.pretrained,
            drop_rate=cfg.drop_rate,
            rule=None if cfg.rule == "fptt" else cfg.rule,  # fptt: by the model's own gradient
            rule_variant=cfg.rule_variant,
            readout=cfg.readout,
            **only_some,
        ).to(self.device)
        if start and not state:
            zoo.load_weights(self.model, start)
        first_stage = None if cfg.pull_to is None else self._first_stage(cfg.pull_to)
        if cfg.freeze:
            finetune.freeze(self.model, cfg.freeze)
        self.optimizer = _build_optimizer(self.model, cfg)
        if first_stage is not None:
            share = 1  # of the updates in a sequence
            if cfg.update == "online" or cfg.rule == "fptt":
                share = cfg.parts or cfg.backward_steps or self.steps
            pull = Pull(self.model, first_stage, cfg.pull / share, cfg.pull_norm)
            self.optimizer.register_step_pre_hook(pull)
        self.trainer = _build_trainer(self.optimizer, cfg)
        weights = None
        if cfg.class_weights:
            targets = plain.targets[self.train_part.indices]
            weights = finetune.class_weights(targets, len(plain.classes)).to(self.device)
        self.loss_fn = CrossEntropyMSE(cfg.mse_weight, weights)
        kind, half = self.device.type, getattr(torch, cfg.amp, None)
        self.autocast = partial(torch.autocast, kind, half, enabled=half is not None)
        # bfloat16 has the range of float32 and needs no scale.
        self.scaler = torch.amp.GradScaler(kind) if half is torch.float16 else None
        self.epoch, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"epoch": 0, "val_accuracy": None, "model": {}}
        self.data_digest = self._digest_data()
        if state:
            self._restore(state)

    def _first_stage(self, folder: str) -> dict[str, torch.Tensor]:
        """Load the weights of the run that this one starts from, and return them."""
        if self.cfg.pretrained is not None:
            raise InputError("pull_to and pretrained both say where to start: leave one out")
        path = Path(folder) / "best.safetensors"
        tensors, about = read_model(path)
        try:
            self.model.load_state_dict(tensors)
        except RuntimeError as error:
            raise InputError(
                f"{path} holds a {about['model']} with {about['num_classes']} classes, which does "
                f"not fit {self.cfg.model} with {len(self.augmented.classes)}: pull_to needs a run "
                "of the same model and classes"
            ) from error
        return tensors

    def _digest_data(self) -> str:
        """Digest what a resume must find again: the classes, and what identifies the samples."""
        rows = [part.identity() for part in (self.augmented, self.test)]
        return hashlib.sha256(json.dumps([self.augmented.classes, rows]).encode()).hexdigest()

    def _restore(self, state: dict[str, Any]) -> None:
        # An option that the checkpoint does not know is newer than it: it ran with the default.
        before = {**dataclasses.asdict(TrainConfig()), **state["config"]}
        now = dataclasses.asdict(self.cfg)
        changed = [k for k in now if k not in FREE_ON_RESUME and before[k] != now[k]]
        if changed:
            listed = ", ".join(f"{k} was {before[k]!r}, now {now[k]!r}" for k in changed)
            raise InputError(
                f"cannot resume {self.out} with another configuration: {listed}; "
                "give the same values or none, or start a new run in another --out"
            )
        if state["data_digest"] != self.data_digest:
            raise InputError(
                f"the recordings in {self.cfg.data} are not those that {self.out} was trained on; "
                "put them back, or start a new run in another --out"
            )
        self.model.load_state_dict(state["model"])
        self.trainer.load_state_dict(state["optimizer"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history, self.best = state["history"], state["best"]

    def save(self) -> None:
        """Write the checkpoint, then the model files that are made from it."""
        state = {
            "config": dataclasses.asdict(self.cfg),
            "data_digest": self.data_digest,
            "epoch": self.epoch,
            "model": _cpu_state(self.model),
            "optimizer": self.trainer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
        }
        save_checkpoint(self.out, state)
        self.export()

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Put the weights into the model that are tested and kept: with FPTT, the averages."""
        return self.trainer.averaged() if self.cfg.rule == "fptt" else contextlib.nullcontext()

    def export(self) -> None:
        """Write ``last.safetensors`` and ``best.safetensors``; before the first epoch, nothing."""
        if not self.history:
            return
        cfg = self.cfg
        about = {
            "model": cfg.model.partition(".")[0],
            "num_classes": len(self.augmented.classes),
            "in_chans": self.in_chans,
            "classes": self.augmented.classes,
            "data": cfg.data,
            **self.preprocessing.options(),
            "steps": self.steps,
            "size": self.augmented.frame_size,
            **{name: getattr(cfg, name) for name in OF_MODEL},
        }
        if isinstance(self.augmented, ImageSet):
            about["stats"] = (self.augmented.mean, self.augmented.std)
        else:
            names = ("sensor_size", "window", "min_events")
            about |= {name: getattr(self.test, name) for name in names}
        last = {"epoch": self.epoch, "val_accuracy": self.history[-1]["val_accuracy"]}
        best = {key: self.best[key] for key in ("epoch", "val_accuracy")}
        with self.averaged():
            weights = _cpu_state(self.model)
        write_model(self.out / "last.safetensors", weights, {**about, **last})
        write_model(self.out / "best.safetensors", self.best["model"], {**about, **best})

    def _train_batches(self, loader: DataLoader) -> Iterator[tuple[float, int, int]]:
        """Train on each batch; yield its loss, its right answers and its size."""
        total = self.cfg.epochs * len(loader)
        done = (self.epoch - 1) * len(loader)
        for index, (x_seq, target) in enumerate(loader):
            x_seq, target = x_seq.to(self.device), target.to(self.device)
            if self.cfg.cutmix and torch.rand(()) < self.cfg.cutmix:
                x_seq, target = transforms.cutmix(x_seq, target, len(self.augmented.classes))
            for group in self.optimizer.param_groups:
                # A checkpoint from before there were scales has none.
                scale = group.get("lr_scale", 1.0)
                group["lr"] = scale * _lr_at(self.cfg, done + index, total)
            with self.autocast():
                loss, logits = train_step(
                    self.model,
                    self.trainer,
                    x_seq,
                    target,
                    steps=self.shown_steps,
                    loss_fn=self.loss_fn,
                    update=self.cfg.update,
                    backward_steps=self.cfg.backward_steps,
                    scaler=self.scaler,
                )
            yield float(loss), count_right(logits, target), len(target)

    def run_epoch(self) -> dict[str, Any]:
        """Train for one epoch, validate, and return the epoch's row of the history."""
        cfg, start = self.cfg, time.perf_counter()
        self.epoch += 1
        torch.manual_seed(_seed_of(cfg.seed, self.epoch))
        order = torch.Generator().manual_seed(_seed_of(cfg.seed, self.epoch))
        loader = batches(self.train_part, cfg.batch_size, cfg.workers, order)
        self.model.train()
        loss_sum, correct, seen = 0.0, 0, 0
        val_accuracy = None
        title = f"epoch {self.epoch}/{cfg.epochs}"
        with tqdm(total=len(loader), desc=title, unit="batch", dynamic_ncols=True) as bar:
            head_only = self.epoch <= cfg.head_epochs
            with finetune.only_classifier(self.model) if head_only else contextlib.nullcontext():
                for loss, right, count in self._train_batches(loader):
                    loss_sum, correct, seen = loss_sum + loss * count, correct + right, seen + count
                    shown = {"loss": f"{loss_sum / seen:.3f}", "acc": f"{correct / seen:.3f}"}
                    bar.set_postfix(shown, refresh=False)
                    bar.update()
            if len(self.val_part):
                held = batches(self.val_part, cfg.batch_size, cfg.workers)
                with self.averaged():
                    val_accuracy, _ = measure(self.model, held, self.shown_steps, self.device)
                bar.set_postfix({**shown, "val": f"{val_accuracy:.3f}"})
        row = {
            "epoch": self.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": loss_sum / seen,
            "train_accuracy": correct / seen,
            "val_accuracy": val_accuracy,
        }
        self.history.append(row)
        # Without validation every epoch is the best so far; on a tie the later one, trained longer.
        if val_accuracy is None or val_accuracy >= (self.best["val_accuracy"] or 0.0):
            with self.averaged():
                weights = _cpu_state(self.model)
            self.best = {"epoch": self.epoch, "val_accuracy": val_accuracy, "model": weights}
        self.seconds += time.perf_counter() - start
        return row

    @property
    def done(self) -> bool:
        """Whether the last epoch is behind, or an earlier one that is to be the last."""
        stopped = finetune.stopped_early(self.history, self.cfg.early_stop)
        return self.epoch >= self.cfg.epochs or stopped

    def finish(self) -> dict[str, Any]:
        """Test the best and the last model; write the pictures and, last, ``result.json``."""
        start = time.perf_counter()
        loader = batches(self.test, self.cfg.batch_size, self.cfg.workers)
        with self.averaged():
            last_accuracy, _ = measure(self.model, loader, self.shown_steps, self.device)
        test_accuracy = last_accuracy
        if self.best["epoch"] != self.epoch:
            self.model.load_state_dict(self.best["model"])
            test_accuracy, _ = measure(self.model, loader, self.shown_steps, self.device)
        self.seconds += time.perf_counter() - start
        result = {
            "test_accuracy": test_accuracy,
            "last_test_accuracy": last_accuracy,
            "train_accuracy": self.history[-1]["train_accuracy"],
            "val_accuracy": self.best["val_accuracy"],
            "best_epoch": self.best["epoch"],
            "epochs": self.epoch,
            "seconds": round(self.seconds, 3),
            "n_train": len(self.train_part),
            "n_val": len(self.val_part),
            "n_test": len(self.test),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "device": _device_name(self.device),
            "config": dataclasses.asdict(self.cfg),
            "data": self.augmented.info(),
            "versions": _versions(),
            "history": self.history,
        }
        # matplotlib takes a second to import and only the end of a run needs it.
        from sj_ottt import plots

        rows = [int(np.flatnonzero(self.raw.targets == k)[0]) for k in range(len(self.raw.classes))]
        samples = [self.raw[index][0].numpy() for index in rows[:10]]
        write_file(self.out / "curves.png", plots.curves(self.history, result))
        draw = plots.images if self.raw.still else plots.frames
        write_file(self.out / "frames.png", draw(samples, self.raw.classes[:10]))
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        write_file(self.out / "result.json", text.encode())
        return result


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


def _versions() -> dict[str, str]:
    import sj_ottt

    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "sj_ottt": sj_ottt.__version__, **versions}


def train(cfg: TrainConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train a model on event recordings and test it.

    The folder ``cfg.out`` then holds ``result.json`` (what is returned), ``best.safetensors`` and
    ``last.safetensors``, ``curves.png``, ``frames.png``, the checkpoint ``last.pt`` and TensorBoard
    scalars in ``tb``. Part of the training recordings is kept aside to choose the best epoch; the
    test part is only used at the end, on that epoch's model and on the last one.

    Args:
        cfg: The run's configuration.
        resume: Continue from ``last.pt``; a finished run returns its result again.

    Raises:
        InputError: Bad data, an unknown model, a folder that holds another run, a checkpoint that
            is missing, damaged or of another configuration, a loss that is not finite, a full disk.
    """
    out = Path(cfg.out)
    state = load_checkpoint(out) if resume else None
    # A checkpoint of epoch 0 holds no work yet: a run that failed at once may be started again.
    if not resume and (out / "last.pt").exists() and load_checkpoint(out)["epoch"]:
        raise InputError(f"{out} holds a run already; continue it with --resume, or choose --out")
    run = _Run(cfg, state)
    result_file = out / "result.json"
    if state and run.done and result_file.exists():
        return json.loads(result_file.read_text())
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out}: {error.strerror}; choose --out") from error
    remove_leftovers(out)
    if resume:
        run.export()
    else:
        run.save()
    if not run.done:
        with contextlib.closing(EventLog(out / "tb", purge_step=run.epoch + 1)) as log:
            while not run.done:
                row = run.run_epoch()
                log.scalars(row["epoch"], {k: v for k, v in row.items() if k != "epoch"})
                run.save()
    return run.finish()
