"""Instruments for activity: what a network does in evaluation.

Plain functions that return numbers. A model is left as it was. Batches are sequences [T, N, ...].
"""

from typing import Any

import torch
from torch import Tensor, nn

from sj_ottt.analysis._common import layers_fed_by_spikes, neurons_of, watching
from sj_ottt.errors import InputError
from sj_ottt.learning import predict
from sj_ottt.learning.predict import predicts_last
from sj_ottt.neuron import OTTTLIFNode
from sj_ottt.neuron.liquid import LiquidNode

__all__ = ["firing_rates", "latency_curve", "refuse_silence", "synaptic_operations"]


def firing_rates(model: nn.Module, x_seq: Tensor) -> dict[str, float]:
    """Measure spikes per neuron and time step, in evaluation.

    Args:
        model: Holds neurons of `sj_ottt.neuron`.
        x_seq: [T, N, ...].

    Returns:
        Name of each neuron layer → its rate; "mean" → the rate of all neurons together.

    Raises:
        InputError: If the model has no such neuron.
    """
    nodes = neurons_of(model, OTTTLIFNode, LiquidNode)
    spikes, outputs = dict.fromkeys(nodes, 0.0), dict.fromkeys(nodes, 0)

    def count(name: str, args: tuple[Any, ...], out: Tensor) -> None:
        spikes[name] += out.sum().item()
        outputs[name] += out.numel()

    with watching(nodes, count):
        predict(model, x_seq)
    rates = {name: spikes[name] / outputs[name] for name in nodes}
    return {**rates, "mean": sum(spikes.values()) / sum(outputs.values())}


def synaptic_operations(model: nn.Module, x_seq: Tensor) -> dict[str, float]:
    """Count the additions that spikes cause, per sample over all time steps, in evaluation.

    One number that is not zero at the input of a synapse is one addition for every weight that it
    meets. Layers with a real-valued input (the first convolution) multiply instead and are left
    out; constant factors on the spikes fold into the weights.

    Args:
        model: Holds neurons of `sj_ottt.neuron`.
        x_seq: [T, N, ...].

    Returns:
        Name of each layer that sees spikes → its additions; "total" → their sum.

    Raises:
        InputError: If the model has no such neuron, or no layer behind one.
    """
    layers = layers_fed_by_spikes(model, x_seq)
    found = dict.fromkeys(layers, 0.0)

    def count(name: str, args: tuple[Any, ...], out: Tensor) -> None:
        active = (args[0] != 0).to(out.dtype)
        module = layers[name]
        if isinstance(module, nn.Linear):
            found[name] += active.sum().item() * module.out_features
        else:
            ones = torch.ones_like(module.weight)
            found[name] += module._conv_forward(active, ones, None).sum(dtype=torch.double).item()

    with watching(layers, count):
        predict(model, x_seq)
    per_sample = {name: total / x_seq.shape[1] for name, total in found.items()}
    return {**per_sample, "total": sum(per_sample.values())}


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
    return (logits.argmax(2) == target).double().mean(1).tolist()


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
