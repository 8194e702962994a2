"""Lines as tables: grids of plain text, drawn by rich, in Markdown, or by the page's template.

scores        estimate [low, high] of every arm, the control on top
differences   each arm minus the control on the same items, and a verdict where one is due
spread        smallest and largest score over the seeds
counts        what became of every item
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kit.reporting.conclusions import conclusions
from kit.reporting.lines import STATUSES, Line, Score, task_infos
from kit.reporting.wording import (
    ARROWS,
    clean_text,
    escape_markdown,
    show_bounds,
    show_difference,
    show_value,
)
from kit.runs.records import TaskInfo

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Cell",
    "Grid",
    "conclusions",
    "count_grid",
    "difference_grid",
    "grids",
    "markdown_table",
    "rich_table",
    "score_grid",
    "spread_grid",
]

Tone = Literal["", "good", "bad", "muted"]
Draw = Callable[[Line, Score], "Cell"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of a grid."""

    text: str
    detail: str = ""
    """A second, smaller line: the interval."""
    verdict: str = ""
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table before it is drawn; everything in it is plain text."""

    title: str
    caption: str
    headers: tuple[tuple[str, str], ...]
    """What stands above each column, and the small print under it."""
    rows: tuple[tuple[Cell, ...], ...]
    numeric: bool = True
    """Columns but the first hold numbers, and are set to the right."""


def grids(lines: Sequence[Line], *, details: bool = True) -> list[Grid]:
    """The tables of a report, those without content left out.

    Args:
        lines: the control first.
        details: with the tasks' other metrics and the counts.
    """
    made = [score_grid(lines), difference_grid(lines), spread_grid(lines)]
    if details:
        made += [score_grid(lines, other_metrics=True), count_grid(lines)]
    return [grid for grid in made if grid.rows and len(grid.headers) > 1]


def score_grid(lines: Sequence[Line], *, other_metrics: bool = False) -> Grid:
    """Estimates with 95 % intervals.

    Args:
        lines: the control first.
        other_metrics: show what the tasks measure beside their first metric, not that.
    """

    def draw(line: Line, score: Score) -> Cell:
        detail = show_bounds(score.interval.low, score.interval.high, score.info)
        tone: Tone = "muted" if score.verdict == "control" else ""
        return Cell(text=show_value(score.interval.estimate, score.info), detail=detail, tone=tone)

    seeded = _seed_note(lines)
    return _grid(
        lines,
        infos=task_infos(lines),
        title="Other metrics" if other_metrics else "Scores",
        caption=f"estimate [95 % interval over items]; n items. {seeded}",
        draw=draw,
        others=other_metrics,
    )


def difference_grid(lines: Sequence[Line]) -> Grid:
    """Each line minus the control, on the items of both."""
    control = next((line for line in lines if _is_control(line)), None)
    compared = [line for line in lines if line is not control] if control else []

    def draw(line: Line, score: Score) -> Cell:
        found = score.difference
        if found is None:
            return Cell(text="-", verdict=score.verdict, tone="muted")
        return Cell(
            text=show_difference(found.estimate, score.info),
            detail=show_bounds(found.low, found.high, score.info, signed=True),
            verdict=score.verdict,
            tone=_tone(score),
        )

    name = control.label if control else "the control"
    return _grid(
        compared,
        infos=task_infos(lines),
        title=f"Differences to {name}",
        caption="on the same items, shares in percentage points, [95 % interval]. better, worse: "
        "the interval excludes 0 and the p-value, adjusted for the number of lines (Holm), is "
        "below 0.05; undecided: the items do not tell.",
        draw=draw,
    )


def spread_grid(lines: Sequence[Line]) -> Grid:
    """Smallest and largest score over the training seeds."""
    seeded = [line for line in lines if len(line.seeds) > 1]

    def draw(line: Line, score: Score) -> Cell:
        if score.spread is None:
            return Cell(text="-", tone="muted")
        low, high = (show_value(value, score.info) for value in score.spread)
        return Cell(text=f"{low} .. {high}")

    return _grid(
        seeded,
        infos=task_infos(lines),
        title="Spread over seeds",
        caption="smallest .. largest score over the training seeds; the intervals above are over "
        "items and do not contain it.",
        draw=draw,
    )


def count_grid(lines: Sequence[Line]) -> Grid:
    """What became of every item; statuses add up to the number of rows."""
    used = [
        status
        for status in STATUSES
        if any(counts.get(status) for line in lines for counts in line.counts.values())
    ]
    rows = []
    for info in task_infos(lines):
        for line in lines:
            counts = line.counts.get(info.task)
            if not counts:
                continue
            cells = [Cell(text=line.label), Cell(text=info.title)]
            cells += [Cell(text=str(counts.get(status, 0))) for status in used]
            rows.append((*cells, Cell(text=str(sum(counts.values())))))
    headers = ["arm", "task", *used, "items x seeds"]
    return Grid(
        title="Counts",
        caption="every item is exactly one of these; truncated: cut off before it was right; "
        "errors have no score and are left out of all of them.",
        headers=tuple((name, "") for name in headers),
        rows=tuple(rows),
    )


def rich_table(grid: Grid) -> Table:
    """For a terminal of 100 columns, or a notebook."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    colours = {"good": "green", "bad": "red", "muted": "dim", "": ""}
    # Text, not str: a label may hold what rich would read as markup.
    table = Table(
        box=SIMPLE_HEAD,
        title=Text(grid.title, style="bold"),
        caption=Text(f"{grid.caption}\n", style="dim"),
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        leading=int(any(cell.detail for row in grid.rows for cell in row)),
    )
    for index, (above, below) in enumerate(grid.headers):
        heading = Text(clean_text(above)).append(
            f"\n{clean_text(below)}" if below else "", style="dim"
        )
        table.add_column(
            heading, justify="right" if index and grid.numeric else "left", overflow="fold"
        )
    for row in grid.rows:
        drawn = []
        for cell in row:
            text = Text(clean_text(cell.text), style=colours[cell.tone])
            if cell.detail:
                text.append(f"\n{cell.detail}", style="dim")
            if cell.verdict:
                text.append(f"\n{cell.verdict}")
            drawn.append(text)
        table.add_row(*drawn)
    return table


def markdown_table(grid: Grid) -> str:
    """A title, a pipe table, a caption."""
    heads = [escape_markdown(" ".join(part for part in pair if part)) for pair in grid.headers]
    lines = [
        f"### {escape_markdown(grid.title)}",
        "",
        "| " + " | ".join(heads) + " |",
        "| " + " | ".join(["---"] + ["---:" if grid.numeric else "---"] * (len(heads) - 1)) + " |",
    ]
    for row in grid.rows:
        cells = [
            " ".join(escape_markdown(p) for p in (c.text, c.detail, c.verdict) if p) for c in row
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", escape_markdown(grid.caption)])


def _tone(score: Score) -> Tone:
    if score.verdict == "better":
        return "good"
    return "bad" if score.verdict == "worse" else ""


def _is_control(line: Line) -> bool:
    return any(score.verdict == "control" for score in line.scores.values())


def _grid(
    lines: Sequence[Line],
    *,
    infos: Sequence[TaskInfo],
    title: str,
    caption: str,
    draw: Draw,
    others: bool = False,
) -> Grid:
    columns = [
        (info, metric)
        for info in infos
        for metric in (info.metrics[1:] if others else info.metrics[:1])
    ]
    headers = [("arm", "")]
    for info, metric in columns:
        name = f"{info.title}: {metric}" if others else info.title
        headers.append((name, _small_print(info, lines, metric)))
    rows = []
    for line in lines:
        cells = [Cell(text=line.label)]
        for info, metric in columns:
            score = line.scores.get((info.task, metric))
            cells.append(draw(line, score) if score else Cell(text="-", tone="muted"))
        rows.append(tuple(cells))
    return Grid(title=title, caption=caption, headers=tuple(headers), rows=tuple(rows))


def _small_print(info: TaskInfo, lines: Iterable[Line], metric: str) -> str:
    """`bits/byte (arrow) n=40`."""
    found = [line.scores.get((info.task, metric)) for line in lines]
    sizes = sorted({score.interval.n for score in found if score})
    span = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}..{sizes[-1]}" if sizes else "0"
    unit = "" if info.unit == "share" else "bits/byte "
    chance = "" if info.chance is None else f", chance {100 * info.chance:.0f} %"
    return f"{unit}{ARROWS[info.better]} n={span}{chance}"


def _seed_note(lines: Iterable[Line]) -> str:
    numbers = sorted({len(line.seeds) for line in lines if line.seeds})
    if not numbers:
        return "Nothing was trained."
    if numbers == [1]:
        return "One seed per trained arm: what another seed would give is not in the interval."
    span = "..".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    return f"Trained arms: mean over {span} seeds, item by item."
