"""What users build × rule × way to train: the exact gradient, or a refusal that says what to do."""

import re
from dataclasses import replace

import pytest

from tests.exactness.cases import CASES
from tests.exactness.comparison import RULES, compare, ways_of

CORE = ("part module", "shared conv ours mirror", "U-Net", "neuron hard reset", "heads dict")
"""These go through all ways to train; the others through one for each rule, each another one."""


def rows():
    """Name, rule and way; of linear maps, which no rule treats alone, each second rule in turn."""
    for number, name in enumerate(CASES):
        simple = name.split()[0] in ("map", "two", "neuron")
        for index, rule in enumerate(RULES):
            if simple and index and (number + index) % 2:
                continue
            ways = ways_of(rule)
            for way in ways if name in CORE else [ways[(number + 3 * index) % len(ways)]]:
                yield pytest.param(name, rule, way, id=f"{name}-{rule}-{way}")


def outcome(name: str, rule: str, way: str, broken: str | None = None):
    """Compare with the first seed that leaves no neuron silent."""
    case = CASES[name]
    for seed in range(30):
        found = compare(case.program, rule, way, seed=seed, broken=broken, make=case.make)
        if found.kind != "silent":
            break
    return found


@pytest.mark.parametrize(("name", "rule", "way"), [*rows()])
def test_exact_or_refused(name, rule, way):
    case, found = CASES[name], outcome(name, rule, way)
    expected, words = "refused" if rule in case.refused else "exact", case.words
    if "chunk" in way.split() and any(s.kind == "feedback" for s in case.program.steps):
        expected, words = "refused", f"{words}|has a Feedback"
    assert found.kind == expected, found
    if expected == "refused":
        assert re.search(words, found.detail), found.detail
        assert "\n" not in found.detail


@pytest.mark.parametrize("broken", ["spike", "twice"])
@pytest.mark.parametrize("name", ["part module", "U-Net", "map chunk", "two neurons a + b"])
def test_a_wrong_trace_is_noticed(name, broken):
    """Controls: the spike in the place of the trace, and a trace that is advanced twice."""
    assert outcome(name, "ottt", "train_step", broken).kind == "wrong"


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["ottt", "sltt", "bptt"])
def test_compiled(rule):
    """A network that torch.compile runs."""
    program = replace(CASES["part module"].program, wrapper="compiled", groups=())
    for way in ("train_step", "own loop"):
        assert compare(program, rule, way, seed=1).kind == "exact"
