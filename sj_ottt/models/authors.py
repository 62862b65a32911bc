"""The authors' checkpoints into a zoo, under the names of our networks.

Their code keeps a network's state in a dict under ``net``; where a layer was traced in training,
``.op`` stands between its name and its parameter's.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from sj_ottt import zoo
from sj_ottt._files import refuse_compressed
from sj_ottt.errors import InputError
from sj_ottt.models.ottt_nf_resnet import NFResNet
from sj_ottt.models.ottt_vgg import VGG
from sj_ottt.zoo.cards import write_card

__all__ = ["authors_state", "import_checkpoint"]

_SHOWN = 5  # names in a message


def import_checkpoint(
    file: str | Path,
    model: str,
    tag: str,
    to: str | Path | None = None,
    *,
    license: str = "other",
    replace: bool = False,
) -> zoo.ZooEntry:
    """Put a checkpoint of the authors' code into a zoo, where `pretrained=` finds it.

    A process that starts afterwards knows it as ``timm.create_model("model.tag", pretrained=True)``
    where the zoo is the user's.

    Args:
        file: As ``torch.save`` wrote it; read without pickle.
        model: The architecture: the VGG, VGG-F and NF-ResNet of this package.
        tag: The weights' tag, as in timm.
        to: The zoo; that of the user if not given, see `zoo.own_folder`.
        license: As model hubs name it.
        replace: Put them in the place of weights of the same name.

    Returns:
        Their entry in the zoo.

    Raises:
        InputError: The file is missing, damaged, or holds something else than tensors; a tensor is
            missing, not expected, of another shape or not finite; the tag is no name, or taken.
    """
    path = Path(file)
    zoo.check_tag(tag)
    data = _bytes(path)
    theirs = _net(path, data)
    network = zoo.create(model.partition(".")[0], 1, in_chans=1)
    if "." in model or not isinstance(network, VGG | NFResNet):
        raise InputError(
            f"model={model!r}: give a VGG, VGG-F or NF-ResNet without a tag, see `sj-ottt models`"
        )
    state = authors_state(network, theirs, str(path))
    classes, in_chans = len(state["fc.weight"]), state[f"{network.first_conv}.weight"].shape[1]
    name = f"{model}.{tag}"
    card = write_card(
        name,
        about="Weights of the OTTT paper's authors' code, imported from a checkpoint. What they "
        "reach was measured by those who trained them.",
        license=license,
        trained_on="not stated",
        provenance={
            "imported_from": path.name,
            "sha256_of_that": hashlib.sha256(data).hexdigest(),
            "paper": "https://openreview.net/forum?id=Siv3nHYHheI",
        },
        results=[],
    )
    content = save(state, metadata={"format": "pt", "name": name})
    cfg = {**_cfg(model, in_chans), "num_classes": classes, "license": license}
    return zoo.add_to_zoo(zoo.own_folder(to), name, content, card, cfg, replace=replace)


def authors_state(
    network: VGG | NFResNet, theirs: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Return the authors' tensors under our names.

    Args:
        network: Ours, of any number of classes and input channels.
        theirs: A state of the authors' network.
        source: The file, for messages.

    Raises:
        InputError: A tensor is missing, not expected, there twice, of another shape or not finite.
    """
    plain: dict[str, Tensor] = {}
    for key, tensor in theirs.items():
        short = key.replace(".op.", ".")
        if short in plain:
            raise InputError(f"{source} holds {short} twice, with .op and without: save it again")
        plain[short] = tensor
    if isinstance(network, VGG) and "fb_conv.bias" in plain:
        network.adapt_to({"feedback.synapse.bias": plain["fb_conv.bias"]})
    ours = network.state_dict()
    names = {key: _their_name(network, key) for key in ours}
    missing = [name for name in names.values() if name not in plain]
    unexpected = [name for name in plain if name not in names.values()]
    if missing or unexpected:
        parts = [f"it lacks {_listed(missing)}"] if missing else []
        parts += [f"it has {_listed(unexpected)} besides"] if unexpected else []
        raise InputError(
            f"{source} is not a {type(network).__name__} of the authors' code of this depth: "
            f"{', and '.join(parts)}; give the model that it was saved from"
        )
    state = {key: plain[name] for key, name in names.items()}
    first, free = f"{network.first_conv}.weight", ("fc.weight", "fc.bias")
    for key, tensor in state.items():
        wanted = list(ours[key].shape)
        if key == first and tensor.dim() == len(wanted):
            wanted[1] = tensor.shape[1]  # any number of input channels
        if key in free and tensor.dim() == len(wanted):
            wanted[0] = len(state["fc.weight"])  # and of classes
        if list(tensor.shape) != wanted or not tensor.numel():
            raise InputError(
                f"{source}: {names[key]} has the shape {list(tensor.shape)}, and the model needs "
                f"{wanted}; give the model that it was saved from"
            )
        zoo.check_numbers(f"{source}: {names[key]}", tensor, torch.float32)
    return {key: tensor.detach().float().contiguous() for key, tensor in state.items()}


def _their_name(network: VGG | NFResNet, key: str) -> str:
    """Return the authors' name of one of our tensors, without ``.op``."""
    return _in_vgg(network, key) if isinstance(network, VGG) else _in_nf_resnet(key)


def _in_nf_resnet(key: str) -> str:
    key = re.sub(r"^stem\.", "conv1.", key)
    key = re.sub(r"\.skipinit$", ".skipinit_gain", key)
    # Between our convolutions stand neurons, which have numbers too.
    return re.sub(r"\.branch\.(\d+)\.", lambda m: f".conv{int(m[1]) // 2 + 1}.", key)


def _in_vgg(network: VGG, key: str) -> str:
    place, _, parameter = key.rpartition(".")
    if place == "fc":
        return f"classifier.0.{parameter}"
    if network.feedback is not None and place == "feedback.synapse":
        return f"fb_conv.{parameter}"
    # Theirs are numbered through all stages; that of a VGG-F begins behind the first convolution.
    stages = [network.get_submodule(info["module"]) for info in network.feature_info]
    layers = [module for stage in stages for module in stage.children()]
    number = layers.index(network.get_submodule(place))
    if network.feedback is None:
        return f"features.{number}.{parameter}"
    return f"features.{number - 1}.{parameter}" if number else f"conv1.{parameter}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _net(path: Path, data: bytes) -> dict[str, Tensor]:
    refuse_compressed(path)
    try:
        checkpoint: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything from EOFError to UnpicklingError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a checkpoint of tensors and plain values ({reason}); download it again"
        ) from error
    net = checkpoint.get("net") if isinstance(checkpoint, dict) else None
    tensors = isinstance(net, dict) and all(isinstance(t, Tensor) for t in net.values())
    if not tensors or not net or not all(isinstance(key, str) for key in net):
        raise InputError(
            f"{path} holds no tensors under the key net: give a checkpoint of the authors' code, "
            "such as checkpoint_max.pth"
        )
    return net


def _cfg(model: str, in_chans: int) -> dict[str, Any]:
    """Return the fields of timm's configuration that go with a checkpoint's input."""
    known: Any = timm.get_pretrained_cfg(f"{model}.untrained")
    images = in_chans == known.input_size[0]
    return {
        "input_size": [in_chans, *known.input_size[1:]],
        "pool_size": list(known.pool_size),
        "mean": list(known.mean) if images else [0.0] * in_chans,
        "std": list(known.std) if images else [1.0] * in_chans,
        "crop_pct": known.crop_pct,
    }
