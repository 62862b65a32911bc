"""Weights of networks without spikes as a start for ours, and what of them fits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sj_ottt.errors import InputError
from sj_ottt.models.ottt_nf_resnet import NFResNet
from sj_ottt.zoo import adapt_input_channels

__all__ = ["AnnWeights", "load_ann_weights"]


@dataclass(frozen=True)
class AnnWeights:
    """What a network has taken of the weights of one without spikes.

    Attributes:
        provenance: Where they come from, "ANN weights of ...".
        taken: Name of each parameter of ours that was set → the name of theirs.
        adapted: Names of ours among these whose input channels were made to fit.
        left_out: Name of each tensor of theirs that was not taken → why.
        own: Names of the parameters of ours that keep the values that they had.
    """

    provenance: str
    taken: dict[str, str]
    adapted: tuple[str, ...]
    left_out: dict[str, str]
    own: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.provenance}: {len(self.taken)} parameters taken ({len(self.adapted)} of them "
            f"with other input channels), {len(self.own)} of our own left as they were, "
            f"{len(self.left_out)} tensors left out"
        )


# Theirs → ours: torchvision's and timm's ResNets first, timm's NF-ResNets second.
_NAMES = (
    (r"conv1\.(.+)", "stem.{0}"),
    (r"stem\.conv\.(.+)", "stem.{0}"),
    (r"layer(\d+)\.(\d+)\.downsample\.[01]\.(.+)", "layer{0}.{1}.downsample.{2}"),
    (r"layer(\d+)\.(\d+)\.conv(\d)\.(.+)", "layer{0}.{1}.branch.{2}.{3}"),
    (r"stages\.(\d+)\.(\d+)\.downsample\.conv\.(.+)", "layer{0}.{1}.downsample.{2}"),
    (r"stages\.(\d+)\.(\d+)\.conv(\d)\.(.+)", "layer{0}.{1}.branch.{2}.{3}"),
    (r"(?:head\.)?fc\.(.+)", "fc.{0}"),
)
# Of a shortcut, timm's resnet*d average in 0, so that the norm is 2.
_NORMS = r"(.*\.)?(bn\d|downsample\.[12])\..+"


def load_ann_weights(
    model: NFResNet, weights: nn.Module | Mapping[str, Tensor], source: str = "a given network"
) -> AnnWeights:
    """Start a spiking NF-ResNet from the weights of a network without spikes.

    Every parameter whose place and shape fit is taken: of timm's ``nf_resnet*`` the convolutions
    with their gains and biases, and of torchvision's and timm's ``resnet*`` the convolutions alone,
    whose batch norms have no counterpart. They are a start and no trained network: ours
    standardizes weights by another formula than timm's, its neurons spike, and a residual branch
    adds nothing before its ``skipinit`` has learnt. The first convolution is made to fit other
    input channels, see `zoo.load_weights`.

    Args:
        model: Takes the weights, in place.
        weights: A network, or its state.
        source: Its name, for the provenance.

    Returns:
        What was taken, and what was not.

    Raises:
        InputError: If no convolution fits; the model is unchanged.
    """
    theirs = weights.state_dict() if isinstance(weights, nn.Module) else weights
    ours = dict(model.named_parameters())
    taken: dict[str, str] = {}
    adapted: list[str] = []
    left_out: dict[str, str] = {}
    values: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        norm = tensor.dim() < 2 and re.fullmatch(_NORMS, name)
        place = None if norm else _place(name)
        if place is not None and place not in ours:  # where a shortcut averages before it
            place = place.replace(".downsample.", ".downsample.1.")
        if place is None or place not in ours:
            left_out[name] = "batch norm, which ours has none of" if norm else "no such place"
            continue
        channels = ours[place].shape[1:2]
        if place == "stem.weight" and tensor.dim() == 4 and tensor.shape[1:2] != channels:
            tensor = adapt_input_channels(tensor, *channels)
            adapted.append(place)
        if tensor.shape != ours[place].shape:
            left_out[name] = f"shape {[*tensor.shape]}, ours is {[*ours[place].shape]}"
            continue
        taken[place], values[place] = name, tensor
    if not any(value.dim() == 4 and place != "stem.weight" for place, value in values.items()):
        raise InputError(
            f"no convolution of {source} fits this {type(model).__name__}: give timm's nf_resnet*, "
            "or torchvision's or timm's resnet*, of the same depth"
        )
    with torch.no_grad():
        for place, value in values.items():
            ours[place].copy_(value)
    kept = tuple(name for name in ours if name not in taken)
    adapted = [place for place in adapted if place in taken]
    return AnnWeights(f"ANN weights of {source}", taken, tuple(adapted), left_out, kept)


def _place(name: str) -> str | None:
    """Return the name of ours for one of theirs; None where there is none."""
    for pattern, ours in _NAMES:
        if match := re.fullmatch(pattern, name):
            parts = [*match.groups()]
            if name.startswith("stages."):
                parts[0] = str(int(parts[0]) + 1)
            if "branch" in ours:
                parts[2] = str(2 * (int(parts[2]) - 1))  # neurons stand between the convolutions
            return ours.format(*parts)
    return None
