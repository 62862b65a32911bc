"""Forward propagation through time (FPTT): updates within a sequence, held together by averages.

A sequence is cut into P parts, and the weights are updated after each. So that no part forgets the
others, every weight W has a running average W̄ that it is pulled towards, and Λ, a running
estimate of the gradient, that corrects the pull. `learning.train_step` runs it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sj_ottt.errors import InputError, NotFiniteError

__all__ = ["FPTT", "Divergence"]

FORMS = ("lambda", "grad")


@dataclass(frozen=True)
class Divergence:
    """An auxiliary loss of early parts: Σ q log(q / softmax(logits)), the mean over the batch.

    Attributes:
        stored: q: one distribution [classes], or one for each target class [classes, classes].
    """

    stored: Tensor

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar divergence of logits [N, classes]."""
        q = self.stored.to(logits)
        if q.dim() == 1:
            q = q.expand_as(logits)
        else:  # of classes, or of their probabilities
            q = target.to(q) @ q if target.is_floating_point() else q[target]
        return F.kl_div(logits.log_softmax(1), q, reduction="batchmean")


class FPTT:
    """What FPTT keeps between updates, and its update; stands in for the optimizer.

    After the backward pass of a part's loss ℓ, form "lambda" (the default) does

    1. one clipped step of the optimizer on ℓ(W) − (1 − ρ) ⟨W, Λ⟩ + (α/2) ‖W − W̄‖²;
    2. Λ ← Λ − α (W − W̄);
    3. W̄ ← (1 − β) W̄ + β W − (β/α) Λ.

    Form "grad" takes Λ = ∇ℓ(W) of the part at the new weights, by a second pass, a pull of
    (α/2) ‖W − W̄ − Λ/(2α)‖², and W̄ ← (W̄ + W)/2 − Λ/(2α); it knows neither β nor ρ. SpikingJelly's
    `fptt_online_training` follows that form; `learning.online_learning` says where it differs.

        fptt = FPTT(torch.optim.Adam(model.parameters(), 1e-3), alpha=0.5, parts=10)
        loss, logits = train_step(model, fptt, x_seq, target)
        with fptt.averaged():
            logits = predict(model, x_seq)

    W̄ starts at W and Λ at 0 with a parameter's first update. A parameter without a gradient is
    left out of an update, W̄ and Λ too.

    Args:
        optimizer: Does the step; without weight decay in the authors' runs.
        alpha: α, above 0; 0.5 for the add task, 0.1 for classification in the authors' runs.
        beta: β, in 0 … 1.
        rho: ρ, in 0 … 1.
        clip: Largest norm of all gradients together, those of the pull included; None for no limit.
        parts: P; None for one part a time step. Where it does not divide T, the first parts are
            one step longer than the last ones.
        form: "lambda" or "grad".
        weight: Weight of part p (from 0) of P; None for (p + 1) / P.
        auxiliary: (logits, target) → scalar, such as `Divergence`; its weight is what is missing of
            the part's weight to 1. None for no such term.

    Attributes:
        optimizer: As given.
        parts: As given.
        form: As given.

    Raises:
        InputError: If a number is out of range, or `form` is unknown or does not know β or ρ.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        alpha: float,
        beta: float = 0.5,
        rho: float = 0.0,
        clip: float | None = 1.0,
        parts: int | None = None,
        form: str = "lambda",
        weight: Callable[[int, int], float] | None = None,
        auxiliary: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        if form not in FORMS:
            raise InputError(f'form="{form}" is unknown: use "lambda" or "grad"')
        for name, value, fits, wanted in (
            ("alpha", alpha, lambda v: 0 < v < math.inf, "a finite number above 0"),
            ("beta", beta, lambda v: 0 <= v <= 1, "a number from 0 to 1"),
            ("rho", rho, lambda v: 0 <= v <= 1, "a number from 0 to 1"),
            ("clip", clip, lambda v: v > 0, "a number above 0, or None"),
        ):
            if (name, value) != ("clip", None) and not (isinstance(value, Real) and fits(value)):
                raise InputError(f"{name}={value!r}: give {wanted}")
        if parts is not None and not (isinstance(parts, Integral) and parts >= 1):
            raise InputError(f"parts={parts!r}: give a whole number from 1 on, or None")
        if form == "grad" and (beta, rho) != (0.5, 0.0):
            raise InputError(f'form="grad" has no beta and rho: leave out beta={beta}, rho={rho}')
        self.optimizer, self.parts, self.form = optimizer, parts, form
        self._alpha, self._beta, self._rho = float(alpha), float(beta), float(rho)
        self._clip = None if clip is None else float(clip)
        self._weight = weight or (lambda p, n: (p + 1) / n)
        self._auxiliary = auxiliary
        # By the parameter's index, as in the state of an optimizer.
        self._average: dict[int, Tensor] = {}
        self._dual: dict[int, Tensor] = {}

    @property
    def _parameters(self) -> list[torch.nn.Parameter]:
        # Read anew, as groups may be added to an optimizer.
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def total_weight(self, parts: int) -> float:
        """Return the sum of the weights of all terms of P parts."""
        if self._auxiliary is not None:
            return float(parts)
        return sum(self._weight(p, parts) for p in range(parts))

    def weighted(
        self, loss: Tensor, logits: Tensor, target: Tensor, part: int, parts: int
    ) -> Tensor:
        """Return the weighted loss of a part, with the auxiliary term where there is one.

        Args:
            loss: Loss of the part, a scalar.
            logits: The part's last output, [N, classes].
            target: As the auxiliary loss takes it.
            part: Number of the part, from 0.
            parts: P.
        """
        weight = self._weight(part, parts)
        if self._auxiliary is None:
            return weight * loss
        return weight * loss + (1 - weight) * self._auxiliary(logits, target)

    @torch.no_grad()
    def update(self, repeat: Callable[[], object]) -> None:
        """Update the weights, W̄ and Λ from the gradients of a part's loss.

        Args:
            repeat: Does the part's passes once more and leaves their gradients, for form "grad".

        Raises:
            InputError: If there is a limit to the norm and a gradient is not finite; nothing is
                changed then. If that, or a loss that is not finite, comes in the second pass of
                form "grad", the weights keep the step that was before it, and W̄ and Λ are as they
                were.
        """
        parameters = self._parameters
        updated = [i for i, p in enumerate(parameters) if p.grad is not None]
        if not updated:
            return
        for i in updated:
            if i not in self._average:
                self._average[i] = parameters[i].detach().clone()
                self._dual[i] = torch.zeros_like(self._average[i])
        weights: list[Tensor] = [parameters[i] for i in updated]
        average, dual = ([state[i] for i in updated] for state in (self._average, self._dual))
        grads = [p.grad for p in weights if p.grad is not None]
        self._pull(grads, weights, average, dual)
        self.optimizer.step()
        if self.form == "lambda":
            torch._foreach_sub_(dual, torch._foreach_sub(weights, average), alpha=self._alpha)
        else:
            self.optimizer.zero_grad()
            with torch.enable_grad():
                repeat()
            self._norm([p.grad for p in weights if p.grad is not None])
            # A parameter that the second pass does not reach has a gradient of 0 there.
            for old, p in zip(dual, weights, strict=True):
                old.zero_() if p.grad is None else old.copy_(p.grad)
        torch._foreach_lerp_(average, weights, self._beta)
        torch._foreach_sub_(average, dual, alpha=self._beta / self._alpha)

    def _pull(
        self, grads: list[Tensor], weights: list[Tensor], average: list[Tensor], dual: list[Tensor]
    ) -> None:
        """Add the gradient of the pull, and limit the norm of all gradients together."""
        torch._foreach_add_(grads, torch._foreach_sub(weights, average), alpha=self._alpha)
        share = 1 - self._rho if self.form == "lambda" else 0.5
        torch._foreach_sub_(grads, dual, alpha=share)
        norm = self._norm(grads)
        if self._clip is not None and norm > self._clip:
            torch._foreach_mul_(grads, self._clip / norm)

    def _norm(self, grads: list[Tensor]) -> float:
        """Return the norm of all gradients together, which is finite; 0 where it has no limit."""
        if self._clip is None:
            return 0.0
        norm = torch.nn.utils.get_total_norm(grads).item()
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            raise NotFiniteError(
                f"the gradients have the norm {norm}; no parameter was changed by them: lower the "
                "learning rate, or look for extreme values in x_seq and in the weights"
            )
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put W̄ into the model's parameters, for an evaluation, and W back afterwards.

        Do not train inside. Batch norm keeps its running statistics, which W has made.
        """
        parameters = self._parameters
        weights: list[Tensor] = [parameters[i] for i in self._average]
        kept = [p.detach().clone() for p in weights]
        try:
            _copy(weights, [*self._average.values()])
            yield
        finally:
            _copy(weights, kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state, W̄ and Λ."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "average": dict(self._average),
            "dual": dict(self._dual),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the weights themselves are the model's.

        Raises:
            InputError: If it is not the state of FPTT on these parameters.
        """
        parameters = self._parameters
        try:
            loaded = [
                {i: v.detach().to(parameters[i], copy=True) for i, v in state[key].items()}
                for key in ("average", "dual")
            ]
            fits = loaded[0].keys() == loaded[1].keys() and all(
                value.shape == parameters[i].shape for part in loaded for i, value in part.items()
            )
            if fits:
                self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            fits = False
        if not fits:
            raise InputError(
                "state is not that of FPTT on these parameters: give what state_dict() returned "
                "for the same model and optimizer"
            )
        self._average, self._dual = loaded


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
