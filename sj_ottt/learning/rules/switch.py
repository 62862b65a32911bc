"""Learning rules: which gradient a network learns by. One word switches a built model.

| rule | weight gradient of a step | kept between steps |
| --- | --- | --- |
| `ottt` | ∇W = g_u[t] â[t]ᵀ, â decays by λ | membrane and trace |
| `sltt` | ∇W = g_u[t] s[t]ᵀ | membrane |
| `ndot` | ∇W = g_u[t] â[t]ᵀ, â decays by a ratio of membranes | membrane, trace, one more |
| `bptt` | the exact gradient through time, the reset detached | everything |

g_u[t] is the gradient of the step's own loss in the first three, of all losses in the last.
"""

from spikingjelly.activation_based import base
from torch import nn

from sj_ottt.errors import InputError, suggest
from sj_ottt.neuron import LeakyReadout, OTTTLIFNode
from sj_ottt.neuron.lif import RULES, check_variant
from sj_ottt.neuron.liquid import LiquidNode

__all__ = ["RULES", "check_rule", "follows", "rule_of", "set_rule"]


def check_rule(rule: str) -> None:
    """Refuse an unknown rule.

    Raises:
        InputError: If it is not one of `RULES`.
    """
    if rule == "fptt":
        raise InputError(
            'rule="fptt" is no rule of neurons, which keep the gradient that they have: give '
            "train_step an sj_ottt.learning.FPTT(optimizer, ...) in place of the optimizer, or "
            "use `sj-ottt train --rule fptt`"
        )
    if rule not in RULES:
        raise InputError(
            f'rule="{rule}" is unknown: use one of {", ".join(RULES)}{suggest(rule, RULES)}'
        )


def set_rule(model: nn.Module, rule: str, variant: str | None = None) -> nn.Module:
    """Switch a model to a learning rule, in place; its weights stay, its state is reset.

    Args:
        model: Holds neurons of `sj_ottt.neuron`.
        rule: "ottt", "sltt", "ndot" or "bptt".
        variant: Of NDOT, "paper" or "code"; see `neuron.NDOTLIFNode`. None leaves each neuron
            its own, which is "paper" until it is told otherwise.

    Returns:
        The model.

    Raises:
        InputError: If the rule or variant is unknown, the model has no such neuron, or one of
            them cannot follow the rule (`trace_dtype`); nothing is changed then.
    """
    check_rule(rule)
    if variant is not None:
        check_variant(variant)
    nodes = _nodes(model)
    if not nodes:
        raise InputError(
            f"{type(model).__name__} has no neuron of sj_ottt.neuron, so it has no rule to set: "
            "build it with OTTTLIFNode"
        )
    for node in nodes:
        node.check_rule(rule)
    for node in nodes:
        node.rule = rule
        if variant is not None:
            node.variant = variant
    for module in model.modules():
        if isinstance(module, base.MemoryModule):
            module.reset()
    return model


def follows(model: nn.Module, rule: str) -> bool:
    """Whether all neurons of a model follow a rule; those of SpikingJelly follow "ottt"."""
    return ({node.rule for node in _nodes(model)} or {"ottt"}) == {rule}


def rule_of(model: nn.Module) -> str:
    """Return the rule that a model learns by; "ottt" for one without neurons of this package.

    Raises:
        InputError: If some neurons follow BPTT and others do not.
    """
    found = {node.rule for node in _nodes(model)}
    if "bptt" in found and len(found) > 1:
        raise InputError(
            f"the model's neurons follow {', '.join(sorted(found))}, but BPTT needs all of them: "
            'call set_rule(model, "bptt")'
        )
    return min(found, default="ottt")


def _nodes(model: nn.Module) -> list[OTTTLIFNode | LiquidNode | LeakyReadout]:
    ours = (OTTTLIFNode, LiquidNode, LeakyReadout)
    return [module for module in model.modules() if isinstance(module, ours)]
