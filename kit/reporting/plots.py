"""A study's plots: what is drawn, of which lines.

tradeoff       new knowledge against instruction following, one point per line
weight_sweep   a task over the weight of the grafted adapter
loss_curves    one curve per training
energy         what a low-rank residual keeps
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

from kit.reporting.canvas import MARKERS, Plot, axes_on_paper, colour_of, finished, short_name
from kit.reporting.collect import Study, Training
from kit.reporting.labels import FONT_SIZE, Point, place_labels, spread_apart
from kit.reporting.lines import Line, Score, find_line, task_infos
from kit.runs.records import TaskInfo
from kit.units import show_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plots(study: Study) -> list[Plot]:
    """Every plot that the study has data for."""
    infos = task_infos(study.lines)
    follows = next((i for i in infos if i.role == "instructions"), None)
    made: list[Plot | None] = []
    if follows:
        knows = [i for i in infos if i.role in ("new_text", "knowledge")]
        made += [tradeoff(study.lines, x=info, y=follows) for info in knows]
    made += [weight_sweep(study.lines, info) for info in infos]
    made += [loss_curves(study.trainings), energy(study.residuals)]
    return [plot for plot in made if plot]


def tradeoff(lines: Sequence[Line], *, x: TaskInfo, y: TaskInfo) -> Plot | None:
    """New knowledge against instruction following, with intervals on both axes.

    Better is right and up, whatever the direction of the metrics.
    """
    found = [(n, a, b) for n in lines if (a := n.first(x.task)) and (b := n.first(y.task))]
    if len(found) < 2:
        return None
    with axes_on_paper(4.9, 4.2) as (canvas, axes):
        points = [(_shown(a), _shown(b)) for _, a, b in found]
        where = {n.label: point for (n, _, _), point in zip(found, points, strict=True)}
        path = [where[n.label] for n in _swept(lines) if n.label in where]
        if len(path) > 1:
            axes.plot(*zip(*path, strict=True), color=colour_of("residual"), lw=1.2, alpha=0.6)
        thin = list(pairwise(path))
        for line, a, b in found:
            thin += _cross(axes, line, a, b)
        _label_axis(axes, x, along="x")
        _label_axis(axes, y, along="y")
        place_labels(
            canvas,
            axes,
            texts=[_label(line, lines) for line, _, _ in found],
            points=points,
            colours=[colour_of(line.arm) for line, _, _ in found],
            thin=thin,
        )
        said = "; ".join(f"{n.label} {_shown(a):.3g}, {_shown(b):.3g}" for n, a, b in found)
        return finished(
            canvas,
            name=f"tradeoff-{_slug(x.task)}",
            group="tradeoff",
            title=f"{y.title} against {x.title}",
            text=f"{x.title} and {y.title} of each arm: {said}.",
        )


def weight_sweep(lines: Sequence[Line], info: TaskInfo) -> Plot | None:
    """A task over the weight of the grafted adapter; weight 0 is the plain instruct model."""
    found = [(_weight(n), s) for n in _swept(lines) if (s := n.first(info.task))]
    if len(found) < 2:
        return None
    with axes_on_paper(4.6, 3.0) as (canvas, axes):
        xs, ys = [weight for weight, _ in found], [_shown(s) for _, s in found]
        low = [_shown(s) - _error(s)[0] for _, s in found]
        high = [_shown(s) + _error(s)[1] for _, s in found]
        axes.fill_between(xs, low, high, color=colour_of("residual"), alpha=0.18, lw=0)
        axes.plot(xs, ys, "o-", color=colour_of("residual"), ms=5)
        ends = [("residual", ys[-1])]
        for arm, style in (("instruct", (0, (1, 1.5))), ("cpt-instruct", (0, (5, 2)))):
            line = find_line(lines, arm)
            if line and (score := line.first(info.task)):
                axes.axhline(_shown(score), color=colour_of(arm), ls=style, lw=1.4)
                ends.append((arm, _shown(score)))
        axes.set_xticks(xs, [f"{weight:g}" for weight in xs])
        axes.set_xlabel("weight of the adapter")
        _label_axis(axes, info, along="y", named=False)
        _end_labels(canvas, axes, ends)
        said = "; ".join(f"{w:g}: {y:.3g}" for w, y in zip(xs, ys, strict=True))
        return finished(
            canvas,
            name=f"sweep-{_slug(info.task)}",
            group="sweep",
            title=info.title,
            text=f"{info.title} by weight of the adapter in the arm residual, with 95 % "
            f"bands; {said}.",
        )


def loss_curves(trainings: Sequence[Training]) -> Plot | None:
    """Training loss over tokens, one curve per training, smoothed where there are many updates."""
    drawn = [(t, curve) for t in trainings if len((curve := _curve(t))[0]) > 1]
    if not drawn:
        return None
    with axes_on_paper(4.9, 3.2) as (canvas, axes):
        styles = ["-", "--", ":", "-."]
        seen: dict[str, int] = {}
        for training, (tokens, losses) in drawn:
            arm = _trained_arm(training.name)
            style = styles[seen.get(arm, 0) % len(styles)]
            seen[arm] = seen.get(arm, 0) + 1
            axes.plot(tokens, losses, color=colour_of(arm), ls=style, lw=1.4, label=training.name)
        axes.set_xlabel("tokens that bore loss")
        axes.set_ylabel("loss, nats per token")
        axes.xaxis.set_major_formatter(_token_ticks)
        axes.legend(frameon=False, fontsize=8, ncols=1 + (len(drawn) > 6))
        ends = "; ".join(f"{t.name} ends at {losses[-1]:.3f}" for t, (_, losses) in drawn)
        return finished(
            canvas, name="loss", group="training", title="Training loss", text=f"{ends}."
        )


def energy(residuals: dict[str, dict[str, Any]]) -> Plot | None:
    """Share of the residual's Frobenius energy that each rank keeps."""
    curves = [
        (name, points)
        for report in residuals.values()
        for name, key in (("of all", "kept"), ("of the adapted layers", "kept_of_linear"))
        if (points := _by_rank(report.get(key)))
    ]
    if not curves:
        return None
    with axes_on_paper(4.9, 3.2) as (canvas, axes):
        for (name, points), style in zip(curves, ("o-", "s--"), strict=False):
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, style, color=colour_of("residual-lowrank"), ms=5, label=name)
        ranks = sorted({rank for _, points in curves for rank, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.minorticks_off()
        axes.margins(x=0.1)
        axes.set_ylim(0, 100)
        axes.set_xlabel("rank of the residual")
        axes.set_ylabel("energy kept, %")
        axes.legend(frameon=False, fontsize=8)
        spoken = "; ".join(
            f"rank {rank} keeps {share:.1f} % {name}"
            for name, points in curves
            for rank, share in points
        )
        return finished(
            canvas,
            name="energy",
            group="training",
            title="Energy that the residual keeps",
            text=f"{spoken}.",
        )


def _cross(axes: Axes, line: Line, a: Score, b: Score) -> list[tuple[Point, Point]]:
    """A marker with its two intervals; returns these as lines."""
    x, y, (left, right), (down, up) = _shown(a), _shown(b), _error(a), _error(b)
    colour, marker = colour_of(line.arm), MARKERS.get(line.arm, "o")
    axes.plot([x - left, x + right], [y, y], color=colour, lw=0.9, alpha=0.5)
    axes.plot([x, x], [y - down, y + up], color=colour, lw=0.9, alpha=0.5)
    axes.plot([x], [y], marker, color=colour, ms=10 if marker == "*" else 7)
    return [((x - left, y), (x + right, y)), ((x, y - down), (x, y + up))]


def _end_labels(canvas: Figure, axes: Axes, ends: Sequence[tuple[str, float]]) -> None:
    """Names of lines beside the right edge, pushed apart where the lines end close together."""
    axes.get_ylim()  # settles the limits, which transLimits takes as they are
    heights = [float(axes.transLimits.transform((0, y))[1]) for _, y in ends]
    gap = 11 / (72 * canvas.get_figheight() * 0.75)
    for (arm, _), height in zip(ends, spread_apart(heights, gap), strict=True):
        axes.annotate(
            arm,
            (1, height),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=FONT_SIZE,
            color=colour_of(arm),
        )


def _label_axis(
    axes: Axes, info: TaskInfo, *, along: Literal["x", "y"], named: bool = True
) -> None:
    unit = "%" if info.unit == "share" else "bits per byte"
    text = (
        f"{short_name(info.title)}, {unit} (better \u2192)" if named else f"{unit} (better \u2192)"
    )
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_label_text(text)
    if info.better == "lower":
        axis.set_inverted(True)


def _shown(score: Score) -> float:
    return score.interval.estimate * (100 if score.info.unit == "share" else 1)


def _error(score: Score) -> Point:
    """How far the interval goes down and up; nowhere where there is none."""
    found = score.interval
    factor = 100 if score.info.unit == "share" else 1
    if math.isnan(found.low):
        return 0.0, 0.0
    return factor * (found.estimate - found.low), factor * (found.high - found.estimate)


def _label(line: Line, lines: Sequence[Line]) -> str:
    """Of a sweep only one point carries the arm's name, the others their weight."""
    named = find_line(lines, line.arm)
    weight = line.settings.get("cpt_weight")
    if line.arm == "residual" and weight is not None and named is not line:
        return f"x{weight:g}"
    return short_name(line.label)


def _swept(lines: Iterable[Line]) -> list[Line]:
    """The residual's weights in order, with the plain instruct model as weight 0."""
    lines = list(lines)
    swept = [n for n in lines if n.arm == "residual" and "cpt_weight" in n.settings]
    plain = find_line(lines, "instruct")
    if swept and plain and all(_weight(n) != 0 for n in swept):
        swept.append(plain)
    return sorted(swept, key=_weight)


def _weight(line: Line) -> float:
    return float(line.settings.get("cpt_weight", 0.0))


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


def _by_rank(shares: Any) -> list[tuple[int, float]]:
    """(rank, per cent) pairs; JSON has made the ranks text."""
    if not isinstance(shares, dict):
        return []
    return sorted((int(rank), 100 * float(share)) for rank, share in shares.items())


def _token_ticks(value: float, _position: float) -> str:
    return show_count(value) if value >= 0 else ""


def _slug(text: str) -> str:
    """A name for ids; what it loses of the text, a checksum keeps apart."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    lost = plain != re.sub("[/_]", "-", text)
    return f"{plain}-{crc32(text.encode('utf-8', 'replace')):x}" if lost else plain
