"""The parts of a training run that its configuration describes: model, optimizer, loss."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sj_ottt import zoo
from sj_ottt.data.loading import BatchLoader, seed_of
from sj_ottt.errors import InputError
from sj_ottt.learning import FPTT, CrossEntropyMSE, Pull
from sj_ottt.models import calibrate
from sj_ottt.neuron import set_backend
from sj_ottt.run import finetune
from sj_ottt.run.checkpoint import read_model
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.training_data import TrainingData

__all__ = [
    "build_average",
    "build_loss",
    "build_mixed_precision",
    "build_model",
    "build_optimizer",
    "build_trainer",
]


def build_model(cfg: TrainConfig, data: TrainingData, *, resumed: bool = False) -> nn.Module:
    """Build the model with the weights that the run starts from.

    Args:
        cfg: The run's configuration.
        data: The run's data, which decides about channels and classes.
        resumed: Leave out pretrained weights: a resumed run has its own, even if the file that it
            started from is gone.

    Raises:
        InputError: An unknown model, weights or option of it, or weights that do not fit.
    """
    network, learning = cfg.network, cfg.learning
    weight_file = _weight_file(network.pretrained)
    # Only some models have this option, so the others are not asked for it.
    extra = {"spike_drop_rate": network.spike_drop_rate} if network.spike_drop_rate else {}
    model = zoo.create(
        network.model.partition(".")[0] if resumed else network.model,
        len(data.classes),
        in_chans=data.in_chans,
        pretrained=None if resumed or weight_file else network.pretrained,
        drop_rate=network.drop_rate,
        # FPTT takes the model's own gradient.
        rule=None if learning.rule == "fptt" else learning.rule,
        rule_variant=learning.rule_variant,
        readout=learning.readout,
        **extra,
    )
    if network.calibrate and not resumed:
        calibrate(model, _one_step(cfg, data))
    set_backend(model, cfg.run.backend)
    if weight_file and not resumed:
        zoo.load_weights(model, weight_file)
    if network.pull_to is not None:
        _load_first_stage(model, Path(network.pull_to), cfg)
    if network.freeze:
        finetune.freeze(model, network.freeze)
    return model


def _one_step(cfg: TrainConfig, data: TrainingData) -> Tensor:
    """Return a batch to train on, its first time step: [N, C, H, W], the same in all processes."""
    seed = seed_of(cfg.run.seed, 0)
    draws = torch.Generator().manual_seed(seed)
    loader = BatchLoader(data.train, batch_size=cfg.optimisation.batch_size, workers=0)
    x, _ = next(iter(loader.one_pass(order=draws, seed=seed)))
    if data.on_device:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            x = data.on_device(x)
    return x if data.shown_steps else x[0]


def _weight_file(pretrained: bool | str | None) -> Path | None:
    """Return the file that `pretrained` names by a path, None where it is a tag of the zoo."""
    if not isinstance(pretrained, str):
        return None
    path = Path(pretrained).expanduser()
    if path.is_dir():
        path /= "best.safetensors"
    return path if path.exists() or len(Path(pretrained).parts) > 1 else None


def _load_first_stage(model: nn.Module, folder: Path, cfg: TrainConfig) -> None:
    path = folder / "best.safetensors"
    tensors, info = read_model(path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{path} holds a {info.model} with {len(info.classes)} classes, which does not "
            f"fit {cfg.network.model} with {model.num_classes}: pull_to needs a run of the same "
            "model and classes"
        ) from error


def build_optimizer(cfg: TrainConfig, model: nn.Module, steps: int) -> torch.optim.Optimizer:
    """Build the optimizer, with the pull to a first stage where there is one.

    Args:
        cfg: The run's configuration.
        model: From `build_model`, with the weights of the first stage where there is one.
        steps: Time steps of a sample.
    """
    optimisation = cfg.optimisation
    lr, weight_decay = optimisation.lr, optimisation.weight_decay
    groups = finetune.parameter_groups(model, optimisation.layer_decay)
    optimizer: torch.optim.Optimizer
    if optimisation.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=weight_decay)
    else:
        kinds = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "adamax": torch.optim.Adamax,
        }
        optimizer = kinds[optimisation.optimizer](groups, lr=lr, weight_decay=weight_decay)
    if cfg.network.pull_to is not None:
        # The strength is that of a sequence, whatever the number of its updates.
        strength = cfg.network.pull / _updates_per_sequence(cfg, steps)
        pull = Pull(model, model.state_dict(), strength, cfg.network.pull_norm)
        optimizer.register_step_pre_hook(pull)
    return optimizer


def _updates_per_sequence(cfg: TrainConfig, steps: int) -> int:
    if cfg.learning.update == "online" or cfg.learning.rule == "fptt":
        return cfg.fptt.parts or cfg.learning.backward_steps or steps
    return 1


def build_trainer(
    cfg: TrainConfig, optimizer: torch.optim.Optimizer
) -> torch.optim.Optimizer | FPTT:
    """Return what `train_step` updates with: the optimizer, or FPTT around it."""
    if cfg.learning.rule != "fptt":
        return optimizer
    options = cfg.fptt
    return FPTT(
        optimizer,
        alpha=options.fptt_alpha,
        beta=options.fptt_beta,
        rho=options.fptt_rho,
        clip=options.fptt_clip or None,
        parts=options.parts,
        form=options.fptt_form,
    )


def build_average(cfg: TrainConfig, model: nn.Module) -> AveragedModel | None:
    """Return the average of the model's weights over the updates, where one is asked for."""
    decay = cfg.optimisation.ema
    return None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def build_loss(cfg: TrainConfig, data: TrainingData, device: torch.device) -> CrossEntropyMSE:
    """Build the loss of one time step."""
    weights = None
    if cfg.optimisation.class_weights:
        weights = finetune.class_weights(data.train_targets, len(data.classes)).to(device)
    return CrossEntropyMSE(cfg.optimisation.mse_weight, weights)


def build_mixed_precision(
    cfg: TrainConfig, device: torch.device
) -> tuple[Callable[[], torch.autocast], torch.amp.GradScaler | None]:
    """Return what makes the context of a training step, and the scaler of its loss.

    Only float16 needs a scaler: bfloat16 has the range of float32.
    """
    if cfg.optimisation.amp == "float16" and device.type == "cpu":
        warnings.warn(
            "amp=float16 on a CPU: PyTorch takes up to a hundred times as long for a convolution's "
            "gradient as in float32; amp=bfloat16 is fast",
            stacklevel=2,
        )
    dtype = None if cfg.optimisation.amp == "off" else getattr(torch, cfg.optimisation.amp)
    autocast = partial(torch.autocast, device.type, dtype, enabled=dtype is not None)
    return autocast, torch.amp.GradScaler(device.type) if dtype is torch.float16 else None
