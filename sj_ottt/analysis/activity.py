"""Instruments for activity: what a network does in evaluation.

Plain functions that return numbers. A model is left as it was. Batches are sequences [T, N, ...].
"""

import warnings

import torch
from torch import Tensor, nn

from sj_ottt.analysis.operations import ProductCounter
from sj_ottt.errors import InputError
from sj_ottt.learning import predict
from sj_ottt.learning.predict import predicts_last
from sj_ottt.learning.spikes import count_spikes

__all__ = [
    "SynapticOperations",
    "firing_rates",
    "latency_curve",
    "refuse_silence",
    "synaptic_operations",
]


def firing_rates(model: nn.Module, x_seq: Tensor) -> dict[str, float]:
    """Measure spikes per neuron and time step, in evaluation.

    Neurons are those of this package and of SpikingJelly, and modules that hold one of
    SpikingJelly's surrogates. One that hands on anything but 0 and 1, such as a readout, has no
    rate and is left out.

    Args:
        model: Holds neurons; called once per time step.
        x_seq: [T, N, ...].

    Returns:
        Name of each neuron layer → its rate; "mean" → the rate of all neurons together.

    Raises:
        InputError: If the model has no neuron that spikes.
    """
    counts = {name: (k, n) for name, (k, n) in count_spikes(model, x_seq).items() if n}
    if not counts:
        raise InputError(
            f"{type(model).__name__} has no neuron that spikes: give a model with neurons of "
            "sj_ottt.neuron or SpikingJelly"
        )
    spikes, outputs = map(sum, zip(*counts.values(), strict=True))
    return {name: k / n for name, (k, n) in counts.items()} | {"mean": spikes / outputs}


class SynapticOperations(dict[str, float]):
    """What `synaptic_operations` returns: name → additions per sample, and "total" → their sum.

    Attributes:
        multiplications: Name of each module that multiplies real values → how many such products
            of two numbers per sample.
        not_counted: Name of each module that sends spikes into a product of a kind that is not
            counted → the name of PyTorch's function for it.
    """

    multiplications: dict[str, float]
    not_counted: dict[str, str]


def synaptic_operations(model: nn.Module, x_seq: Tensor) -> SynapticOperations:
    """Count the additions that spikes cause, per sample over all time steps, in evaluation.

    Every product that PyTorch computes is seen, of a layer or of a function that a module calls,
    and stands under the name of the innermost module that computes it:

    - spikes times weights: one addition for every number that is not zero and every weight that it
      meets. Constant factors on the spikes fold into the weights;
    - spikes times spikes, as in attention: one addition for every pair of numbers that meet and
      are both not zero;
    - real values only, such as an image in the first convolution: `multiplications`.

    Numbers are spikes where they come from spiking neurons (as in `firing_rates`) through no
    product, and through no sum with anything else. Products that are written as an elementwise
    multiplication and a sum are not seen.

    Args:
        model: Holds neurons; called once per time step.
        x_seq: [T, N, ...].

    Returns:
        Name of each module that sees spikes → its additions; "total" → their sum.

    Raises:
        InputError: If no product of the model sees spikes.

    Warns:
        UserWarning: If spikes enter a product of a kind that is not counted (`not_counted`).
    """
    counter = ProductCounter(model)
    with counter.watching():
        predict(model, x_seq)
    if counter.not_counted:
        named = ", ".join(f"{k} ({v})" for k, v in counter.not_counted.items())
        warnings.warn(f"not counted, though spikes enter it: {named}", stacklevel=2)
    elif not counter.additions:
        raise InputError(f"{type(model).__name__} has no layer that sees spikes of a neuron")
    samples = x_seq.shape[1]
    found = SynapticOperations({k: n / samples for k, n in counter.additions.items()})
    found["total"] = sum(counter.additions.values()) / samples
    found.multiplications = {k: n / samples for k, n in counter.multiplications.items()}
    found.not_counted = counter.not_counted
    return found


def latency_curve(model: nn.Module, x_seq: Tensor, target: Tensor) -> list[float]:
    """Measure the accuracy against the number of inference steps.

    Args:
        model: Maps [N, ...] to logits [N, classes].
        x_seq: [T, N, ...].
        target: Class indices [N].

    Returns:
        For t = 1 … T, the share of right answers by the sum of the first t outputs or, of a model
        whose `prediction` is "last", by output t.
    """
    outputs: list[Tensor] = []
    hook = model.register_forward_hook(lambda module, args, out: outputs.append(out))
    try:
        predict(model, x_seq)
    finally:
        hook.remove()
    logits = torch.stack(outputs)
    logits = logits if predicts_last(model) else logits.cumsum(0)
    return (logits.argmax(2) == target).float().mean(1).tolist()


def refuse_silence(model: nn.Module, x_seq: Tensor) -> None:
    """Refuse a network with silent neurons: its gradients, all zero, agree with any other.

    Raises:
        InputError: If a layer of neurons never fires on the batch.
    """
    silent = [name for name, rate in firing_rates(model, x_seq).items() if rate == 0]
    if silent:
        raise InputError(
            f"the neurons {', '.join(silent)} never fire on this batch, so its gradients say "
            "nothing: give a stronger input, more time steps or a trained model"
        )
