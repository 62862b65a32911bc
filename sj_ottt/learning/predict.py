"""Predictions: a sequence without gradients, traces or a memory of earlier steps."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sj_ottt.errors import InputError
from sj_ottt.learning.state import reset_state

__all__ = ["as_sequence", "combine_outputs", "predict", "predicts_last"]


def predicts_last(model: nn.Module) -> bool:
    """Whether a model says of itself that its last output is its prediction, not their sum."""
    return getattr(model, "prediction", "sum") == "last"


def combine_outputs(model: nn.Module, outputs: Iterable[Tensor]) -> Tensor:
    """Return a model's prediction: the sum of its outputs, or the last one (`predicts_last`)."""
    last = predicts_last(model)
    prediction: Tensor | None = None
    for y in outputs:
        prediction = y if last or prediction is None else prediction + y
    if prediction is None:
        raise InputError("there is no output of a time step to predict by: give at least one")
    return prediction


def predict(model: nn.Module, x_seq: Tensor, steps: int | None = None) -> Tensor:
    """Classify one batch without gradients, traces or a memory of earlier steps.

    The model may be in either mode and is left in the one it was in.

    Args:
        model: Maps [N, ...] to logits [N, classes], one time step a call.
        x_seq: A sequence [T, N, ...]; or, with `steps`, a static batch [N, ...].
        steps: T for a static batch.

    Returns:
        Logits, [N, classes], summed over the steps or, of a model whose `prediction` is "last",
        those of the last step; the prediction is their argmax.

    Raises:
        InputError: If the shape does not fit or the input is not finite.
    """
    x_seq, _ = as_sequence(x_seq, steps)
    reset_state(model)
    try:
        with _evaluating(model), torch.inference_mode():
            prediction = combine_outputs(model, (model(x) for x in x_seq))
    finally:
        reset_state(model)
    return prediction.clone()  # an ordinary tensor, which may enter a loss


def as_sequence(x: Tensor, steps: int | None) -> tuple[Tensor, int]:
    """Return the sequence [T, N, ...] and T, the static batch repeated without a copy."""
    # A membrane that is NaN never fires: the loss would stay finite, and wrong, for ever. The
    # extremes need no memory, where isfinite() would make masks as large as the sequence.
    if x.is_floating_point() and x.numel() and not torch.stack(x.aminmax()).isfinite().all():
        raise InputError("x_seq holds values that are not finite (NaN or inf): clean the input")
    if steps is not None:
        if steps < 1:
            raise InputError(f"steps={steps}: give at least 1 time step")
        x = x.unsqueeze(0).expand(steps, *x.shape)
    if x.dim() < 3 or x.shape[0] == 0 or x.shape[1] == 0:
        raise InputError(
            f"x_seq of shape {list(x.shape)} is not a sequence [T, N, ...]: for a static batch "
            "[N, ...] give steps=T"
        )
    return x, x.shape[0]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each module back into the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
