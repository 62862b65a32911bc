"""SpikingJelly networks with our nodes and layers in the place of theirs."""

import copy
import math
import warnings
from typing import Any

from spikingjelly.activation_based import base
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sj_ottt import layer
from sj_ottt.errors import InputError
from sj_ottt.learning.rules import LearningModule, find_rule, set_rule
from sj_ottt.neuron import OTTTLIFNode, OTTTParametricLIFNode

__all__ = ["convert"]

_LIF = (sj_neuron.LIFNode, sj_neuron.OTTTLIFNode, sj_neuron.SLTTLIFNode)
_NEURONS = (*_LIF, sj_neuron.IFNode, sj_neuron.ParametricLIFNode)
_NOT_SPIKING = (sj_neuron.NonSpikingBaseNode, sj_neuron.NoisyNonSpikingBaseNode)
_OF_ALL_STEPS = (sj_layer.MultiStepContainer, sj_layer.SeqToANNContainer)
_CHAINS = (nn.Sequential, *_OF_ALL_STEPS, sj_layer.StepModeContainer)
_ATTENTION = (sj_layer.SpikingSelfAttention, sj_layer.QKAttention)
_RECURRENT = (sj_layer.ElementWiseRecurrentContainer, sj_layer.LinearRecurrentContainer)
_IN_PYTORCH_TOO = ("Linear", "Conv2d", "AvgPool2d", "MaxPool2d", "AdaptiveAvgPool2d", "Flatten")
_IN_SPIKINGJELLY = ("WSConv2d", "WSLinear", "OTTTSequential", "Dropout", "Dropout2d")
# Class of theirs → class of ours, which adds behaviour and no state.
_LAYERS = {
    **dict.fromkeys(_CHAINS, layer.OTTTSequential),
    **{getattr(nn, name): getattr(layer, name) for name in _IN_PYTORCH_TOO},
    **{
        getattr(sj_layer, name): getattr(layer, name)
        for name in (*_IN_PYTORCH_TOO, *_IN_SPIKINGJELLY)
    },
}
# PyTorch's keep no mask, and ours do, so that these are made anew.
_DROPOUTS = {nn.Dropout: layer.Dropout, nn.Dropout2d: layer.Dropout2d}


def convert(model: nn.Module, rule: str = "ottt", share: bool = True) -> nn.Module:
    """Return a SpikingJelly model with our nodes and layers, which learns by a rule.

    LIF, IF and ParametricLIF nodes (and SpikingJelly's OTTT and SLTT nodes), convolutions, linear
    layers, pools, sWS layers, dropout, and `OTTTSequential` or `nn.Sequential` around them become
    ours; so do PyTorch's own layers. Its layers without a counterpart, such as transposed
    convolutions, and batch norm that sees one step at a time stay. A module with a forward of its
    own, such as a residual block, keeps it, and may do with what neurons hand on what `layer.Pair`
    can. Every neuron detaches its reset, and a LIF node with tau = 2 packs its trace
    (`trace_dtype`).

    An IF node becomes `neuron.OTTTLIFNode(tau=inf)`, whose trace sums up all spikes. A
    ParametricLIF node becomes `neuron.OTTTParametricLIFNode`, whose trace decays by the current
    time constant, and which learns it online.

    The result runs in step mode "s", also where the model ran all time steps in one call, layer by
    layer (step mode "m", `MultiStepContainer`, `SeqToANNContainer`): that is the same function in
    evaluation. A batch norm in it normalised all time steps together in training, and then
    normalises each by itself.

    Args:
        model: The model; it is not changed.
        rule: As in `sj_ottt.set_rule`.
        share: Whether the result has the model's own parameters and buffers, or copies of them.

    Returns:
        The same network.

    Raises:
        InputError: If the rule is unknown, or parts of the model cannot be converted; all of them
            are named.

    Warns:
        UserWarning: If a batch norm has normalised all time steps together; it is named.
    """
    find_rule(rule)
    obstacles = [
        f"{name or type(module).__name__} ({reason})"
        for name, module in model.named_modules()
        if (reason := _obstacle(module))
    ]
    if obstacles:
        raise InputError(f"{type(model).__name__} cannot be converted: {'; '.join(obstacles)}")
    if over_time := _norms_over_time(model):
        warnings.warn(
            f"{', '.join(over_time)} normalised all time steps together in training, and will "
            "normalise each by itself: in evaluation nothing changes",
            stacklevel=2,
        )
    # What a deep copy takes from here, it does not copy.
    not_copied = {id(t): t for t in (*model.parameters(), *model.buffers())} if share else {}
    for module in model.modules():
        if isinstance(module, base.MemoryModule):  # a state with a graph cannot be copied
            states = [s for s in module._memories.values() if isinstance(s, Tensor)]
            not_copied |= {id(state): state.detach() for state in states}
    clone = _replaced(copy.deepcopy(model, not_copied), {})
    for module in clone.modules():
        if isinstance(module, base.StepModule):
            module.step_mode = "s"
    return set_rule(clone, rule)  # which resets the state, too


def _obstacle(module: nn.Module) -> str | None:
    """Return why a module cannot be converted; None where it can."""
    kind, name = type(module), type(module).__name__
    if kind in _NEURONS or isinstance(module, LearningModule):
        return None
    if isinstance(module, _NOT_SPIKING):
        return (
            f"{name} does not spike: put neuron.MembraneReadout(synapse, tau) in its place and in "
            "that of the layer before it"
        )
    if isinstance(module, _RECURRENT):
        return f"{name} feeds back within a layer: lay a layer.Feedback in the converted model"
    if isinstance(module, layer.Feedback):
        return "a Feedback is bound to neurons that are replaced: connect it after the conversion"
    if isinstance(module, _BatchNorm):
        return _batch_norm_obstacle(module)
    if isinstance(module, _ATTENTION):
        return (
            f"{name} takes all time steps [T, N, C, L] in its forward: write it for one step, "
            'where rule="sltt" takes products of spikes as they are, and the others those of q[0], '
            "k[0] and v[0], the spikes alone"
        )
    if kind.__module__.startswith("spikingjelly.") and isinstance(getattr(module, "T", None), int):
        return (
            f"{name} shows its input T times by itself and averages over them: convert a module of "
            "your own with its parts, whose forward does one step"
        )
    if isinstance(module, base.MultiStepModule) and kind not in _OF_ALL_STEPS:
        return f"{name} needs all time steps at once"
    if kind is sj_layer.WSConv2d and module.padding_mode != "zeros":
        return f'padding_mode="{module.padding_mode}", which SpikingJelly\'s WSConv2d ignores'
    if isinstance(module, sj_neuron.BaseNode):
        return (
            f"{name} has dynamics of its own, for which no trace is defined: use LIFNode, IFNode "
            "or ParametricLIFNode"
        )
    has_counterpart = kind in _LAYERS or kind in _LAYERS.values()
    if isinstance(module, base.MemoryModule) and not has_counterpart:
        return f"{name} keeps a state that is not a LIF neuron's, and no trace is defined for it"
    return None


def _batch_norm_obstacle(module: _BatchNorm) -> str | None:
    """Return why a batch norm cannot stay; None where it does what PyTorch's do."""
    kind = type(module)
    if kind.__module__.startswith("torch."):
        return None
    if not isinstance(module, base.StepModule):
        return (
            f"{kind.__name__} is a batch norm of {kind.__module__}, which may do more than "
            "PyTorch's: use that of PyTorch or SpikingJelly, and layers of their own for the rest"
        )
    if isinstance(module, base.MultiStepModule):
        return f'{kind.__name__} normalises over time: use layer.BatchNorm2d in step mode "s"'
    return None


def _norms_over_time(model: nn.Module) -> list[str]:
    """Return the names of batch norms whose batch is that of all time steps."""
    joining = [
        part
        for part in model.modules()
        if isinstance(part, sj_layer.SeqToANNContainer)
        or (isinstance(part, sj_layer.StepModeContainer) and part.step_mode == "m")
    ]
    within = {inner for container in joining for inner in container.modules()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and (module in within or getattr(module, "step_mode", "s") == "m")
    ]


def _replaced(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Put our classes in the place of theirs, in a copy; a module in two places stays one."""
    if module in done:
        return done[module]
    done[module] = module
    for name, child in module._modules.items():
        if child is not None:
            setattr(module, name, _replaced(child, done))
    done[module] = _ours(module)
    return done[module]


def _ours(module: Any) -> nn.Module:
    """Return our counterpart of a module, or the module itself."""
    kind = type(module)
    if kind in _NEURONS:
        return _neuron(module).train(module.training)
    if kind in _DROPOUTS:
        dropout: nn.Module = _DROPOUTS[kind](module.p)
        return dropout.train(module.training)
    module.__class__ = _LAYERS.get(kind, kind)
    converted: nn.Module = module
    return converted


def _neuron(module: Any) -> nn.Module:
    """Return our neuron of the same dynamics."""
    constants = {
        "v_threshold": module.v_threshold,
        "v_reset": module.v_reset,
        "surrogate_function": module.surrogate_function,
        "store_v_seq": module.store_v_seq,
    }
    if isinstance(module, sj_neuron.IFNode):
        return OTTTLIFNode(math.inf, **constants)
    if isinstance(module, sj_neuron.ParametricLIFNode):
        node = OTTTParametricLIFNode(decay_input=module.decay_input, **constants)
        node.w = module.w
        return node
    trace_dtype = "packed" if module.tau == 2.0 else "float32"
    return OTTTLIFNode(module.tau, module.decay_input, trace_dtype=trace_dtype, **constants)
