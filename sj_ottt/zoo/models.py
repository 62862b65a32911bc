"""The models by name, with errors that say what there is."""

from collections.abc import Callable
from typing import Any, cast

import timm
from timm.models import group_parameters
from torch import nn

from sj_ottt.errors import InputError, suggest
from sj_ottt.zoo.folders import registered_entries

__all__ = ["create", "layer_depths", "model_rows"]

_UNTRAINED = "untrained"  # the tag in timm of the models without weights


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
        InputError: If there is no such model, no such weights for it, or it has no such argument;
            or the name has a tag and the weights are not asked for, or others are.
    """
    arch, _, named = name.partition(".")
    names = _architectures()
    if arch not in names:
        raise InputError(f"unknown model {name!r}{suggest(arch, names)}; see `sj-ottt models`")
    tag = pretrained if isinstance(pretrained, str) else named
    weights = {e.tag: e for e in registered_entries().values() if e.arch == arch}
    tags = list(weights)
    wants = bool(pretrained) or tag not in ("", _UNTRAINED)
    if wants and (tag not in tags if tag else not tags):
        wanted = f"weights {tag!r}" if tag else "pretrained weights"
        raise InputError(
            f"there are no {wanted} for model {arch}{suggest(tag, tags)}; it has "
            f"{', '.join(tags) or 'none'}"
        )
    if wants and not pretrained:
        raise InputError(
            f"model {name!r} names weights: to start from them, add pretrained (--pretrained), "
            f"else leave .{tag} out"
        )
    if named not in ("", tag):
        raise InputError(
            f"model {name!r} and pretrained={tag!r} name different weights: leave one out"
        )
    if wants:  # also weights that have come since timm was told of them
        entry = weights[tag or tags[0]]
        kwargs["pretrained_cfg_overlay"] = {**entry.cfg, "file": str(entry.file), "tag": entry.tag}
    try:
        return timm.create_model(
            f"{arch}.{tag}" if tag and not wants else arch,
            pretrained=wants,
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


def model_rows() -> list[dict[str, Any]]:
    """List the models of this package.

    Returns:
        One row a model: `name`, `params` (with its default classifier) and `weights`, the tags
        that `pretrained` accepts.
    """
    entries = registered_entries().values()
    rows = []
    for name in _architectures():
        params = sum(p.numel() for p in timm.create_model(name).parameters())
        tags = [entry.tag for entry in entries if entry.arch == name]
        rows.append({"name": name, "params": params, "weights": tags})
    return rows


def _architectures() -> list[str]:
    modules = ("ottt_vgg", "ottt_nf_resnet", "ltc_nets")
    return [name for module in modules for name in timm.list_models(module=module)]
