"""What is measured: a stack with its place in a study, and its rows from the first to the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.adapters.stack import Stack
from kit.adapters.tensors import adapter_fingerprint
from kit.data.contamination import NGRAM, checkable, overlaps
from kit.evaluation.measure import Numbers
from kit.evaluation.task import Task
from kit.runs.directory import RunDirectory, write_json
from kit.runs.partial import PartialRows
from kit.runs.provenance import fingerprint
from kit.runs.records import Measurement, read_measurement
from kit.strategies.measuring import GENERAL, HELDOUT, measure_stack, measured_rows
from kit.strategies.study import Shelf, Study

CONTAMINATION = "contamination.json"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One stack to measure, and which line of the report it is."""

    arm: str
    label: str
    seed: int | None
    stack: Stack
    settings: Mapping[str, float | int] = field(default_factory=dict)
    trained_tokens: Mapping[str, int] = field(default_factory=dict)


def open_rows(
    study: Study, runs: RunDirectory, name: str, target: Target, *, text: Path
) -> PartialRows:
    """The rows of a target so far, those of an earlier start of the run included.

    Args:
        study: its checkpoints and what is asked.
        runs: where the rows are kept.
        name: of the stage that they will be.
        target: what is measured.
        text: folder of the documents that are measured.
    """
    files = [text / file for file in (HELDOUT, GENERAL)]
    identity = fingerprint(
        {
            "text": [file.read_text("utf-8") for file in files if file.is_file()],
            "checkpoint": study.fingerprints[target.stack.checkpoint],
            "layers": [[adapter_fingerprint(x.path), x.weight] for x in target.stack.adapters],
            "measured with": measured_with(study),
        }
    )
    rows = PartialRows(runs.partial_path(name), fingerprint=identity)
    if runs.is_done(name, identity):
        measured = read_measurement(runs.stage_folder(name))
        rows.keep(measured.rows)
        rows.seconds = measured.seconds
    return rows


def measured_with(study: Study) -> dict[str, Any]:
    """What the rows of every measurement depend on, beside the stack and the text."""
    return {
        "evaluate": study.evaluate.model_dump(mode="json"),
        "asked": study.asked_fingerprint,
        "quantization": study.recipe.models.quantization,
        "compute_dtype": study.hardware.compute_dtype,
        "checkpoints": study.fingerprints,
    }


def measure_target(
    target: Target,
    shelf: Shelf,
    *,
    tasks: Sequence[Task],
    todo: Mapping[str, Sequence[Numbers]],
    rows: PartialRows,
) -> None:
    """Measure what is left of these chunks."""
    study = shelf.study
    measure_stack(
        shelf.engine(target.stack.checkpoint),
        target.stack.combined(study.folders),
        todo=todo,
        tasks=tasks,
        rows=rows,
        progress=study.progress,
    )


def finished(
    target: Target, shelf: Shelf, *, tasks: Sequence[Task], rows: PartialRows
) -> Measurement:
    """The measurement, from its rows."""
    return Measurement(
        arm=target.arm,
        label=target.label,
        seed=target.seed,
        stack=str(target.stack),
        settings=dict(target.settings),
        trained_tokens=dict(target.trained_tokens),
        decode=shelf.decode,
        seconds=rows.seconds,
        tasks=tuple(task.info for task in tasks),
        rows=measured_rows(tasks, rows),
    )


def check_contamination(study: Study, tasks: Sequence[Task], runs: RunDirectory) -> None:
    """Look for the items of every task in the training text, once per run directory.

    What was found stands in `contamination.json`, and the report warns of it.
    """
    path = runs.root / CONTAMINATION
    if path.exists() or not study.split.train:
        return
    texts = {
        task.info.task: [task.item_text(n) for n in range(len(task.item_ids))] for task in tasks
    }
    found = overlaps((document.text for document in study.split.train), texts)
    ids = {task.info.task: task.item_ids for task in tasks}
    about = {
        name: {
            "items": [ids[name][n] for n in numbers],
            "checked": sum(map(checkable, texts[name])),
        }
        for name, numbers in found.items()
    }
    write_json(path, {"ngram": NGRAM, "contamination": about})
    for name, numbers in found.items():
        if numbers:
            study.decide(
                f"warning: {len(numbers)} of {len(texts[name])} items of {name} share {NGRAM} "
                f"words in a row with the training text; they are listed in {CONTAMINATION}"
            )
