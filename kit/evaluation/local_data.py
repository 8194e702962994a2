"""Benchmark data from a folder, for machines without the hub.

A task keeps lm-eval's own definition; only its rows come from these files (jsonl, UTF-8):

    ifeval          ifeval/input_data_20231215.jsonl or ifeval/input_data.jsonl
    arc_easy        arc/arc_easy.jsonl         arc/arc_easy_train.jsonl
    arc_challenge   arc/arc_challenge.jsonl    arc/arc_challenge_train.jsonl
    hellaswag       hellaswag/validation.jsonl hellaswag/train.jsonl
    winogrande      winogrande/winogrande.jsonl or validation.jsonl   winogrande/train.jsonl
    gsm8k           gsm8k/test.jsonl           gsm8k/train.jsonl
    mmlu            mmlu/test.jsonl            mmlu/dev.jsonl, with a column `subject`

The second file serves few-shot examples. MMLU needs it; the others take their examples from the
rows that are asked where it is missing (never the row itself), which is said.

Rows are the hub's, or the plain ones of lists made for scoring:

    arc          query ("Question: ..."), choices, gold
    hellaswag    query, choices, gold: already processed, so lm-eval's processing is left out
    winogrande   context_options, continuation, gold
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from kit.errors import DataError, RecipeError

Row = dict[str, Any]


@dataclass(frozen=True)
class LocalFiles:
    """Where a task's rows lie in a data folder, and what they are to the task."""

    asked: tuple[str, ...]
    """The rows that are asked: the first of these files that is there."""
    examples: str | None = None
    """The rows of few-shot examples."""
    split: str = "test"
    """lm-eval's name of the asked rows."""
    examples_split: str = "train"
    needs_examples: bool = False
    to_hub: Callable[[Row], Row] = dict
    """A plain row as the hub has it."""
    fields: frozenset[str] = frozenset()
    """What a row of the hub has."""


def _arc(row: Row) -> Row:
    labels = [chr(ord("A") + place) for place in range(len(row["choices"]))]
    return {
        "question": str(row["query"]).removeprefix("Question: "),
        "choices": {"text": list(row["choices"]), "label": labels},
        "answerKey": labels[row["gold"]],
    }


def _hellaswag(row: Row) -> Row:
    return {
        "query": row["query"],
        "choices": list(row["choices"]),
        "gold": int(row["gold"]),
        "label": str(row["gold"]),
    }


def _winogrande(row: Row) -> Row:
    """One sentence with a blank: what both contexts begin with, up to a word's end, stays."""
    first, second = row["context_options"]
    pairs = zip(first, second, strict=False)
    same = next(
        (place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second))
    )
    shared = first[: first.rfind(" ", 0, same) + 1]
    shared = "" if "_" in shared else shared
    return {
        "sentence": f"{shared}_ {row['continuation']}",
        "option1": first[len(shared) :],
        "option2": second[len(shared) :],
        "answer": str(row["gold"] + 1),
    }


LOCAL_FILES: dict[str, LocalFiles] = {
    "arc_easy": LocalFiles(
        asked=("arc/arc_easy.jsonl",),
        examples="arc/arc_easy_train.jsonl",
        to_hub=_arc,
        fields=frozenset({"question", "choices", "answerKey"}),
    ),
    "arc_challenge": LocalFiles(
        asked=("arc/arc_challenge.jsonl",),
        examples="arc/arc_challenge_train.jsonl",
        to_hub=_arc,
        fields=frozenset({"question", "choices", "answerKey"}),
    ),
    "hellaswag": LocalFiles(
        asked=("hellaswag/validation.jsonl",),
        examples="hellaswag/train.jsonl",
        split="validation",
        to_hub=_hellaswag,
        fields=frozenset({"activity_label", "ctx_a", "ctx_b", "endings", "label"}),
    ),
    "winogrande": LocalFiles(
        asked=("winogrande/winogrande.jsonl", "winogrande/validation.jsonl"),
        examples="winogrande/train.jsonl",
        split="validation",
        to_hub=_winogrande,
        fields=frozenset({"sentence", "option1", "option2", "answer"}),
    ),
    "gsm8k": LocalFiles(
        asked=("gsm8k/test.jsonl",),
        examples="gsm8k/train.jsonl",
        fields=frozenset({"question", "answer"}),
    ),
    "mmlu": LocalFiles(
        asked=("mmlu/test.jsonl",),
        examples="mmlu/dev.jsonl",
        examples_split="dev",
        needs_examples=True,
        fields=frozenset({"question", "choices", "answer", "subject"}),
    ),
}
"""By task; `mmlu` serves each of its subjects."""

IFEVAL_FILES = ("ifeval/input_data_20231215.jsonl", "ifeval/input_data.jsonl")


@dataclass
class LocalTasks:
    """Tasks whose rows come from a folder."""

    tasks: list[dict[str, Any]] = field(default_factory=list)
    """For lm-eval: each task's name and what differs from its own definition."""
    notes: list[str] = field(default_factory=list)
    """What is not as with the hub's data."""


def expected_files(name: str) -> str:
    """The files of a task as a reader should provide them; empty where there is no local form."""
    if name == "ifeval":
        return IFEVAL_FILES[0]
    files = LOCAL_FILES.get(_family(name))
    if files is None:
        return ""
    return files.asked[0] + (f" and {files.examples}" if files.needs_examples else "")


def ifeval_file(data_dir: Path) -> Path:
    """IFEval's prompts in a data folder.

    Raises:
        DataError: they are not there.
    """
    return _found(data_dir, IFEVAL_FILES, name="ifeval")


def local_definitions(names: Sequence[str], manager: Any, data_dir: Path) -> LocalTasks:
    """What to change in lm-eval's tasks so that they read a data folder.

    Args:
        names: tasks, no groups.
        manager: lm-eval's, which knows their own definitions.
        data_dir: the folder.

    Raises:
        RecipeError: a task has no local form.
        DataError: a file is missing, or its rows are others.
    """
    local = LocalTasks()
    for name in names:
        files = LOCAL_FILES.get(_family(name))
        if files is None or (_family(name) == "mmlu" and not _is_plain_mmlu(manager, name)):
            raise RecipeError(
                f"there is no local form of {name}",
                where=f"evaluate.data_dir: {data_dir}",
                fix=f"leave data_dir out, or measure some of {', '.join(LOCAL_FILES)}",
            )
        definition, note = _definition(name, files, manager, data_dir)
        local.tasks.append(definition)
        if note and note not in local.notes:
            local.notes.append(note)
    return local


def _definition(
    name: str, files: LocalFiles, manager: Any, data_dir: Path
) -> tuple[dict[str, Any], str]:
    own = manager.task_index[name].cfg
    path = _found(data_dir, files.asked, name=name)
    subject = own["dataset_name"] if _family(name) == "mmlu" else None
    rows, is_plain = _rows(path, files, subject)
    splits = {files.split: rows}
    # These columns are what lm-eval's processing of HellaSwag makes of the hub's.
    changes: dict[str, Any] = {"process_docs": None} if is_plain and name == "hellaswag" else {}
    note = ""
    examples = data_dir / files.examples if files.examples else None
    if examples is not None and (files.needs_examples or examples.is_file()):
        _found(data_dir, (str(files.examples),), name=name)
        splits[files.examples_split], also_plain = _rows(examples, files, subject)
        if also_plain != is_plain:
            raise DataError(
                "one file has the hub's columns and the other has not",
                where=f"{path}, {examples}",
                fix="give both the same columns",
            )
    else:
        # With its examples' split named as the test split, lm-eval leaves out the row itself.
        changes |= {"training_split": None, "fewshot_split": own.get("test_split")}
        note = f"{name}: few-shot examples are taken from the rows that are asked (no train file)"
    definition = {
        "task": name,
        **changes,
        "custom_dataset": _dataset_of(splits),
        "dataset_path": str(path),
        "dataset_name": subject,
    }
    return definition, note


def _dataset_of(splits: dict[str, list[Row]]) -> Callable[..., Any]:
    def dataset(**ignored: Any) -> Any:
        from datasets import Dataset

        return {split: Dataset.from_list(rows) for split, rows in splits.items()}

    return dataset


def _rows(path: Path, files: LocalFiles, subject: str | None) -> tuple[list[Row], bool]:
    """Rows as the hub has them, and whether they were plain ones."""
    stamp = path.stat()
    rows = _read(path, stamp.st_mtime_ns, stamp.st_size)
    if subject is not None:
        rows = [row for row in rows if row.get("subject") == subject]
    if not rows:
        what = f"there is no row of the subject {subject}" if subject else "there is no row"
        raise DataError(what, where=str(path), fix="use the complete file")
    if all(files.fields <= set(row) for row in rows):
        return rows, False
    try:
        if files.to_hub is dict:
            raise KeyError(", ".join(sorted(files.fields)))
        return [files.to_hub(row) for row in rows], True
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"a row has other columns or values than this task's: {error}",
            where=str(path),
            fix=f"use the hub's columns: {', '.join(sorted(files.fields))}",
        ) from error


@cache
def _read(path: Path, changed_ns: int, size: int) -> list[Row]:
    """The rows of a file; read again when it changes."""
    rows: list[Row] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                raise DataError(
                    f"line {number} is no JSON: {error}", where=str(path), fix="use a jsonl file"
                ) from error
            if row is not None:
                rows.append(row)
    return rows


def _found(data_dir: Path, names: Sequence[str], *, name: str) -> Path:
    for file in names:
        if (data_dir / file).is_file():
            return data_dir / file
    raise DataError(
        f"the data of {name} is not in the data folder",
        where=str(data_dir),
        fix=f"put it there as {' or '.join(names)} (one JSON object a line), or leave data_dir out",
    )


def _family(name: str) -> str:
    return "mmlu" if name.startswith("mmlu_") else name


def _is_plain_mmlu(manager: Any, name: str) -> bool:
    """Whether a task asks one subject of MMLU itself, not of a variant of it."""
    path = manager.task_index[name].yaml_path
    return path is not None and path.parent.name == "default"
