"""One style for all drawings: colours that follow the page, and text that stays text.

A drawing is about 420 units wide, so that its text can be read on a phone, and takes its colours
from variables. The site's style sheet (`docs/assets/site.css`) sets them for light and dark pages;
a drawing in a file of its own carries them with it.
"""

import io
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH = 420

COLOURS = {  # name → on a light page, on a dark page
    "ink": ("#24292f", "#e3e6ea"),
    "soft": ("#5b6470", "#a3abb6"),
    "line": ("#d3d8df", "#454c58"),
    "fill": ("#edf2f9", "#2c3442"),
    "blue": ("#1f5fa8", "#7db4f5"),
    "red": ("#c2384b", "#f28b98"),
    "green": ("#1c7c70", "#5fcbbc"),
    "amber": ("#a06a08", "#ecb950"),
    "purple": ("#7a4ea2", "#c59ee8"),
    "pink": ("#b0468c", "#f09bd0"),
    "brown": ("#7a5a34", "#cda77a"),
}
SERIES = ("blue", "red", "green", "amber", "purple", "soft", "pink", "brown")
MARKERS = "osD^vPX*"

_FONT = "system-ui, -apple-system, sans-serif"


def colour(name: str) -> str:
    """Return a colour for an attribute of SVG."""
    return f"var(--pic-{name}, {COLOURS[name][0]})"


def alone(svg: str) -> str:
    """Return a drawing for a file of its own, in light and dark."""
    light, dark = (
        "".join(f"--pic-{name}:{pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1)
    )
    rules = f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    return svg.replace(">", f"><style>{rules}</style>", 1) + "\n"


class Drawing:
    """A drawing of boxes, arrows and words."""

    def __init__(self, height: int, width: int = WIDTH) -> None:
        self.width, self.height = width, height
        self._parts: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *lines: str,
        edge: str = "blue",
        fill: str = "fill",
        dashed: bool = False,
        size: float = 13,
    ) -> None:
        """Draw a box at its left upper corner, with lines of text in its middle."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        inside = "none" if dashed else colour(fill)
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" '
            f'style="fill:{inside};stroke:{colour(edge)}" stroke-width="1.4"{dash}/>'
        )
        for i, line in enumerate(lines):
            down = y + height / 2 + (i - (len(lines) - 1) / 2) * 1.3 * size + 0.35 * size
            self.text(x + width / 2, down, line, size=size, ink="soft" if dashed else "ink")

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 13,
        ink: str = "ink",
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        """Write words with their base line at y."""
        words = words.replace("&", "&amp;").replace("<", "&lt;")
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size:g}"{weight} '
            f'style="fill:{colour(ink)}">{words}</text>'
        )

    def arrow(self, *points: tuple[float, float], ink: str = "ink", dashed: bool = False) -> None:
        """Draw a line through points, with a head at its end."""
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        end = (x1 - 6 * ux, y1 - 6 * uy)
        path = " ".join(f"{x:g},{y:g}" for x, y in (*points[:-1], end))
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        head = " ".join(
            f"{x:.4g},{y:.4g}"
            for x, y in (
                (x1, y1),
                (x1 - 8 * ux - 4 * uy, y1 - 8 * uy + 4 * ux),
                (x1 - 8 * ux + 4 * uy, y1 - 8 * uy - 4 * ux),
            )
        )
        self._parts.append(
            f'<polyline points="{path}" style="fill:none;stroke:{colour(ink)}" '
            f'stroke-width="1.6"{dash}/><polygon points="{head}" style="fill:{colour(ink)}"/>'
        )

    def svg(self) -> str:
        """Return the drawing."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'font-family="{_FONT}">{"".join(self._parts)}</svg>'
        )


def chart(height: float = 3.1, columns: int = 1, **kwargs: object) -> tuple[Figure, list[Axes]]:
    """Return a figure as wide as a drawing, and its axes side by side."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(WIDTH / 72, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, columns, squeeze=False, **kwargs)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color=COLOURS["line"][0], linewidth=0.7)
        each.set_axisbelow(True)
    return figure, list(axes)


def chart_svg(figure: Figure) -> str:
    """Return a figure as a drawing in the page's colours."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<style type="text/css">.*?</style>', _STROKES, svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", _FONT, svg)
    for name, (light, _) in COLOURS.items():
        svg = svg.replace(light, colour(name))
    return svg.strip()


def legend(axes: Axes, **kwargs: object) -> None:
    """Add a legend without a frame."""
    axes.legend(**{"frameon": False, "fontsize": 9, "labelcolor": COLOURS["ink"][0], **kwargs})


def ink(names: Sequence[str]) -> list[str]:
    """Return colours for matplotlib, which `chart_svg` turns into the page's."""
    return [COLOURS[name][0] for name in names]


# What matplotlib's own style sheet says, on the drawing itself: a style sheet within a page would
# be the whole page's.
_STROKES = ""
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sj_ottt",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.edgecolor": COLOURS["soft"][0],
    "axes.labelcolor": COLOURS["ink"][0],
    "axes.titlecolor": COLOURS["ink"][0],
    "text.color": COLOURS["ink"][0],
    "xtick.color": COLOURS["soft"][0],
    "ytick.color": COLOURS["soft"][0],
    "xtick.labelcolor": COLOURS["ink"][0],
    "ytick.labelcolor": COLOURS["ink"][0],
}
