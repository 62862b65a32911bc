"""Predictions: a sequence without gradients or traces."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sj_ottt.errors import InputError
from sj_ottt.learning.passes.chunks import Chunk, find_chunk, grouped
from sj_ottt.learning.passes.lengths import Lengths
from sj_ottt.learning.passes.neurons import check_one_step
from sj_ottt.learning.passes.outputs import Structure, add, map_tensors
from sj_ottt.learning.passes.processes import unwrapped
from sj_ottt.learning.passes.update import NOT_FINITE, is_finite
from sj_ottt.learning.state import carried

__all__ = ["as_sequence", "combine_outputs", "predict", "predicts_last", "with_lengths"]


def predicts_last(model: nn.Module) -> bool:
    """Whether a model says of itself that its last output is its prediction, not their sum.

    What a model says, it says behind wrappers too (an average of weights, DDP, a compiled model):
    a module that says nothing and has one child is as that child is.

    Raises:
        InputError: If `prediction` is neither "sum" nor "last", or one of several parts alone says
            "last".
    """
    outermost, children = model, list(model.children())
    while _said_by(model) is None and len(children) == 1:
        model = children[0]
        children = list(model.children())
    said = _said_by(model)
    if said not in ("sum", "last", None):
        raise InputError(f'prediction="{said}" of {type(model).__name__}: give "sum" or "last"')
    part = next((p for p in model.modules() if said is None and _said_by(p) == "last"), None)
    if part is not None:
        raise InputError(
            f"{type(part).__name__} predicts by its last output, and {type(outermost).__name__}, "
            'of which it is a part, says nothing: set model.prediction = "sum" or "last"'
        )
    return said == "last"


def _said_by(module: nn.Module) -> str | None:
    said = getattr(module, "prediction", None)  # which may also be a layer of that name
    return said if isinstance(said, str) else None


def combine_outputs(
    model: nn.Module, outputs: Iterable[Structure], lengths: Lengths | None = None
) -> Structure:
    """Return a model's prediction: the sum of its outputs, or the last one (`predicts_last`)."""
    last = predicts_last(model)
    prediction: Structure = None
    for y in outputs:
        if lengths is not None:
            prediction = lengths.combine(prediction, y, last=last)
        else:
            prediction = y if last or prediction is None else add(prediction, y)
    if prediction is None:
        raise InputError("there is no output of a time step to predict by: give at least one")
    return prediction if lengths is None else lengths.in_callers_order(prediction)


def predict(
    model: nn.Module,
    x_seq: Tensor,
    steps: int | None = None,
    *,
    lengths: Tensor | None = None,
    reset: bool = True,
    chunk: int | str = 1,
    memory_budget: int | None = None,
) -> Structure:
    """Classify one batch without gradients or traces.

    The model may be in either mode and is left in the one it was in.

    Args:
        model: Maps [N, ...] to logits [N, classes], one time step a call; or to several outputs, in
            lists, tuples or dicts.
        x_seq: A sequence [T, N, ...]; or, with `steps`, a static batch [N, ...].
        steps: T for a static batch.
        lengths: Lengths [N] of the samples' sequences, whole numbers from 1 to T; None for T. What
            stands behind a sequence's end in `x_seq` is finite and has no influence.
        reset: Whether the state is reset before and after. Otherwise the sequence goes on from
            where the last call has left it, and the next call may go on from here.
        chunk: How many time steps run together, or "auto", as in `train_step`.
        memory_budget: Of "auto", as in `train_step`.

    Returns:
        Logits, [N, classes], summed over the steps or, of a model whose `prediction` is "last",
        those of the last step; the prediction is their argmax. Several outputs come in the
        structure in which the model gives them.

    Raises:
        InputError: If a part of the model takes the batch for time (step mode "m"), the shape or
            the lengths do not fit, the input is not finite, `lengths` is given for a state that is
            carried on, the state is of a batch of another size, or `chunk` does not fit.
    """
    model = unwrapped(model)
    check_one_step(model)
    x_seq, _ = as_sequence(x_seq, steps)
    different, inputs = with_lengths(model, x_seq, lengths, reset)
    # A state that goes on may be trained from, which tensors of inference mode cannot be.
    without_gradients = torch.inference_mode if reset else torch.no_grad
    with _evaluating(model), carried(model, x_seq.shape[1], reset), without_gradients():
        together = find_chunk(chunk, memory_budget, model, x_seq)
        outputs = _outputs(model, inputs, together, different)
        prediction = combine_outputs(model, outputs, different)
    return map_tensors(Tensor.clone, prediction)  # ordinary tensors, which may enter a loss


def _outputs(
    model: nn.Module, inputs: Iterable[Tensor], chunk: Chunk, lengths: Lengths | None
) -> Iterator[Structure]:
    """Yield the outputs of each time step."""
    for group in grouped(inputs, chunk, lambda t: lengths and lengths.running(t)):
        with group.run(model, model) as outputs:
            yield from outputs


def with_lengths(
    model: nn.Module, x_seq: Tensor, lengths: Tensor | None, reset: bool
) -> tuple[Lengths | None, Iterable[Tensor]]:
    """Return the lengths of a batch's sequences, and the input of each time step.

    Raises:
        InputError: If they do not fit, or the state is to be carried on.
    """
    if lengths is None:
        return None, x_seq
    if not reset:
        raise InputError(
            "reset=False carries the state of all samples on, which those that have ended lack: "
            "leave out lengths, or reset"
        )
    different = Lengths.of(lengths, x_seq)
    return different, different.inputs(model, x_seq)


def as_sequence(
    x: Tensor, steps: int | None, *, may_be_empty: bool = False, look: bool = True
) -> tuple[Tensor, int]:
    """Return the sequence [T, N, ...] and T, the static batch repeated without a copy.

    Args:
        x: The sequence, or the static batch [N, ...].
        steps: T of a static batch.
        may_be_empty: Whether N may be 0.
        look: Whether to refuse values that are not finite, which waits for the device.

    Raises:
        InputError: If it is no sequence, or holds values that are not finite.
    """
    finite = is_finite(x) if look else None
    if finite is not None and not finite:
        raise InputError(NOT_FINITE)
    if steps is not None:
        if steps < 1:
            raise InputError(f"steps={steps}: give at least 1 time step")
        x = x.unsqueeze(0).expand(steps, *x.shape)
    if x.dim() < 3 or x.shape[0] == 0 or (x.shape[1] == 0 and not may_be_empty):
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
