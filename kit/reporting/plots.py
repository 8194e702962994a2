"""A study's plots as SVG: text stays text, colours follow the page's light or dark scheme.

    tradeoff       new knowledge against instruction following, one point per line
    weight_sweep   every metric over the weight of the grafted adapter
    loss_curves    one curve per training
    energy         what a low-rank residual keeps

matplotlib's object API on the SVG backend: no pyplot, no display, no state that outlives a call.
Ids are hashed with a fixed salt, so the same study gives the same bytes.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from kit.reporting.collect import Study, Training
from kit.reporting.labels import place_labels
from kit.reporting.lines import Line, Score, find_line, task_infos
from kit.reporting.wording import clean_text
from kit.runs.records import TaskInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

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
_MARKERS = {
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
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
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
    title: str
    text: str
    """What it shows, for those who cannot see it."""
    svg: str


def plots(study: Study) -> list[Plot]:
    """Every plot that the study has data for."""
    infos = task_infos(study.lines)
    follows = next((i for i in infos if i.role == "instructions"), None)
    made: list[Plot | None] = []
    if follows:
        knows = [i for i in infos if i.role in ("new_text", "knowledge")]
        made += [tradeoff(study.lines, x=info, y=follows) for info in knows]
    made += [weight_sweep(study.lines), loss_curves(study.trainings), energy(study.residuals)]
    return [plot for plot in made if plot]


def tradeoff(lines: Sequence[Line], *, x: TaskInfo, y: TaskInfo) -> Plot | None:
    """New knowledge against instruction following, with intervals on both axes.

    Better is right and up, whatever the direction of the metrics.
    """
    points = [(n, a, b) for n in lines if (a := n.first(x.task)) and (b := n.first(y.task))]
    if len(points) < 2:
        return None
    with _axes(6.6, 4.8) as (canvas, axes):
        swept = _swept(n for n, _, _ in points)
        if len(swept) > 1:
            where = {n.label: (_shown(a), _shown(b)) for n, a, b in points}
            path = [where[n.label] for n in swept if n.label in where]
            axes.plot(*zip(*path, strict=True), color=_colour("residual"), lw=1.2, alpha=0.6)
        for line, a, b in points:
            _cross(axes, line, a, b)
        _label_axis(axes, x, along="x")
        _label_axis(axes, y, along="y")
        texts = [_short(line) for line, _, _ in points]
        colours = [_colour(line.arm) for line, _, _ in points]
        places = [(_shown(a), _shown(b)) for _, a, b in points]
        place_labels(canvas, axes, texts=texts, points=places, colours=colours)
        title = f"{_clean(y.title)} against {_clean(x.title)}"
        text = _spoken(points, x, y)
        return _plot(canvas, name=f"tradeoff-{_slug(x.task)}", title=title, text=text)


def weight_sweep(lines: Sequence[Line]) -> Plot | None:
    """Each task over the weight of the grafted adapter; weight 0 is the plain instruct model."""
    swept = _swept(lines)
    infos = [i for i in task_infos(swept) if sum(n.first(i.task) is not None for n in swept) > 1]
    if len(swept) < 2 or not infos:
        return None
    with _panels(len(infos)) as (canvas, panels):
        for axes, info in zip(panels, infos, strict=True):
            _sweep_panel(axes, lines, swept, info)
        names = ", ".join(_clean(info.title) for info in infos)
        return _plot(
            canvas,
            name="weight-sweep",
            title="Weight of the grafted adapter",
            text=f"{names} for the weights {', '.join(f'{_weight(n):g}' for n in swept)} of the "
            f"adapter in the arm residual, with 95 % bands; dashed lines are other arms.",
        )


def loss_curves(trainings: Sequence[Training]) -> Plot | None:
    """Training loss over tokens, one curve per training, smoothed where there are many updates."""
    drawn = [(t, curve) for t in trainings if len((curve := _curve(t))[0]) > 1]
    if not drawn:
        return None
    with _axes(6.6, 3.6) as (canvas, axes):
        styles = ["-", "--", ":", "-."]
        seen: dict[str, int] = {}
        for training, (tokens, losses) in drawn:
            arm = _trained_arm(training.name)
            style = styles[seen.get(arm, 0) % len(styles)]
            seen[arm] = seen.get(arm, 0) + 1
            axes.plot(tokens, losses, color=_colour(arm), ls=style, lw=1.4, label=training.name)
        axes.set_xlabel("tokens that bore loss")
        axes.set_ylabel("loss, nats per token")
        axes.xaxis.set_major_formatter(_token_ticks)
        axes.legend(frameon=False, fontsize=8, ncols=1 + (len(drawn) > 6))
        ends = "; ".join(f"{t.name} ends at {losses[-1]:.3f}" for t, (_, losses) in drawn)
        return _plot(canvas, name="loss", title="Training loss", text=f"{ends}.")


def energy(residuals: dict[str, dict[str, Any]]) -> Plot | None:
    """Share of the residual's Frobenius energy that each rank keeps."""
    curves = {name: found for name, report in residuals.items() if (found := _energy(report))}
    if not curves:
        return None
    with _axes(6.6, 3.4) as (canvas, axes):
        ranks = sorted({rank for points in curves.values() for rank, _ in points})
        for name, points in curves.items():
            xs, ys = zip(*points, strict=True)
            percent = [100 * v for v in ys]
            axes.plot(xs, percent, "o-", color=_colour("residual-lowrank"), label=name)
            for x, value in zip(xs, percent, strict=True):
                axes.annotate(
                    f"{value:.0f} %", (x, value), (0, 7), textcoords="offset points", ha="center"
                )
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.minorticks_off()
        axes.margins(x=0.1)
        axes.set_ylim(0, 110)
        axes.set_yticks(range(0, 101, 25))
        axes.set_xlabel("rank of the residual")
        axes.set_ylabel("energy kept, %")
        spoken = "; ".join(
            f"rank {r} keeps {100 * v:.1f} %" for points in curves.values() for r, v in points
        )
        return _plot(canvas, name="energy", title="Energy that the residual keeps", text=spoken)


def _cross(axes: Axes, line: Line, a: Score, b: Score) -> None:
    marker = _MARKERS.get(line.arm, "o")
    axes.errorbar(
        _shown(a),
        _shown(b),
        xerr=_arms(a),
        yerr=_arms(b),
        fmt=marker,
        color=_colour(line.arm),
        ms=9 if marker == "*" else 7,
        elinewidth=0.9,
        capsize=0,
        alpha=0.95,
    )


def _sweep_panel(axes: Axes, lines: Sequence[Line], swept: Sequence[Line], info: TaskInfo) -> None:
    found = [(_weight(n), s) for n in swept if (s := n.first(info.task))]
    xs = [weight for weight, _ in found]
    low = [_shown(s) - _arms(s)[0][0] for _, s in found]
    high = [_shown(s) + _arms(s)[1][0] for _, s in found]
    axes.fill_between(xs, low, high, color=_colour("residual"), alpha=0.18, lw=0)
    axes.plot(xs, [_shown(s) for _, s in found], "o-", color=_colour("residual"), label="residual")
    for arm, style in (("instruct", (0, (1, 1.5))), ("cpt-instruct", (0, (5, 2)))):
        line = find_line(lines, arm)
        score = line.first(info.task) if line else None
        if score:
            axes.axhline(_shown(score), color=_colour(arm), ls=style, lw=1.4, label=arm)
    axes.set_xticks(xs, [f"{weight:g}" for weight in xs])
    axes.set_xlabel("weight")
    _label_axis(axes, info, along="y")
    axes.legend(frameon=False, fontsize=8)


def _label_axis(axes: Axes, info: TaskInfo, *, along: str) -> None:
    unit = "%" if info.unit == "share" else "bits per byte"
    text = f"{_clean(info.title)}, {unit}"
    if along == "x":
        axes.set_xlabel(f"{text}  (better \u2192)")
        if info.better == "lower":
            axes.invert_xaxis()
        return
    axes.set_ylabel(f"{text}  (better \u2192)")
    if info.better == "lower":
        axes.invert_yaxis()


def _shown(score: Score) -> float:
    return score.interval.estimate * (100 if score.info.unit == "share" else 1)


def _arms(score: Score) -> list[list[float]]:
    """Error bars, [[down], [up]]; none where there is no interval."""
    found = score.interval
    factor = 100 if score.info.unit == "share" else 1
    if math.isnan(found.low):
        return [[0.0], [0.0]]
    return [
        [max(0.0, factor * (found.estimate - found.low))],
        [max(0.0, factor * (found.high - found.estimate))],
    ]


def _swept(lines: Any) -> list[Line]:
    """The residual's weights in order, with the plain instruct model as weight 0."""
    lines = list(lines)
    swept = [n for n in lines if n.arm == "residual" and "cpt_weight" in n.settings]
    plain = find_line(lines, "instruct")
    if swept and plain and all(_weight(n) != 0 for n in swept):
        swept.append(plain)
    return sorted(swept, key=_weight)


def _weight(line: Line) -> float:
    return float(line.settings.get("cpt_weight", 0.0))


def _short(line: Line) -> str:
    """On the sweep only the weight stands beside the point, but for the last."""
    return _clean(line.label)


def _spoken(points: list[tuple[Line, Score, Score]], x: TaskInfo, y: TaskInfo) -> str:
    said = "; ".join(f"{_clean(n.label)} {_shown(a):.3g}, {_shown(b):.3g}" for n, a, b in points)
    return f"{_clean(x.title)} and {_clean(y.title)} of each arm: {said}."


def _curve(training: Training) -> tuple[list[float], list[float]]:
    """(tokens, loss); a running mean over a fiftieth of the updates."""
    rows = [r for r in training.rows if math.isfinite(float(r.get("train/loss", math.nan)))]
    tokens = [float(r.get("train/tokens", r.get("step", i))) for i, r in enumerate(rows)]
    losses = [float(r["train/loss"]) for r in rows]
    window = max(1, len(losses) // 50)
    smooth = [
        sum(losses[max(0, i + 1 - window) : i + 1]) / len(losses[max(0, i + 1 - window) : i + 1])
        for i in range(len(losses))
    ]
    return tokens, smooth


def _trained_arm(stage: str) -> str:
    known = {"cpt-base": "residual", "cpt-instruct": "cpt-instruct", "sft": "cpt-sft"}
    return next((arm for start, arm in known.items() if stage.startswith(start)), "")


def _energy(report: dict[str, Any]) -> list[tuple[int, float]]:
    """(rank, share) pairs of a residual's report, however deep they stand."""
    for key, value in report.items():
        if isinstance(value, dict):
            if "energy" in key and all(str(rank).isdigit() for rank in value):
                pairs = [(int(r), v) for r, v in value.items() if isinstance(v, int | float)]
                if pairs:
                    return sorted((rank, float(v)) for rank, v in pairs)
            if found := _energy(value):
                return found
    return []


def _token_ticks(value: float, _position: int) -> str:
    from kit.units import show_count

    return show_count(value) if value >= 0 else ""


def _colour(arm: str) -> str:
    return _COLOURS.get(arm, _OTHER)[0]


def _clean(text: str) -> str:
    return clean_text(text)[:60]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Canvas, Axes]]:
    with _canvas(width, height) as canvas:
        yield canvas, canvas.add_subplot()


@contextmanager
def _panels(count: int) -> Iterator[tuple[Canvas, list[Axes]]]:
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    with _canvas(3.5 * columns + (0.5 if columns == 1 else 0), 2.8 * rows) as canvas:
        yield canvas, [canvas.add_subplot(rows, columns, i + 1) for i in range(count)]


@contextmanager
def _canvas(width: float, height: float) -> Iterator[Canvas]:
    import matplotlib
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def _plot(canvas: Canvas, *, name: str, title: str, text: str) -> Plot:
    """Save as SVG, and make it one that can stand in a page beside others."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Plot(
        name=name, title=title, text=text, svg=_for_page(buffer.getvalue(), name, title, text)
    )


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
        f'<desc id="{name}-desc">{escape(clean_text(text))}</desc>'
    )
    svg = svg.replace("<svg ", head, 1)
    end = svg.index(">") + 1
    return svg[:end] + said + svg[end:]


def scheme(dark: bool) -> dict[str, str]:
    """CSS variable -> colour of every arm."""
    return {f"--{arm}": pair[dark] for arm, pair in _COLOURS.items()}


Formatter = Callable[[float, int], str]
