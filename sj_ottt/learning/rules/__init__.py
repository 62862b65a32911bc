"""Learning rules: which gradient a network learns by. A module each, a row each in `table`."""

from sj_ottt._ops.rule import LearningModule, Rule
from sj_ottt.learning.rules.table import RULES, VARIANTS, find_rule, rule_of, set_rule

__all__ = ["RULES", "VARIANTS", "LearningModule", "Rule", "find_rule", "rule_of", "set_rule"]
