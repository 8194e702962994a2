"""Which tasks a recipe asks for, and how a stack is put through them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kit.adapters.attach import mounted
from kit.data.questions import read_questions
from kit.evaluation.benchmarks import load_benchmark
from kit.evaluation.engine import Engine
from kit.evaluation.ifeval import IFEval
from kit.evaluation.instructions import LilliputRules
from kit.evaluation.measure import Numbers, check_names, chunks, measure_chunk
from kit.evaluation.perplexity import TextTask
from kit.evaluation.questions import QuestionTask
from kit.evaluation.task import Task
from kit.progress import Progress
from kit.recipe.schema import Evaluate
from kit.runs.partial import PartialRows
from kit.runs.records import ItemRow, Role

if TYPE_CHECKING:
    from kit.adapters.tensors import Adapter

HELDOUT, GENERAL = "heldout.jsonl", "general.jsonl"
_TEXTS: tuple[tuple[str, str, Role, str], ...] = (
    ("new_text", "New text", "new_text", HELDOUT),
    ("general_text", "General text", "general_text", GENERAL),
)
_RULES_SEED = 0
"""The items are part of the measurement, not of a training: every run asks the same ones."""


@dataclass(frozen=True)
class TextRow:
    """A document to measure, as the text stage wrote it."""

    id: str
    text: str


def text_tasks(folder: Path) -> list[Task]:
    """The tasks that a text stage prepared: held-out and general text."""
    tasks: list[Task] = []
    for name, title, role, file in _TEXTS:
        if (folder / file).is_file():
            documents = read_text_rows(folder / file)
            tasks.append(TextTask(name, title=title, role=role, documents=documents))
    return tasks


def asking_tasks(
    evaluate: Evaluate, *, decide: Callable[[str], None] = lambda line: None
) -> list[Task]:
    """The tasks that need no corpus; what is missing is found out here, before a model is loaded.

    Raises:
        DataError: a task's data is not there.
        RecipeError: there is no such task.
    """
    tasks: list[Task] = []
    if evaluate.lilliput_rules:
        tasks.append(LilliputRules(evaluate.lilliput_rules, seed=_RULES_SEED))
    data_dir = Path(evaluate.data_dir) if evaluate.data_dir else None
    if evaluate.ifeval is not None:
        options = evaluate.ifeval
        tasks.append(
            IFEval(
                data=Path(options.data) if options.data else None,
                data_dir=data_dir,
                prompts=options.prompts,
                max_new_tokens=options.max_new_tokens,
            )
        )
    for name, benchmark in evaluate.benchmarks.items():
        tasks.append(
            load_benchmark(name, data_dir=data_dir, decide=decide, **benchmark.model_dump())
        )
    for name, questions in evaluate.questions.items():
        tasks.append(
            QuestionTask(
                name=f"questions/{name}",
                title=name.replace("-", " ").replace("_", " ").capitalize(),
                items=read_questions(questions.sources),
                form=questions.form,
                max_new_tokens=questions.max_new_tokens,
            )
        )
    check_names(tasks)
    return tasks


def measure_stack(
    engine: Engine,
    adapter: Adapter | None,
    *,
    todo: Mapping[str, Sequence[Numbers]],
    tasks: Sequence[Task],
    rows: PartialRows,
    progress: Progress,
) -> None:
    """Mount a stack's combined adapter, measure what is not measured yet, and take it off again.

    Args:
        engine: asks the stack's checkpoint.
        adapter: the sum of the stack's weighted adapters; None for a plain checkpoint.
        todo: chunks of items, by task.
        tasks: their tasks.
        rows: what was measured so far, added to after every chunk.
        progress: where to say how far it is.
    """
    with mounted(engine.model, adapter):
        for task in tasks:
            name, left = task.info.task, []
            for numbers in todo.get(name, ()):
                if not rows.has(name, [task.item_ids[number] for number in numbers]):
                    left.append(numbers)
            if not left:
                continue
            with progress.task(task.info.title, sum(map(len, left))) as advance:
                for numbers in left:
                    started = time.monotonic()
                    measured = measure_chunk(engine, task, numbers, advance=advance)
                    rows.add(measured, seconds=time.monotonic() - started)


def all_chunks(tasks: Sequence[Task]) -> dict[str, list[Numbers]]:
    """Every item of every task."""
    return {task.info.task: list(chunks(task)) for task in tasks}


def measured_rows(tasks: Sequence[Task], rows: PartialRows) -> tuple[ItemRow, ...]:
    """What was measured, task by task, in the order in which it was."""
    return tuple(row for task in tasks for row in rows.rows.values() if row.task == task.info.task)


def read_text_rows(path: Path) -> list[TextRow]:
    """The documents of a jsonl that the text stage wrote."""
    with path.open(encoding="utf-8") as file:
        return [TextRow(id=row["id"], text=row["text"]) for row in map(json.loads, file)]
