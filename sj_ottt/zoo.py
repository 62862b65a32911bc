"""The model zoo: finds the weights that ship with the package, checks them and loads them.

`model_zoo/manifest.json` has one entry per weight file, keyed `arch.tag` as in timm: its file
name, SHA-256 and the fields of timm's pretrained configuration. Nothing here uses a network.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import group_parameters, load_state_dict
from torch import Tensor, nn

from sj_ottt._files import is_stored
from sj_ottt.errors import InputError, suggest

__all__ = ["create", "layer_depths", "load_weights", "model_rows", "pretrained_cfgs"]

_PACKAGE = Path(__file__).parent


def _zoo_dir() -> Path:
    """Return the folder of weights: inside an installed package, beside it in a checkout."""
    installed = _PACKAGE / "model_zoo"
    return installed if installed.is_dir() else _PACKAGE.parent / "model_zoo"


def _manifest() -> dict[str, dict[str, Any]]:
    file = _zoo_dir() / "manifest.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def pretrained_cfgs(names: list[str]) -> dict[str, dict[str, Any]]:
    """Return timm's pretrained configurations of the shipped weights of some architectures.

    Args:
        names: Architecture names, without tags.

    Returns:
        `arch.tag` → the fields of timm's `PretrainedCfg`, `file` an absolute path.
    """
    return {
        name: {
            "file": str(_zoo_dir() / entry["file"]),
            # Our own loader: it checks the file, and adapts channels in every timm 1.x.
            "custom_load": True,
            **entry["cfg"],
        }
        for name, entry in _manifest().items()
        if name.split(".")[0] in names
    }


def create(
    name: str,
    num_classes: int,
    *,
    in_chans: int,
    pretrained: bool | str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a model of this package by name, as timm does, with errors that say what there is.

    Args:
        name: Architecture, or `arch.tag` for one of its weights.
        num_classes: Size of the output.
        in_chans: Number of input channels.
        pretrained: Load the default weights (True) or those of a tag.
        **kwargs: Further arguments of the model, such as `drop_rate` or `rule`.

    Raises:
        InputError: If there is no such model, no such weights for it, or it has no such argument.
    """
    arch, _, tag = name.partition(".")
    names = _architectures()
    if arch not in names:
        raise InputError(f"unknown model {name!r}{suggest(arch, names)}; see `sj-ottt models`")
    tag = pretrained if isinstance(pretrained, str) else tag
    tags = _tags(arch)
    if pretrained and (tag not in tags if tag else not tags):
        wanted = f"weights {tag!r}" if tag else "pretrained weights"
        raise InputError(
            f"there are no {wanted} for model {arch}{suggest(tag, tags)}; it has "
            f"{', '.join(tags) or 'none'}"
        )
    try:
        return timm.create_model(
            f"{arch}.{tag}" if tag else arch,
            pretrained=bool(pretrained),
            num_classes=num_classes,
            in_chans=in_chans,
            **kwargs,
        )
    except TypeError as error:
        unknown = [name for name in kwargs if f"unexpected keyword argument '{name}'" in str(error)]
        if not unknown:
            raise
        raise InputError(f"model {arch} has no option {unknown[0]}: leave it out") from error


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter, by timm's grouping: 0 next to the input."""
    matcher = cast(Callable[[], dict[str, Any]], model.group_matcher)
    return group_parameters(model, matcher(), reverse=True)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a weight file, adapting input channels and a different number of classes.

    Input channels follow timm: to one channel the filters are summed, to more or fewer they are
    repeated or cut and rescaled. A classifier of another size keeps the model's fresh one.

    Args:
        model: A model of this package, already built.
        path: A safetensors file, or a checkpoint of tensors that `torch.load` reads with
            `weights_only=True`. A file of the zoo must match its SHA-256.

    Raises:
        InputError: If the file is missing, changed, truncated or fits another architecture.
    """
    path = Path(path)
    state = _read(path)
    own = model.state_dict()
    cfg = cast(dict[str, Any], model.pretrained_cfg)  # given by timm
    first_conv = f"{cfg['first_conv']}.weight"
    if first_conv in state and first_conv in own:
        state[first_conv] = adapt_input_channels(state[first_conv], own[first_conv].shape[1])
    classifier = cfg["classifier"]
    for key in (f"{classifier}.weight", f"{classifier}.bias"):
        if key in state and (key not in own or own[key].shape != state[key].shape):
            del state[key]
            own.pop(key, None)
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
    model.load_state_dict(state, strict=False)


def adapt_input_channels(weight: Tensor, in_chans: int) -> Tensor:
    """Return a first convolution's weight [C_out, C, kH, kW] for another number of channels."""
    base = weight.shape[1]
    if in_chans == base:
        return weight
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    repeats = math.ceil(in_chans / base)
    return weight.repeat(1, repeats, 1, 1)[:, :in_chans] * (base / in_chans)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: no such weight file; give the path of an existing one")
    if path.parent == _zoo_dir():
        expected = {entry["file"]: entry["sha256"] for entry in _manifest().values()}
        if expected.get(path.name) != hashlib.sha256(path.read_bytes()).hexdigest():
            raise InputError(
                f"{path}: the SHA-256 differs from the manifest's, so the file was changed or "
                "truncated; restore it (reinstall sj-ottt, or git checkout model_zoo)"
            )
    if zipfile.is_zipfile(path) and not is_stored(path):
        raise InputError(
            f"{path}: is compressed, which torch.save does not do, and may unpack to any size; "
            "save the weights anew"
        )
    try:
        return dict(load_state_dict(str(path)))
    except Exception as error:  # each format's reader has its own error types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a readable weight file ({reason}); it may be truncated, copy it again"
        ) from error


def model_rows() -> list[dict[str, Any]]:
    """List the models of this package.

    Returns:
        One row a model: `name`, `params` (with its default classifier) and `weights`, the tags
        that `pretrained` accepts.
    """
    rows = []
    for name in _architectures():
        params = sum(p.numel() for p in timm.create_model(name).parameters())
        rows.append({"name": name, "params": params, "weights": _tags(name)})
    return rows


def _architectures() -> list[str]:
    modules = ("ottt_vgg", "ottt_nf_resnet", "ltc_nets")
    return [name for module in modules for name in timm.list_models(module=module)]


def _tags(arch: str) -> list[str]:
    return [key.partition(".")[2] for key in _manifest() if key.partition(".")[0] == arch]
