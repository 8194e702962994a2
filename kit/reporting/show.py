"""A run's results where the user is: tables on a terminal, tables and plots in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from kit.reporting.collect import read_study
from kit.reporting.conclusions import headlines, scope
from kit.reporting.plots import plots
from kit.reporting.tables import Grid, grids, rich_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


class Results:
    """What a run found; a notebook shows it by naming it, `rich.print` shows it on a terminal.

    Args:
        run_dir: a run directory, finished or not.

    Raises:
        RunDirectoryError: it is no run directory.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.study = read_study(Path(run_dir))

    @property
    def sentences(self) -> list[str]:
        """What the intervals decide, and what they do not; the report has them arm by arm."""
        return [*headlines(self.study), scope(self.study)]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        from rich.text import Text

        for grid in grids(self.study.lines, details=False):
            yield rich_table(grid)
        for sentence in self.sentences:
            yield Text(f"- {sentence}")

    def _repr_html_(self) -> str:
        shown = [_table(grid) for grid in grids(self.study.lines, details=False)]
        shown.append("<ul>" + "".join(f"<li>{escape(s)}</li>" for s in self.sentences) + "</ul>")
        for plot in plots(self.study):
            shown.append(f'<div style="max-width: 760px">{plot.svg}</div>')
        return "\n".join(shown)


def _table(grid: Grid) -> str:
    heads = "".join(f"<th>{escape(a)}<br><small>{escape(b)}</small></th>" for a, b in grid.headers)
    rows = [
        "<tr>"
        + "".join(
            f"<td>{escape(cell.text)}<br><small>{escape(cell.detail)} {escape(cell.verdict)}"
            "</small></td>"
            for cell in row
        )
        + "</tr>"
        for row in grid.rows
    ]
    return (
        f"<h4>{escape(grid.title)}</h4><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table><p><small>{escape(grid.caption)}</small></p>"
    )
