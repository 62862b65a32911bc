"""The update of the weights: gradients added up over calls, scaled, clipped, averaged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sj_ottt.errors import InputError, NotFiniteError
from sj_ottt.learning.passes.processes import Processes

__all__ = ["NOT_FINITE", "Update", "is_finite", "refuse_not_finite"]

NOT_FINITE = "x_seq holds values that are not finite (NaN or inf): clean the input"


def is_finite(x: Tensor) -> Tensor | None:
    """Return whether all of a tensor is finite, as a scalar on its device; None where it must be.

    A membrane that is NaN never fires: the loss would stay finite, and wrong, for ever. The
    extremes need no memory, where isfinite() would make masks as large as the sequence.
    """
    if x.is_floating_point() and x.numel():
        return torch.stack(x.aminmax()).isfinite().all()
    return None


def refuse_not_finite(
    finite: Sequence[bool | float],
    losses: Sequence[Tensor] | Tensor,
    first: int,
    optimizer: torch.optim.Optimizer,
    *,
    all_finite: bool | None = None,
) -> None:
    """Refuse losses that are not finite, without leaving a gradient.

    Args:
        finite: Whether each is.
        losses: Scalars.
        first: The time step of the first.
        optimizer: Its gradients are set to zero where one is not finite.
        all_finite: Whether those of all processes are; None where there is but this one.

    Raises:
        NotFiniteError: If one is not.
    """
    if all(finite) if all_finite is None else all_finite:
        return
    optimizer.zero_grad()
    found = "a loss of another process is not finite"
    wrong = next((t for t, good in enumerate(finite) if not good), None)
    if wrong is not None:
        found = f"the loss of time step {first + wrong} is {losses[wrong].item()}"
    raise NotFiniteError(
        f"{found}; no parameter was changed by it: lower the learning rate, or look for extreme "
        "values in x_seq and in the weights"
    )


@dataclass(frozen=True)
class Update:
    """How the gradients of a call of `train_step` become an update; its arguments, of these names.

    Attributes:
        processes: Those that train the model together.
        input_is_finite: Whether the input is, as a scalar on the device that nobody has looked at
            yet; None where it has been looked at.
        recorded: Whether the passes are only recorded, as by a CUDA graph: nothing is looked at,
            and the gradients stay in `grad` for an update that comes later.

    Raises:
        InputError: If one of them is out of range, or `ema` is no average of the model.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    accumulation: tuple[int, int] | None = None
    clip_norm: float | None = None
    ema: AveragedModel | None = None
    processes: Processes = field(default_factory=Processes)
    input_is_finite: Tensor | None = None
    recorded: bool = False

    def __post_init__(self) -> None:
        i, k = self.accumulation or (0, 1)
        if not 0 <= i < k:
            raise InputError(
                f"accumulation={self.accumulation}: give (i, k), call i of k, counted from 0"
            )
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise InputError(f"clip_norm={self.clip_norm}: give a finite number above 0, or None")
        if self.ema is not None and not _is_average_of(self.ema, self.model):
            raise InputError(
                "ema is no average of the model: give torch.optim.swa_utils.AveragedModel(model)"
            )

    def start(self) -> None:
        """Forget earlier gradients, but for those of the calls that this one continues."""
        if self.accumulation is None or self.accumulation[0] == 0:
            self.optimizer.zero_grad()

    def initialize_scale(self) -> None:
        """Make the scaler ready for an update without a loss of this process's own."""
        if self.scaler is not None:
            self.scaler.scale(torch.zeros((), device=self.processes.device))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss up, divided by the number of calls that share an update."""
        if self.accumulation is not None:
            loss = loss / self.accumulation[1]
        loss = self.processes.weighed(loss)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def finish(self, clipped_from: float | None = None) -> None:
        """Update the weights, unless calls follow that share the update.

        Args:
            clipped_from: The norm of the gradients before they were clipped, where they have been.

        Raises:
            InputError: If the gradients are to be clipped and their norm is not finite; nothing is
                changed then. With a scaler, such an update is left out.
        """
        unfinished = self.accumulation and self.accumulation[0] + 1 < self.accumulation[1]
        if unfinished or self.recorded:
            return
        self.processes.add_up(self.optimizer)
        if self.clip_norm is not None:
            self._clip(self.clip_norm, clipped_from)
        done = self._step()
        if self.ema is not None and done:
            self.ema.update_parameters(self.model)

    def _step(self) -> bool:
        """Let the optimizer step, and return whether it did, as far as `ema` needs to know."""
        if self.scaler is None:
            self.optimizer.step()
            return True
        scale = self.scaler.get_scale() if self.ema is not None else 0.0  # waits for the device
        self.scaler.step(self.optimizer)  # leaves the update out where a gradient overflowed
        self.scaler.update()
        return self.ema is None or self.scaler.get_scale() >= scale

    @torch.no_grad()
    def _clip(self, limit: float, clipped_from: float | None) -> None:
        """Limit the norm of all gradients together, where that has not been done."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = clipped_from
        if norm is None:
            norm = torch.nn.utils.get_total_norm(grads).item() if grads else 0.0
        if not math.isfinite(norm) and self.scaler is None:
            self.optimizer.zero_grad()
            raise NotFiniteError(
                f"the gradients have the norm {norm}; no parameter was changed by them: lower the "
                "learning rate, or look for extreme values in x_seq and in the weights"
            )
        if clipped_from is None and limit < norm < math.inf:
            torch._foreach_mul_(grads, limit / norm)


def _is_average_of(ema: object, model: nn.Module) -> bool:
    if not isinstance(ema, AveragedModel):
        return False
    # It would leave out without a word what one of the two lacks.
    shapes = ([p.shape for p in net.parameters()] for net in (ema.module, model))
    return next(shapes) == next(shapes)
