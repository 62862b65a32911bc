"""Learning rules: which gradient a network learns by.

Each rule is a module that makes one `Rule` (`ottt` is a short one to copy). To add one, write its
module, put its `Rule` into the list in `table`, and give it a test: configuration, analysis and
benchmarks read the table.
"""

from sj_ottt._ops.rule import LearningModule, Rule
from sj_ottt.learning.rules.table import RULES, VARIANTS, find_rule, rule_of, set_rule

__all__ = ["RULES", "VARIANTS", "LearningModule", "Rule", "find_rule", "rule_of", "set_rule"]
