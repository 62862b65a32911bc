"""The table of learning rules, and the switch that sets one for a whole model.

| rule | weight gradient of a step | kept between steps |
| --- | --- | --- |
| `ottt` | ∇W = g_u[t] â[t]ᵀ, â decays by λ | membrane and trace |
| `sltt` | ∇W = g_u[t] s[t]ᵀ | membrane |
| `ndot` | ∇W = g_u[t] â[t]ᵀ, â decays by a ratio of membranes | membrane, trace, one more |
| `bptt` | the exact gradient through time, the reset detached | everything |

g_u[t] is the gradient of the step's own loss in the first three, of all losses in the last.
"""

from torch import nn

from sj_ottt._ops.rule import LearningModule, Rule
from sj_ottt.errors import InputError, suggest
from sj_ottt.learning.rules.bptt import BPTT
from sj_ottt.learning.rules.ndot import NDOT
from sj_ottt.learning.rules.ottt import OTTT
from sj_ottt.learning.rules.sltt import SLTT
from sj_ottt.learning.state import reset_state

__all__ = ["RULES", "VARIANTS", "check_variant", "find_rule", "rule_of", "set_rule"]

_ALL = (OTTT, SLTT, *NDOT, BPTT)  # a new rule goes here

RULES: dict[str, Rule] = {}
"""Name → rule; of a rule with variants, the first of them."""
for _rule in _ALL:
    RULES.setdefault(_rule.name, _rule)

VARIANTS: dict[str, tuple[str, ...]] = {
    name: tuple(rule.variant for rule in _ALL if rule.name == name and rule.variant)
    for name in RULES
}
"""Name of a rule → its variants."""


def find_rule(name: str, variant: str | None = None) -> Rule:
    """Return a rule by its name.

    Args:
        name: One of `RULES`.
        variant: One of the rule's variants, or None for the first one. A rule without variants is
            the same for all.

    Raises:
        InputError: If there is no such rule, or no rule with such a variant.
    """
    if name == "fptt":
        raise InputError(
            'rule="fptt" is no rule of neurons, which keep the gradient that they have: give '
            "train_step an sj_ottt.learning.FPTT(optimizer, ...) in place of the optimizer, or "
            "use `sj-ottt train --rule fptt`"
        )
    if name not in RULES:
        raise InputError(
            f'rule="{name}" is unknown: use one of {", ".join(RULES)}{suggest(name, RULES)}'
        )
    check_variant(variant)
    fitting = [rule for rule in _ALL if rule.name == name and rule.variant == variant]
    return fitting[0] if fitting else RULES[name]


def check_variant(variant: str | None) -> None:
    """Refuse a variant that no rule has.

    Raises:
        InputError: If it is neither None nor one of `VARIANTS`.
    """
    variants = [v for each in VARIANTS.values() for v in each]
    if variant is not None and variant not in variants:
        names = " or ".join(f'"{v}"' for v in variants)
        raise InputError(f'variant="{variant}" is unknown: use {names}')


def set_rule(model: nn.Module, rule: str, variant: str | None = None) -> nn.Module:
    """Switch a model to a learning rule, in place; its weights stay, its state is reset.

    Args:
        model: Holds neurons of `sj_ottt.neuron`.
        rule: "ottt", "sltt", "ndot" or "bptt".
        variant: Of NDOT, "paper" or "code"; see `neuron.NDOTLIFNode`. None leaves each neuron
            its own, which is "paper" unless it was set before.

    Returns:
        The model.

    Raises:
        InputError: If the rule or variant is unknown, the model has no such neuron, or one of
            them cannot follow the rule (`trace_dtype`); nothing is changed then.
    """
    found = find_rule(rule, variant)
    modules = _learning_modules(model)
    if not modules:
        raise InputError(
            f"{type(model).__name__} has no neuron of sj_ottt.neuron, so it has no rule to set: "
            "build it with OTTTLIFNode"
        )
    for module in modules:
        module.check_rule(found)
    for module in modules:
        module.variant = variant or module.variant
        module.rule = find_rule(rule, module.variant)
    reset_state(model)
    return model


def rule_of(model: nn.Module) -> Rule:
    """Return the rule that a model learns by; OTTT for one without neurons of this package.

    Raises:
        InputError: If some neurons learn through time and others do not.
    """
    found = {str(module.rule): module.rule for module in _learning_modules(model)}
    through_time = [rule for rule in found.values() if rule.through_time]
    if through_time and len(found) > 1:
        raise InputError(
            f"the model's neurons follow {', '.join(sorted(found))}, but "
            f"{through_time[0].name.upper()} needs all of them: call "
            f'set_rule(model, "{through_time[0].name}")'
        )
    return found[min(found)] if found else OTTT


def _learning_modules(model: nn.Module) -> list[LearningModule]:
    return [module for module in model.modules() if isinstance(module, LearningModule)]
