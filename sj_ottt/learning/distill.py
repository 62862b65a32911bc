"""Targets for what the stages of a network hold, at every time step (distillation)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_ottt._ops.pair import Pair
from sj_ottt.errors import InputError, suggest
from sj_ottt.learning.losses import CrossEntropyMSE
from sj_ottt.learning.predict import predicts_last

__all__ = ["Distillation", "StageTarget"]


@dataclass(frozen=True)
class StageTarget:
    """What a stage of a network learns to hold.

    Attributes:
        stage: Name of the module, such as one that timm's `feature_info` names.
        channels: C, the channels of the target.
        pooled: Whether the target is one vector a sample, [N, C], for the stage's mean over all
            pixels, or a map of the stage's height and width, [N, C, H, W].
        weight: Of its error in the loss.
        width: Channels of the stage's output; None where the model's `feature_info` tells.
    """

    stage: str
    channels: int
    pooled: bool = False
    weight: float = 1.0
    width: int | None = None


class Distillation(nn.Module):
    """A network that also learns by what another one holds, stage by stage.

    At each time step t a stage's output h[t] is mapped by a 1 × 1 convolution of its own, and

        L[t] = ℓ(y[t], label) + Σ weight · mean((W h[t] + b − target)²).

    That is a loss of `train_step` under every rule; the maps W are thrown away afterwards:

        targets = [StageTarget("layer1", 40), StageTarget("layer4", 1280, pooled=True)]
        student = Distillation(model, targets)
        optimizer = torch.optim.Adam(student.parameters())
        train_step(student, optimizer, x_seq, (labels, [maps, features]), loss_fn=student.loss)

    W has no membrane behind it, so that its exact gradient is g h[t]ᵀ, without a trace: of a stage
    that hands on spikes the map sees the spikes alone. What flows on into the stage, Wᵀ g, is
    learned from by the network's rule. The maps start at zero: a random one would make noise of
    what a stage holds, and the stage would first learn to hold less, until its neurons fall silent.

    Args:
        model: Does one time step a call, and runs each of the stages once in it.
        targets: For the stages, in the order of the targets that `loss` takes.
        loss_fn: ℓ, (outputs of `model`, label) → scalar; None takes cross entropy alone.

    Raises:
        InputError: If the model has no such stage, or a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Iterable[StageTarget],
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
    ):
        super().__init__()
        self.model = model
        self.targets = tuple(targets)
        self.loss_fn = CrossEntropyMSE(mse_weight=0.0) if loss_fn is None else loss_fn
        known = [name for name, _ in model.named_modules() if name]
        for target in self.targets:
            if target.stage not in known:
                raise InputError(
                    f"the model has no stage {target.stage!r}{suggest(target.stage, known)}: give "
                    "the name of one of its modules"
                )
            if target.channels < 1 or not target.weight > 0:
                raise InputError(f"{target}: give 1 channel or more, and a weight above 0")
        self.maps = nn.ModuleList(
            nn.Conv2d(_width(model, target), target.channels, 1) for target in self.targets
        )
        for parameter in self.maps.parameters():
            nn.init.zeros_(parameter)

    @property
    def prediction(self) -> str:
        """What of the outputs of all steps is the prediction: as the model says."""
        return "last" if predicts_last(self.model) else "sum"

    def forward(self, x: Tensor) -> tuple[Any, list[Tensor]]:
        """Do one time step: the model's outputs, and what each target's map makes of its stage.

        Raises:
            InputError: If a stage did not run, or does not hold [N, C, H, W].
        """
        held: dict[str, Any] = {}
        # For this call alone, so that the model stays as it was.
        hooks = [
            self.model.get_submodule(stage).register_forward_hook(partial(_keep, held, stage))
            for stage in {target.stage: None for target in self.targets}
        ]
        try:
            outputs = self.model(x)
        finally:
            for hook in hooks:
                hook.remove()
        mapped = [
            _mapped(convolution, target, held.get(target.stage))
            for convolution, target in zip(self.maps, self.targets, strict=True)
        ]
        return outputs, mapped

    def loss(
        self, outputs: tuple[Any, list[Tensor]], target: tuple[Any, Sequence[Tensor]]
    ) -> Tensor:
        """Return the loss of a time step.

        Args:
            outputs: What `forward` returns.
            target: (label, targets of the stages): a tensor [N, C, H, W] or [N, C] each.

        Raises:
            InputError: If the number of targets or the shape of one does not fit.
        """
        y, mapped = outputs
        label, wanted = target
        loss = self.loss_fn(y, label)
        for stage, found, value in zip(self.targets, mapped, self._checked(wanted), strict=True):
            if found.shape != value.shape:
                raise InputError(
                    f"the target for {stage.stage} has shape {list(value.shape)}, and the stage "
                    f"gives {list(found.shape)}: bring the target to this size"
                )
            loss = loss + stage.weight * F.mse_loss(*_comparable(found, value))
        return loss

    def _checked(self, wanted: Sequence[Tensor]) -> Sequence[Tensor]:
        if len(wanted) != len(self.targets):
            raise InputError(
                f"{len(wanted)} targets for {len(self.targets)} stages: give one each, in the "
                "order of Distillation's targets"
            )
        return wanted


def _comparable(found: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the wider of their dtypes, the target as something that does not learn."""
    dtype = torch.promote_types(found.dtype, target.dtype)
    # Autograd cannot keep what was made in inference mode.
    target = target.clone() if target.is_inference() else target.detach()
    return found.to(dtype), target.to(found.device, dtype)


def _width(model: nn.Module, target: StageTarget) -> int:
    """Return the channels of a stage's output."""
    features: Any = getattr(model, "feature_info", ())
    known = {feature["module"]: int(feature["num_chs"]) for feature in features}
    width = target.width if target.width is not None else known.get(target.stage)
    if width is None:
        raise InputError(
            f"the model's feature_info does not tell how many channels stage {target.stage} gives: "
            "say it by StageTarget(width=...)"
        )
    return width


def _keep(held: dict[str, Any], stage: str, module: nn.Module, args: Any, output: Any) -> None:
    held[stage] = output


def _mapped(convolution: nn.Module, target: StageTarget, held: Any) -> Tensor:
    """Return what a target's map makes of a stage's output."""
    h = held.spike if isinstance(held, Pair) else held
    if not isinstance(h, Tensor) or h.dim() != 4:
        what = f"of shape {list(h.shape)}" if isinstance(h, Tensor) else type(h).__name__
        raise InputError(
            f"stage {target.stage} gave {what if held is not None else 'nothing'} in this step: "
            "name a module that runs in each step and gives [N, C, H, W]"
        )
    if target.pooled:
        h = h.mean((2, 3), keepdim=True)
    mapped: Tensor = convolution(h)
    return mapped.flatten(1) if target.pooled else mapped
