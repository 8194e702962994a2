"""The report of a run: `report.md`, and one `report.html` that needs no network and no script."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

import kit
from kit.reporting.canvas import scheme
from kit.reporting.collect import Study, read_study
from kit.reporting.conclusions import arm_by_arm, conclusions, headlines, scope
from kit.reporting.facts import (
    asked,
    ledger_facts,
    limits,
    provenance_facts,
    stack_grid,
    training_grid,
)
from kit.reporting.plots import plots
from kit.reporting.samples import samples
from kit.reporting.tables import Grid, grids, markdown_table
from kit.reporting.wording import clean_text, escape_markdown
from kit.runs.directory import write_text


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where the two reports are."""

    markdown: Path
    html: Path


def write_report(run_dir: Path) -> ReportPaths:
    """Write both reports into a run directory; an unfinished run gets a partial one.

    Raises:
        RunDirectoryError: it is no run directory, or a file in it is broken.
        StorageError: there is no room.
    """
    study = read_study(Path(run_dir))
    paths = ReportPaths(markdown=study.folder / "report.md", html=study.folder / "report.html")
    write_text(paths.markdown, render_markdown(study))
    write_text(paths.html, render_html(study))
    return paths


def render_markdown(study: Study) -> str:
    """The report for a terminal, a repository or a chat: all numbers, no plots."""
    parts = [f"# {escape_markdown(study.name)}", escape_markdown(_state(study))]
    parts += _bullets("Not there yet", study.missing)
    parts += _bullets("What came out", conclusions(study))
    parts += _bullets("What was asked", [f"{name}: {value}" for name, value in asked(study)])
    parts.append("## Numbers")
    parts += [markdown_table(grid) for grid in grids(study.lines)]
    parts += _bullets("To know when reading them", [*study.notes, *limits(study)])
    extra = [grid for grid in (stack_grid(study), training_grid(study)) if grid.rows]
    parts += ["## How it was done", *(markdown_table(grid) for grid in extra)]
    parts += _bullets("Tokens", [f"{name}: {value}" for name, value in ledger_facts(study)])
    parts += _bullets("Decisions", _decisions(study))
    facts = [f"{name}: {value}" for name, value in provenance_facts(study)]
    parts += _bullets("To do it again", facts)
    return _writable("\n\n".join(parts) + "\n")


def render_html(study: Study) -> str:
    """The whole page; everything is escaped but the plots, which escaped their texts themselves."""
    drawn = plots(study)
    tables = {grid.title: grid for grid in grids(study.lines)}
    folded = ("Other metrics", "Counts")
    return _writable(
        _template().render(
            study=study,
            state=_state(study),
            version=kit.__version__,
            headlines=headlines(study),
            arms=arm_by_arm(study),
            scope=scope(study),
            asked=asked(study),
            shown=[grid for title, grid in tables.items() if title not in folded],
            folded=[tables[title] for title in folded if title in tables],
            tradeoffs=[plot for plot in drawn if plot.group == "tradeoff"],
            sweeps=[plot for plot in drawn if plot.group == "sweep"],
            trainings=[plot for plot in drawn if plot.group == "training"],
            done=[grid for grid in (stack_grid(study), training_grid(study)) if grid.rows],
            ledger=ledger_facts(study),
            decisions=_decisions(study),
            provenance=provenance_facts(study),
            limits=limits(study),
            samples=samples(study.lines, study.measurements),
            light=scheme(dark=False),
            dark=scheme(dark=True),
        )
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = _plain
    text = resources.files("kit.reporting").joinpath("page.html.jinja").read_text("utf-8")
    return environment.from_string(text)


def _plain(value: Any) -> str:
    """Untrusted text on one or several lines, without control characters."""
    return "\n".join(clean_text(line) for line in str(value).split("\n"))


def _state(study: Study) -> str:
    about = study.about
    if study.missing or (about.get("arms") and not about.get("finished")):
        return "This run is not finished: the report is partial."
    if about.get("finished"):
        return f"finished {about['finished']}"
    return f"measured {about.get('started', 'at an unknown time')}"


def _decisions(study: Study) -> list[str]:
    found = study.about.get("decisions")
    return [str(line) for line in found] if isinstance(found, list) else []


def _bullets(title: str, lines: Any) -> list[str]:
    lines = [f"- {escape_markdown(str(line))}" for line in lines]
    return [f"## {title}", "\n".join(lines)] if lines else []


def _writable(text: str) -> str:
    """A lone surrogate, which JSON can hold, has no place in a UTF-8 file."""
    return text.encode("utf-8", "replace").decode("utf-8")


__all__ = ["Grid", "ReportPaths", "render_html", "render_markdown", "write_report"]
