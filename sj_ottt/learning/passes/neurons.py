"""Which networks a training pass is right for, and the words for those that it is not."""

from collections.abc import Callable, Iterable

from spikingjelly.activation_based import base, surrogate
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron as sj_neuron
from torch import nn

from sj_ottt._ops.rule import LearningModule, Rule
from sj_ottt.errors import InputError
from sj_ottt.layer.feedback import Feedback

__all__ = ["check_neurons", "check_one_step", "is_their_online_node"]

_RECURRENT = (sj_layer.LinearRecurrentContainer, sj_layer.ElementWiseRecurrentContainer)
_FILTERS = (sj_layer.SynapseFilter, sj_layer.Delay, sj_layer.NeuNorm)
_RNN = "spikingjelly.activation_based.rnn"
"""Known by its name: nothing else needs it imported."""


def check_neurons(model: nn.Module, rule: Rule, *, one_step: bool = True) -> None:
    """Refuse a network whose gradient under a rule would not be that of the rule.

    Args:
        model: Is to be trained.
        rule: The rule of its neurons.
        one_step: Whether it is to be called once per time step; otherwise once for several, in step
            mode "m".

    Raises:
        InputError: If a part of it takes the batch for time, or is a neuron or a recurrence that
            does not take part in the rule.
    """
    if one_step:
        check_one_step(model)
    parts = list(model.named_modules())
    if rule.through_time:
        _refuse(
            _names(parts, is_their_online_node),
            f'learns step by step, which rule="{rule.name}" does not: call sj_ottt.convert(model)',
        )
        return
    _refuse(
        _names(parts, lambda part: isinstance(part, _RECURRENT)),
        "feeds its output back without a trace: use sj_ottt.layer.Feedback in its place",
    )
    _refuse(
        _names(parts, lambda part: isinstance(part, _FILTERS)),
        f'remembers its input, and rule="{rule.name}" sends no gradient back through that: call '
        'set_rule(model, "bptt"), or take it out',
    )
    if not rule.spike_suffices:
        last = _last_of(model)
        _refuse(
            _names(parts, lambda part: _hands_on_no_trace(part) and part is not last),
            f'hands on no trace, which rule="{rule.name}" needs: call sj_ottt.convert(model), or '
            "use neurons of sj_ottt.neuron",
        )


def check_one_step(model: nn.Module) -> None:
    """Refuse a network that does not do one time step a call.

    Raises:
        InputError: If a part of it takes the batch for time.
    """
    _refuse(
        _names(model.named_modules(), _takes_the_batch_for_time),
        "would take the batch for time, because the network is called once per time step: use "
        "modules that run one step, and functional.set_step_mode(model, 's')",
    )


def is_their_online_node(part: nn.Module) -> bool:
    """Whether a module is SpikingJelly's own OTTT or SLTT node."""
    theirs = isinstance(part, sj_neuron.OTTTLIFNode | sj_neuron.SLTTLIFNode)
    return theirs and not isinstance(part, LearningModule)


def _takes_the_batch_for_time(part: nn.Module) -> bool:
    if isinstance(part, base.MultiStepModule) or _is_their_rnn(part):
        return True
    return isinstance(part, base.MemoryModule) and part.step_mode == "m"


def _is_their_rnn(part: nn.Module) -> bool:
    kinds = ((kind.__module__, kind.__name__) for kind in type(part).__mro__)
    return (_RNN, "SpikingRNNBase") in kinds


def _hands_on_no_trace(part: nn.Module) -> bool:
    if isinstance(part, LearningModule) or is_their_online_node(part):
        return False
    surrogates = (isinstance(p, surrogate.SurrogateFunctionBase) for p in part.children())
    return isinstance(part, sj_neuron.BaseNode) or any(surrogates)


def _last_of(model: nn.Module) -> nn.Module | None:
    """Return the end of a chain, behind which nothing asks for a trace; None where it may."""
    if any(isinstance(part, Feedback) for part in model.modules()):
        return None
    while isinstance(model, nn.Sequential) and len(model):
        model = model[-1]
    return model


def _names(
    parts: Iterable[tuple[str, nn.Module]], wanted: Callable[[nn.Module], bool]
) -> list[str]:
    return [f"{name or 'model'} ({type(part).__name__})" for name, part in parts if wanted(part)]


def _refuse(names: list[str], reason: str) -> None:
    if names:
        raise InputError(f"{', '.join(names)} {reason}")
