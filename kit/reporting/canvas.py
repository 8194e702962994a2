"""The paper that plots are drawn on: one style, one palette, SVG that can stand in a page.

matplotlib's object API on the SVG backend: no pyplot, no display, no state that outlives a call.
Text stays text; ink, rules and arms become CSS variables, so that a page can turn dark. Ids are
hashed with a fixed salt, so the same drawing gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import escape

from kit.reporting.labels import settle
from kit.reporting.wording import clean_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#010203", "#d0d1d2"
"""Drawn with these, they become the page's text and rule colours."""

# Okabe and Ito (2008), told apart with any colour vision; the second is for dark pages.
_COLOURS = {
    "instruct": ("#4d4d4d", "#c8c8c8"),
    "base": ("#8a6d3b", "#c9a66b"),
    "cpt-instruct": ("#d55e00", "#ff8a3d"),
    "cpt-base": ("#b8860b", "#f0c04a"),
    "residual": ("#0072b2", "#5bb8f0"),
    "residual-lowrank": ("#009e73", "#3fd0a4"),
    "residual-only": ("#56799c", "#9cc2e8"),
    "cpt-sft": ("#aa4499", "#e58bd5"),
}
MARKERS = {
    "instruct": "s",
    "base": "D",
    "cpt-instruct": "v",
    "cpt-base": "^",
    "residual": "o",
    "residual-lowrank": "P",
    "residual-only": "X",
    "cpt-sft": "*",
}
_OTHER = ("#666666", "#aaaaaa")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One drawing, ready to stand in a page or a notebook."""

    name: str
    group: Literal["tradeoff", "sweep", "training"]
    """Plots of one group stand beside each other."""
    title: str
    text: str
    """What it shows, for those who cannot see it."""
    svg: str


@contextmanager
def axes_on_paper(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """One pair of axes in the report's style; width and height in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), matplotlib.rc_context():
        # Text stays text, so the reader's fonts draw what matplotlib's own has no glyph for.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        matplotlib.rcdefaults()  # a notebook may have a style of its own
        matplotlib.rcParams.update(_STYLE)
        canvas = Figure(figsize=(width, height), layout="constrained")
        yield canvas, canvas.add_subplot()


def finished(canvas: Figure, *, name: str, group: Any, title: str, text: str) -> Plot:
    """Save as SVG, and make it one that can stand in a page beside others."""
    import matplotlib

    settle(canvas)
    title, text, buffer = short_name(title), clean_text(text), io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = _for_page(buffer.getvalue(), name, title, text)
    return Plot(name=name, group=group, title=title, text=text, svg=svg)


def _for_page(svg: str, name: str, title: str, text: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    # Ids are unique within one drawing only; several stand in one page.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor").replace(GRID, f"var(--rule, {GRID})")
    for arm, (light, _) in _COLOURS.items():
        svg = svg.replace(light, f"var(--{arm}, {light})")
    svg = re.sub(r"'DejaVu Sans'(, [\w'\- ]+)*", "system-ui, sans-serif", svg)
    head = f'<svg role="img" aria-labelledby="{name}-title {name}-desc" class="plot" '
    said = (
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(text)}</desc>'
    )
    svg = svg.replace("<svg ", head, 1)
    end = svg.index(">") + 1
    return svg[:end] + said + svg[end:]


def scheme(dark: bool) -> dict[str, str]:
    """CSS variable -> colour of every arm."""
    return {f"--{arm}": pair[dark] for arm, pair in _COLOURS.items()}


def colour_of(arm: str) -> str:
    """The arm's colour on a light page."""
    return _COLOURS.get(arm, _OTHER)[0]


def short_name(text: str) -> str:
    """One line of at most 60 characters, as it is drawn."""
    return clean_text(text)[:60]
