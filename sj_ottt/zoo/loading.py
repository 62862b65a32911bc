"""Weights from a zoo or any other file into a model."""

import math
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from sj_ottt._files import refuse_compressed
from sj_ottt.errors import InputError
from sj_ottt.zoo.folders import (
    ZooEntry,
    own_folder,
    registered_entries,
    shipped_folder,
    zoo_entries,
)

__all__ = [
    "adapt_input_channels",
    "cfg_beside",
    "check_numbers",
    "load_weights",
    "options_beside",
    "pretrained_cfgs",
]


def pretrained_cfgs(names: list[str]) -> dict[str, dict[str, Any]]:
    """Return timm's pretrained configurations of the weights of some architectures.

    Those that ship come first, so that one of them is the default where there are any.

    Args:
        names: Architecture names, without tags.

    Returns:
        `arch.tag` → the fields of timm's `PretrainedCfg`, `file` an absolute path.
    """
    return {
        # Our own loader: it checks the file, and adapts channels in every timm 1.x.
        name: {**entry.cfg, "file": str(entry.file), "custom_load": True}
        for name, entry in registered_entries().items()
        if entry.arch in names
    }


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a weight file, adapting input channels and a different number of classes.

    Input channels follow timm. To one channel the filters of all are summed; to more, the filters
    are repeated in their order until there are enough; to fewer, the first ones stay: from 2 to 3
    channels (OFF, ON, OFF), from 3 to 2 (red, green). What is left is scaled by the old number over
    the new one, which standardized weights, whose size does not count, undo. Where the classifier
    of the file has another size, or the file has none, the model's fresh one stays.

    Args:
        model: A model of this package, already built.
        path: A safetensors file, or a checkpoint of tensors that `torch.load` reads with
            `weights_only=True`. A file of the zoo must match its SHA-256.

    Raises:
        InputError: If the file is missing, changed, truncated or fits another architecture, holds
            values that are no finite numbers, or is the checkpoint of a run that tests the average
            of its weights.
    """
    path = Path(path)
    state = _read(path)
    if adapt := getattr(model, "adapt_to", None):
        adapt(state)
    own = model.state_dict()
    cfg = cast(dict[str, Any], model.pretrained_cfg)  # given by timm
    first_conv = f"{cfg['first_conv']}.weight"
    if first_conv in state and first_conv in own:
        state[first_conv] = adapt_input_channels(state[first_conv], own[first_conv].shape[1])
    for part in getattr(model, "head_parts", (cfg["classifier"],)):
        _keep_own(part, own, state)
    if state.keys() != own.keys() or any(state[k].shape != own[k].shape for k in own):
        misfit = sorted(
            k
            for k in own.keys() | state.keys()
            if k not in own or k not in state or state[k].shape != own[k].shape
        )
        raise InputError(
            f"{path} does not fit {type(model).__name__}: {len(misfit)} tensors differ in name or "
            f"shape, the first is {misfit[0]}. Create the architecture that the file was saved from"
        )
    for name, tensor in own.items():
        check_numbers(f"{path}: {name}", state[name], tensor.dtype)
    model.load_state_dict(state, strict=False)


def _keep_own(part: str, own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Leave out a part of the head that one side lacks, or of which all sizes differ."""
    ours, theirs = ([k for k in side if k.startswith(f"{part}.")] for side in (own, state))
    if ours and theirs and any(k not in state or own[k].shape == state[k].shape for k in ours):
        return
    for key in ours:
        del own[key]
    for key in theirs:
        del state[key]


def check_numbers(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Check what a tensor holds.

    Args:
        name: What messages call it.
        tensor: What was read.
        dtype: Of what it is to fill.

    Raises:
        InputError: It is of another kind, or holds values that are no finite numbers there.
    """
    if tensor.is_complex() or tensor.is_floating_point() != dtype.is_floating_point:
        raise InputError(f"{name} holds values of {tensor.dtype}: give weights of {dtype}")
    if not tensor.to(dtype).isfinite().all():
        raise InputError(
            f"{name} holds values that are no finite numbers: give weights of before the training "
            "failed"
        )


def adapt_input_channels(weight: Tensor, in_chans: int) -> Tensor:
    """Return a first convolution's weight [C_out, C, kH, kW] for another number of channels."""
    base = weight.shape[1]
    if in_chans == base:
        return weight
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    repeats = math.ceil(in_chans / base)
    return weight.repeat(1, repeats, 1, 1)[:, :in_chans] * (base / in_chans)


def cfg_beside(path: str | Path) -> dict[str, Any]:
    """Return the fields of timm's configuration that the zoo of a file has for it; else none."""
    entry = _entry_of(Path(path))
    return {} if entry is None else dict(entry.cfg)


def options_beside(path: str | Path) -> dict[str, Any]:
    """Return the arguments of a model that the zoo of a file has for it; else none."""
    entry = _entry_of(Path(path))
    return {} if entry is None else dict(entry.options)


def _entry_of(path: Path) -> ZooEntry | None:
    """Return the entry of a file; None where it lies in no zoo.

    Raises:
        InputError: It lies in the zoo that ships, or in the user's, and is no part of it.
    """
    path = path.expanduser().absolute()
    trusted = path.parent in (shipped_folder(), own_folder())
    try:
        entries = zoo_entries(path.parent)
    except InputError:
        if trusted:
            raise
        return None  # a manifest of something else
    entry = entries.get(path.stem)
    if entry is not None and entry.file == path:
        return entry
    if trusted and path.exists():
        raise InputError(
            f"{path}: the zoo's manifest.json does not name it; put weights there by "
            "`sj-ottt zoo export` or `sj-ottt zoo import`"
        )
    return None


def _read(path: Path) -> dict[str, Tensor]:
    entry = _entry_of(path)
    if entry is not None:
        entry.check_file()
    if not path.is_file():
        raise InputError(f"{path}: no such weight file; give the path of an existing one")
    refuse_compressed(path)
    try:
        averaged = path.suffix != ".safetensors" and _is_of_an_averaging_run(path)
        state = dict(load_state_dict(str(path)))
    except Exception as error:  # each format's reader has its own error types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a readable weight file ({reason}); it may be truncated, copy it again"
        ) from error
    if averaged:
        raise InputError(
            f"{path} is the checkpoint of a run that tests and keeps the average of its weights, "
            "and holds those before: give best.safetensors or last.safetensors of its folder"
        )
    return state


def _is_of_an_averaging_run(path: Path) -> bool:
    """Whether a file is the checkpoint of a run of ours with an average of weights."""
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or "data_digest" not in content:
        return False
    return content.get("ema") is not None or content["config"].get("rule") == "fptt"
