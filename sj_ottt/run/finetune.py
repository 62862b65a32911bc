"""What of a pretrained network learns and how fast: frozen parts, rates by depth, rare classes."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sj_ottt import zoo
from sj_ottt.errors import InputError, suggest

__all__ = [
    "USUAL",
    "class_weights",
    "freeze",
    "keep_statistics",
    "only_classifier",
    "parameter_groups",
    "stopped_early",
    "usual_options",
]

_RATES = {"sgd": (0.05, 0.005), "adam": (0.002, 0.001)}
"""Highest learning rates by optimizer, from scratch and from weights; Adam's go for its kin too."""

USUAL = {
    "optimizer": "sgd; with --pretrained adam",
    "lr": "0.05 with sgd, 0.002 with the others; with --pretrained 0.005 and 0.001",
}
"""`usual_options` in words."""


def usual_options(optimizer: str | None, pretrained: bool) -> dict[str, Any]:
    """Return the optimizer and the learning rate of a run in which they are not given.

    From pretrained weights it is Adam, as SGD at its usual rate drives an NF-ResNet's weights to
    infinity on small batches (docs/benchmarks/transfer.md).

    Args:
        optimizer: The one that is given; None if none is.
        pretrained: Whether the run starts from weights.
    """
    optimizer = optimizer or ("adam" if pretrained else "sgd")
    return {"optimizer": optimizer, "lr": _RATES.get(optimizer, _RATES["adam"])[pretrained]}


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Keep parts of a model from learning, in place.

    Args:
        model: A model of this package.
        names: Names of its modules, such as ``layer1`` or ``layer2.0``; ``stem`` is the first
            convolution where no module is called so.

    Raises:
        InputError: There is no such module, it has no weights, or nothing is left to learn.
    """
    modules = dict(model.named_modules())
    for name in names:
        module_name = model.first_conv if name == "stem" and name not in modules else name
        parameters = list(modules[module_name].parameters()) if module_name in modules else []
        if not parameters or not module_name:
            parts = [child for child, m in model.named_children() if list(m.parameters())]
            raise InputError(
                f"freeze: {type(model).__name__} has no part {name!r} with weights"
                f"{suggest(name, parts)}; it has {', '.join(parts)} and their parts"
            )
        for parameter in parameters:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"freeze={','.join(names)} leaves nothing to learn: freeze less")


@contextlib.contextmanager
def only_classifier(model: nn.Module) -> Iterator[None]:
    """Let nothing but the classifier learn inside the context."""
    classifier = cast(Any, model).get_classifier()  # timm's interface, which nn.Module has not
    head = set(classifier.parameters())
    body = [p for p in model.parameters() if p.requires_grad and p not in head]
    for parameter in body:
        parameter.requires_grad_(False)
        parameter.grad = None  # or an optimizer would go on with it
    try:
        yield
    finally:
        for parameter in body:
            parameter.requires_grad_(True)


def keep_statistics(model: nn.Module) -> None:
    """Let batch norm that does not learn normalise by what it has seen before, and go by it.

    Args:
        model: In training mode, into which ``model.train()`` puts all of it again.
    """
    for module in model.modules():
        parameters = list(module.parameters()) if isinstance(module, _BatchNorm) else []
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def parameter_groups(model: nn.Module, layer_decay: float) -> list[dict[str, Any]]:
    """Group the parameters by depth: a learning rate smaller by a factor for each layer down.

    Args:
        model: A model of this package.
        layer_decay: The factor; at 1 there is one group.

    Returns:
        An optimizer's groups, each with the ``lr_scale`` that its learning rate is to be
        multiplied by: 1 for the classifier, ``layer_decay`` for the layer below it, and so on.
    """
    if layer_decay == 1:
        return [{"params": list(model.parameters()), "lr_scale": 1.0}]
    depths = zoo.layer_depths(model)
    top = max(depths.values())
    groups: dict[int, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(depths[name], []).append(parameter)
    return [
        {"params": groups[depth], "lr_scale": layer_decay ** (top - depth)}
        for depth in sorted(groups, reverse=True)
    ]


def class_weights(targets: np.ndarray, n_classes: int) -> Tensor:
    """Return weights inverse to the classes' frequencies, 1 on the average sample [n_classes].

    A class without samples gets 0.
    """
    counts = np.bincount(targets, minlength=n_classes)
    present = np.count_nonzero(counts)
    weights = np.divide(len(targets), present * counts, where=counts > 0, out=np.zeros(n_classes))
    return torch.from_numpy(weights).float()


def stopped_early(history: Sequence[Mapping[str, Any]], patience: int | None) -> bool:
    """Whether ``patience`` epochs have passed since the best validation accuracy was first reached.

    Args:
        history: One row per epoch with ``val_accuracy``.
        patience: Epochs; None never stops.
    """
    if patience is None or not history:
        return False
    accuracies = [row["val_accuracy"] for row in history]
    return len(history) - 1 - int(np.argmax(accuracies)) >= patience
