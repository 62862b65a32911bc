"""The drawings of the site, by name; ``python -m docs.pictures`` writes those that stand alone."""

import html
import re
from collections.abc import Callable

from docs.pictures import charts, diagrams

PICTURES: dict[str, Callable[[], str]] = {
    draw.__name__: draw
    for draw in (
        diagrams.idea,
        diagrams.step,
        diagrams.road,
        charts.trace,
        charts.surrogate,
        charts.memory,
        charts.speed,
        charts.rules,
        charts.learning_curves,
        charts.pretraining,
        charts.transfer,
        charts.gpu_speed,
    )
}
"""Name → what draws it, as SVG."""

ALONE = {"idea": "docs/assets/idea.svg", "transfer": "docs/assets/transfer.svg"}
"""Drawings that the README shows, and their files."""


def inline(name: str, alt: str) -> str:
    """Return a drawing for the inside of a page.

    Args:
        name: One of `PICTURES`.
        alt: What it shows, for those who do not see it.
    """
    svg = PICTURES[name]()
    # Names within a page are unique.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    label = html.escape(alt, quote=True)
    return svg.replace("<svg ", f'<svg class="picture" role="img" aria-label="{label}" ', 1)
