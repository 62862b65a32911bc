"""Search for a network that trains on a wrong gradient: python -m tests.exactness.search."""

import argparse
import re
import time
from collections import Counter

import torch

from tests.exactness.generator import Drawn, outcome_of


def describe(drawn: Drawn) -> str:
    """The network in lines that can be read."""
    p = drawn.program
    lines = [
        f"rule={drawn.rule} way={drawn.way} seed={drawn.seed} T={drawn.steps} N={drawn.batch} "
        f"outputs={p.outputs} as {p.structure} wrapper={p.wrapper} groups={p.groups}"
    ]
    for number, step in enumerate(p.steps):
        options = {k: v for k, v in step.options.items() if not callable(v)}
        how = [getattr(v, "__name__", v) for v in step.options.values() if callable(v)]
        lines.append(f"  {number}: {step.out} = {step.kind}{step.inputs} {how} {options}")
    return "\n".join(lines)


def reason(detail: str) -> str:
    """A refusal's words without names and numbers."""
    return re.sub(r"\(.*?\)|\[.*?\]|\d+| in [A-Z]\w+", "", detail)[:90]


def main() -> int:
    """Print how many networks were exact, refused or wrong, and every wrong one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="number of the first network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    start = time.monotonic()
    for seed in range(options.seed, options.seed + options.networks):
        drawn, found = outcome_of(seed)
        kinds[found.kind] += 1
        if found.kind == "refused":
            reasons[reason(found.detail)] += 1
        elif found.kind != "exact":
            print(f"network {seed}: {found.kind}: {found.detail}\n{describe(drawn)}", flush=True)
    print(f"{dict(kinds)} in {time.monotonic() - start:.0f} s")
    for words, count in reasons.most_common():
        print(f"{count:6} refused: {words}")
    return int(bool(kinds["wrong"] + kinds["error"] + kinds["silent"]))


if __name__ == "__main__":
    raise SystemExit(main())
