"""The rows that a run writes and a report reads; every file names its `schema_version`.

A score is always a ratio of sums over items, so that one rule serves all of them:

    accuracy              numerator 0 or 1                 denominator 1
    IFEval, instructions  instructions followed            instructions asked
    bits per byte         -log2 of the text's likelihood   UTF-8 bytes of the text
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kit.errors import RunDirectoryError

SCHEMA_VERSION = 1

Status = Literal["correct", "wrong", "scored", "truncated", "error"]
Role = Literal["new_text", "general_text", "instructions", "ability", "knowledge"]


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What a task measures, and how its numbers are to be read."""

    task: str
    """Its name, unique in a study: `new_text`, `ifeval`, `questions/new-chat`."""
    title: str
    """What a reader of the table sees."""
    role: Role
    """Which of the study's questions it answers."""
    metrics: tuple[str, ...]
    """Names of its scores; the first is the one that plots and comparisons use."""
    better: Literal["higher", "lower"]
    """Which way is better."""
    unit: Literal["share", "bits per byte"] = "share"
    """Shares are printed as per cent."""
    chance: float | None = None
    """The score of guessing, where there is such a thing."""


@dataclass(frozen=True, kw_only=True)
class ItemRow:
    """One item, measured once on one stack."""

    task: str
    item: str
    """Unique within the task, the same for every stack."""
    status: Status
    """Exactly one. `scored` is for text, which is neither right nor wrong."""
    scores: dict[str, tuple[float, float]]
    """(numerator, denominator) of each metric; empty when status is `error`."""
    prompt_hash: str
    """First 16 hex digits of the SHA-256 of what the model was given."""
    prediction: str = ""
    """What the model said; empty for text."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    """Generated tokens, or tokens that were scored."""
    note: str = ""
    """Why an item is an error or truncated."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Every row of one stack, with what the stack is."""

    arm: str
    """The arm's name in the catalogue."""
    label: str
    """The arm and its variant as printed: `residual x0.5`, `residual-lowrank r32`."""
    seed: int | None
    """The training seed; None where nothing was trained."""
    stack: str
    """The stack in its written form: `instruct + cpt@base*0.5`."""
    settings: dict[str, float | int] = field(default_factory=dict)
    """What tells variants of one arm apart: `cpt_weight`, `residual_weight`, `rank`."""
    trained_tokens: dict[str, int] = field(default_factory=dict)
    """Tokens that bore loss, by kind: `cpt`, `sft`."""
    decode: str = ""
    """How the weights were held while measuring, with the reason."""
    seconds: float = 0.0
    tasks: tuple[TaskInfo, ...] = ()
    rows: tuple[ItemRow, ...] = ()


def write_measurement(folder: Path, measurement: Measurement) -> None:
    """Write `measurement.json` and `eval.jsonl` into a folder that is not in use yet."""
    about = asdict(measurement)
    rows = about.pop("rows")
    append_jsonl(folder / "eval.jsonl", rows)
    about["schema_version"] = SCHEMA_VERSION
    (folder / "measurement.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def read_measurement(folder: Path) -> Measurement:
    """Read what `write_measurement` wrote.

    Raises:
        RunDirectoryError: it was written by another version of the format.
    """
    path = folder / "measurement.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    version = about.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise RunDirectoryError(
            f"the measurement has schema_version {version}, this kit reads {SCHEMA_VERSION}",
            where=str(path),
            fix="use the version of the kit that wrote it, or measure again in a new folder",
        )
    about["tasks"] = tuple(
        TaskInfo(**{**task, "metrics": tuple(task["metrics"])}) for task in about["tasks"]
    )
    rows = tuple(item_row(row) for row in read_jsonl(folder / "eval.jsonl"))
    return Measurement(rows=rows, **about)


def item_row(row: dict[str, Any]) -> ItemRow:
    """A row as it was read from a JSON-lines file."""
    scores = {name: (pair[0], pair[1]) for name, pair in row["scores"].items()}
    return ItemRow(**{**row, "scores": scores})


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file; a last line that a kill cut short is left out."""
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise RunDirectoryError(
                f"line {number} is no JSON", where=str(path), fix="measure again in a new folder"
            ) from error
    return rows
