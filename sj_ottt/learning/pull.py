"""The pull towards the weights of a first stage (FTRL-OTTT)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sj_ottt.errors import InputError

__all__ = ["Pull"]


class Pull:
    """The second stage of FTRL-OTTT: a pull of the weights towards those of a first stage.

    It adds the gradient of ρ ‖W − Ŵ‖² (norm "l2") or ρ ‖W − Ŵ‖₁ ("l1") before every update:

        optimizer.register_step_pre_hook(Pull(model, weights_of_stage_one, rho=1e-3))

    The first stage trains with few time steps (T = 2 in the NDOT paper), the second with all.

    Args:
        model: The model that is trained.
        reference: Ŵ, by the model's parameter names; copied. Other names are left out.
        rho: ρ, from 0 on.
        norm: "l2" or "l1".

    Raises:
        InputError: If `rho` or `norm` is out of range, or a parameter is missing in `reference` or
            has another shape there.
    """

    def __init__(
        self, model: nn.Module, reference: Mapping[str, Tensor], rho: float, norm: str = "l2"
    ):
        if norm not in ("l1", "l2"):
            raise InputError(f'norm="{norm}" is unknown: use "l2" or "l1"')
        if not 0 <= rho < float("inf"):
            raise InputError(f"rho={rho}: give a finite number from 0 on")
        for name, parameter in model.named_parameters():
            if name not in reference or reference[name].shape != parameter.shape:
                raise InputError(
                    f"reference has no {name} of shape {list(parameter.shape)}: give the weights "
                    "of a first stage of the same model"
                )
        self._rho, self._norm = rho, norm
        self._pulled = [
            (parameter, reference[name].detach().to(parameter, copy=True))
            for name, parameter in model.named_parameters()
        ]

    @torch.no_grad()
    def __call__(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Add the pull to the gradients; an optimizer's step pre-hook."""
        for parameter, reference in self._pulled:
            if parameter.grad is not None:
                away = parameter - reference
                pull = 2 * away if self._norm == "l2" else away.sign()
                parameter.grad.add_(pull, alpha=self._rho)
