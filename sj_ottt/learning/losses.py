"""Losses of one time step."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

__all__ = ["CrossEntropyMSE"]


@dataclass(frozen=True)
class CrossEntropyMSE:
    """The paper's loss of one time step: (1 − a) cross entropy + a mean squared error to one-hot.

    Attributes:
        mse_weight: a. The authors take 0.05 on images, 0.001 on event recordings.
        class_weights: Factor on the loss of a sample of each class [classes]; None for 1. The mean
            is taken over the samples, not over the weights, so that it counts with one sample too.
    """

    mse_weight: float = 0.05
    class_weights: Tensor | None = None

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of logits [N, classes].

        The target is class indices [N], or probabilities of the classes [N, classes], which then
        take the place of one-hot.
        """
        if target.is_floating_point():
            target = target.to(logits)
        weights, reduction = None, "mean"
        if self.class_weights is not None:
            weights, reduction = self.class_weights.to(logits), "none"
            weights = target @ weights if target.dim() == 2 else weights[target]
        loss = F.cross_entropy(logits, target, reduction=reduction)
        if self.mse_weight:
            soft = target.dim() == 2
            one_hot = target if soft else F.one_hot(target, logits.shape[1]).to(logits)
            error = F.mse_loss(logits, one_hot, reduction=reduction)
            error = error if weights is None else error.mean(1)
            loss = (1 - self.mse_weight) * loss + self.mse_weight * error
        return loss if weights is None else (weights * loss).mean()
