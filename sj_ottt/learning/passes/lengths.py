"""Sequences of different lengths in one batch: at each step, only those run that still go on.

So padding is never seen: not by a batch norm, not by a membrane, not by a loss.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn

from sj_ottt.errors import InputError
from sj_ottt.learning.passes.outputs import Structure, map_tensors
from sj_ottt.learning.state import map_state, stateful_modules

__all__ = ["Lengths"]


@dataclass(frozen=True)
class Lengths:
    """The lengths of a batch's sequences, and the order in which they stop.

    Attributes:
        order: [N], the samples by falling length; in that order the network sees them.
        lengths: Their lengths in that order.
    """

    order: Tensor
    lengths: list[int]

    @classmethod
    def of(cls, lengths: Tensor, x_seq: Tensor) -> Self:
        """Return the lengths [N] of the sequences x_seq [T, N, ...].

        Raises:
            InputError: If they are not N whole numbers from 1 to T.
        """
        steps, n = x_seq.shape[:2]
        whole = not (lengths.is_floating_point() or lengths.is_complex())
        fits = whole and lengths.dtype != torch.bool and lengths.shape == (n,)
        if not fits or not 1 <= int(lengths.min()) <= int(lengths.max()) <= steps:
            raise InputError(
                f"lengths {lengths.dtype} of shape {list(lengths.shape)} does not fit x_seq of "
                f"shape {list(x_seq.shape)} = [T, N, ...]: give a whole number from 1 to {steps} "
                f"for each of the {n} samples"
            )
        order = lengths.argsort(descending=True, stable=True)
        return cls(order.to(x_seq.device), lengths[order].tolist())

    @property
    def steps(self) -> int:
        """The longest sequence's length."""
        return self.lengths[0]

    def running(self, t: int) -> int:
        """Return how many sequences have a step t."""
        return sum(length > t for length in self.lengths)

    def inputs(self, model: nn.Module, x_seq: Tensor) -> Iterator[Tensor]:
        """Yield each step's input of the sequences that still run.

        Between two steps, the model forgets the state of those that have ended.

        Raises:
            InputError: If a module of the model has a state that is not of the batch.
        """
        before = len(self.lengths)
        for t, x in enumerate(x_seq[: self.steps]):
            n = self.running(t)
            if n < before:
                _keep_first(model, n, before)
            before = n
            yield x[self.order[:n]]

    def mean_loss(
        self, loss_fn: Callable[[Any, Any], Tensor], outputs: Structure, target: Structure, t: int
    ) -> Tensor:
        """Return a step's share of the mean over samples of their mean loss over time.

        Σ_n ℓ_n[t] / (N T_n) over the samples that still run; those of one length go through the
        loss together, which must be a mean over samples.

        Args:
            loss_fn: (outputs, target) → loss.
            outputs: Of the step, by tensors [running, ...].
            target: Of all samples, in the caller's order.
            t: Number of the step.
        """
        n, start, total = self.running(t), 0, None
        _check_batch_first(outputs, n)
        while start < n:
            length = self.lengths[start]
            stop = start + self.lengths.count(length)
            group = slice(start, stop)
            loss = loss_fn(
                map_tensors(lambda y, group=group: y[group], outputs),
                _samples(target, self.order[group], len(self.lengths)),
            )
            share = (stop - start) / (len(self.lengths) * length) * loss
            total, start = share if total is None else total + share, stop
        assert total is not None
        return total

    def combine(self, so_far: Structure, outputs: Structure, *, last: bool) -> Structure:
        """Return the prediction after one more step, whose outputs are those still running.

        Args:
            so_far: The prediction of all samples; None before the first step.
            outputs: Of the step.
            last: Whether a sample's last output is its prediction, not the sum.
        """
        if so_far is None:
            _check_batch_first(outputs, len(self.lengths))
            return outputs

        def more(whole: Tensor, y: Tensor) -> Tensor:
            return torch.cat((y if last else whole[: len(y)] + y, whole[len(y) :]))

        return map_tensors(more, so_far, outputs)

    def in_callers_order(self, prediction: Structure) -> Structure:
        """Return the prediction with the samples where the caller has them."""
        back = self.order.argsort()
        return map_tensors(lambda y: y[back], prediction)


def _keep_first(model: nn.Module, n: int, before: int) -> None:
    """Keep the state of the first n samples of a batch of size `before`."""

    def first(value: Tensor) -> Tensor:
        if value.dim() == 0:
            return value
        if len(value) != before:
            _refuse(f"a state of shape {list(value.shape)}")
        return value[:n].clone()  # frees the others

    for module in stateful_modules(model):
        if isinstance(module, sj_layer.DropConnectLinear):
            _refuse("the weights of DropConnectLinear, drawn for all samples together")
        for name, value in module._memories.items():
            module._memories[name] = map_state(first, value)


def _refuse(kept: str) -> NoReturn:
    raise InputError(
        f"lengths: the model keeps {kept} between time steps, which cannot be parted by samples: "
        "train on sequences of one length"
    )


def _check_batch_first(outputs: Structure, n: int) -> None:
    def check(y: Tensor) -> None:
        if y.dim() == 0 or len(y) != n:
            raise InputError(
                f"lengths: the model gave an output of shape {list(y.shape)} for {n} samples: "
                "give outputs [N, ...]"
            )

    map_tensors(check, outputs)


def _samples(target: Structure, index: Tensor, n: int) -> Structure:
    """Return some samples of a target: of its tensors [N, ...], and of lists with N items."""
    if isinstance(target, Tensor):
        return target[index.to(target.device)] if target.dim() and len(target) == n else target
    if isinstance(target, dict):
        return {key: _samples(value, index, n) for key, value in target.items()}
    if not isinstance(target, list | tuple):
        return target
    batches = all(isinstance(item, Tensor) and item.dim() and len(item) == n for item in target)
    if isinstance(target, list) and len(target) == n and not batches:
        return [target[i] for i in index.tolist()]
    items = [_samples(item, index, n) for item in target]
    return type(target)(*items) if hasattr(target, "_fields") else type(target)(items)
