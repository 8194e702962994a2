"""A run directory, read: whatever of it is finished, and a list of what is not.

run.json  recipe.yaml                         what was asked
stages/text/                                  the token ledger
stages/cpt-*/  sft-*/                         losses
stages/residual*/                             energy kept by rank
stages/measure-*/                             items
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.errors import RunDirectoryError
from kit.reporting.lines import Line, Score, find_line, summarize, task_infos
from kit.runs.records import Measurement, read_jsonl, read_measurement

MANY_TRUNCATED = 0.1
"""Above this share of replies that were cut off, the report says so."""

_SWEEPS = (
    ("cpt_weights", "residual", "cpt_weight"),
    ("residual_ranks", "residual-lowrank", "rank"),
    ("residual_ranks", "residual-only", "rank"),
)
"""(key of the recipe's study, arm, key of a line's settings)"""

__all__ = ["Line", "Study", "Training", "read_study", "summarize"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """One finished training."""

    name: str
    """The stage: `cpt-base-s0`."""
    rows: tuple[dict[str, Any], ...]
    """One per update, as in `metrics.jsonl`."""
    result: dict[str, Any]
    """`training.json`."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that a report says, read from one run directory."""

    folder: Path
    about: dict[str, Any]
    """`run.json`."""
    recipe: dict[str, Any]
    """The resolved recipe, as plain data; empty when it cannot be read."""
    measurements: tuple[Measurement, ...]
    lines: tuple[Line, ...]
    control: str | None
    """Label of the line that the others are compared with; None when it was not measured."""
    trainings: tuple[Training, ...] = ()
    ledger: dict[str, Any] = field(default_factory=dict)
    residuals: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stage -> its report."""
    missing: tuple[str, ...] = ()
    """What was asked and is not there, one sentence each."""
    notes: tuple[str, ...] = ()
    """What a reader must know of the comparisons, one sentence each."""

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.about.get("name") or self.recipe.get("name") or self.folder.name)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds that were measured."""
        return tuple(sorted({seed for line in self.lines for seed in line.seeds}))


def read_study(run_dir: Path) -> Study:
    """Read a run directory, finished or not.

    Raises:
        RunDirectoryError: it is none, or a file in it is of another version or broken.
        DataError: something was measured twice.
    """
    folder = Path(run_dir)
    about = _read_json(folder / "run.json")
    if not about:
        raise RunDirectoryError(
            "this is no run directory: it has no run.json",
            where=str(folder),
            fix="name the folder that `kit run` wrote",
        )
    recipe = _read_recipe(folder / "recipe.yaml")
    done = _done_stages(folder / "stages")
    measurements = [read_measurement(p) for p in done if (p / "measurement.json").is_file()]
    asked = about.get("control") or recipe.get("study", {}).get("control")
    lines = summarize(measurements, asked)
    control = find_line(lines, asked)
    return Study(
        folder=folder,
        about=about,
        recipe=recipe,
        measurements=tuple(measurements),
        lines=tuple(lines),
        control=control.label if control else None,
        trainings=tuple(_training(p) for p in done if (p / "metrics.jsonl").is_file()),
        ledger=_ledger(folder),
        residuals={
            path.name: _read_json(path / "report.json")
            for path in done
            if path.name.startswith("residual") and (path / "report.json").is_file()
        },
        missing=tuple(_missing(folder, about, recipe, lines, control=asked)),
        notes=tuple(comparison_notes(lines)),
    )


def comparison_notes(lines: Sequence[Line]) -> list[str]:
    """Where lines were not measured on the same items, and what could not be measured."""
    notes = []
    for line in lines:
        for (_, metric), score in line.scores.items():
            if metric == score.info.metrics[0]:
                notes += [f"{line.label}, {score.info.title}: {x}" for x in _score_notes(score)]
    for info in task_infos(lines):
        lacking = [line.label for line in lines if line.first(info.task) is None]
        if lacking:
            notes.append(f"no score in {info.title}: {', '.join(lacking)}")
        cut = {line.label: _truncated(line, info.task) for line in lines}
        most = max(cut, key=lambda label: cut[label])
        if cut[most] > MANY_TRUNCATED:
            notes.append(
                f"{info.title}: up to {100 * cut[most]:.0f} % of the replies were cut off before "
                f"they were right ({most}); a larger max_new_tokens may change the scores"
            )
    return notes


def _score_notes(score: Score) -> list[str]:
    notes = []
    if score.unshared:
        shared = score.difference.n if score.difference else 0
        notes.append(
            f"{score.unshared} items stand on one side only; the difference to the control is "
            f"over the {shared} that both have"
        )
    if score.other_prompts:
        notes.append(
            f"{score.other_prompts} items were asked with another prompt than in the control"
        )
    if score.left_out:
        notes.append(
            f"{score.left_out} items could not be measured with every seed and are left out"
        )
    return notes


def _truncated(line: Line, task: str) -> float:
    counts = line.counts.get(task, {})
    return counts.get("truncated", 0) / max(1, sum(counts.values()))


def _done_stages(stages: Path) -> list[Path]:
    """Finished stages, in order of name; one under way has a name that begins with a dot."""
    if not stages.is_dir():
        return []
    return sorted(
        path
        for path in stages.iterdir()
        if not path.name.startswith(".") and (path / "done.json").is_file()
    )


def _training(stage: Path) -> Training:
    return Training(
        name=stage.name,
        rows=tuple(read_jsonl(stage / "metrics.jsonl")),
        result=_read_json(stage / "training.json"),
    )


def _ledger(folder: Path) -> dict[str, Any]:
    places = ("data/ledger.json", "stages/text/blocks/ledger.json", "stages/text/ledger.json")
    return next((found for name in places if (found := _read_json(folder / name))), {})


def _missing(
    folder: Path,
    about: dict[str, Any],
    recipe: dict[str, Any],
    lines: Sequence[Line],
    *,
    control: str | None,
) -> list[str]:
    study = recipe.get("study", {})
    # A run says which arms it makes; stacks that a user names belong to no arm of the recipe.
    arms = about.get("arms") or []
    measured = {line.arm for line in lines}
    absent = [arm for arm in arms if arm not in measured]
    found = []
    if absent:
        found.append(f"not measured yet: {', '.join(map(str, absent))}")
    if control and find_line(lines, control) is None:
        found.append(f"the control {control} is not measured yet, so nothing is compared")
    asked = set(about.get("seeds") or [])
    for line in lines:
        if line.seeds and (lacking := sorted(asked - set(line.seeds))):
            numbers = ", ".join(map(str, lacking))
            found.append(f"{line.label} is not measured yet with seed {numbers}")
    for setting, arm, key in _SWEEPS:
        there = {line.settings.get(key) for line in lines if line.arm == arm}
        wanted = [v for v in study.get(setting, []) if v != 0 and v not in there]
        if arm in arms and arm in measured and wanted:
            found.append(f"{arm} is not measured yet with {key} {', '.join(map(str, wanted))}")
    under_way = sorted((folder / "stages").glob(".*.part"))
    if under_way:
        names = ", ".join(path.name[1 : -len(".part")] for path in under_way)
        found.append(f"begun and not finished: {names}")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunDirectoryError(
            f"this is no JSON: {error}", where=str(path), fix="run the recipe again"
        ) from error
    return content if isinstance(content, dict) else {}


def _read_recipe(path: Path) -> dict[str, Any]:
    """The recipe as plain data: a report of an older recipe needs no schema."""
    if not path.is_file():
        return {}
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise RunDirectoryError(
            "recipe.yaml cannot be read", where=str(path), fix="run the recipe again"
        ) from error
    return content if isinstance(content, dict) else {}
