"""Which tasks a recipe asks for, and how a stack is put through them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kit.adapters.attach import mount, unmount
from kit.data.questions import read_questions
from kit.evaluation.engine import Engine
from kit.evaluation.ifeval import IFEval
from kit.evaluation.instructions import LilliputRules
from kit.evaluation.measure import measure
from kit.evaluation.perplexity import TextTask
from kit.evaluation.questions import QuestionTask
from kit.evaluation.task import Task
from kit.progress import Progress
from kit.recipe.schema import Evaluate
from kit.runs.records import ItemRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kit.adapters.tensors import Adapter

_RULES_SEED = 0
"""The items are part of the measurement, not of a training: every run asks the same ones."""


@dataclass(frozen=True)
class TextRow:
    """A document to measure, as the text stage wrote it."""

    id: str
    text: str


def build_tasks(evaluate: Evaluate, *, heldout: Path, general: Path) -> list[Task]:
    """Every task of a recipe; what is missing is found out here, before a model is loaded.

    Args:
        evaluate: the recipe's section.
        heldout: jsonl of held-out documents (`id`, `text`).
        general: jsonl of general documents.

    Raises:
        DataError: a task's data is not there.
    """
    tasks: list[Task] = [
        TextTask(
            name="new_text", title="New text", role="new_text", documents=read_text_rows(heldout)
        ),
        TextTask(
            name="general_text",
            title="General text",
            role="general_text",
            documents=read_text_rows(general),
        ),
    ]
    return tasks + asking_tasks(evaluate)


def asking_tasks(evaluate: Evaluate) -> list[Task]:
    """The tasks that ask the model something."""
    tasks: list[Task] = []
    if evaluate.lilliput_rules:
        tasks.append(LilliputRules(evaluate.lilliput_rules, seed=_RULES_SEED))
    if evaluate.ifeval is not None:
        options = evaluate.ifeval
        tasks.append(
            IFEval(
                data=Path(options.data) if options.data else None,
                prompts=options.prompts,
                max_new_tokens=options.max_new_tokens,
            )
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
    return tasks


def read_text_rows(path: Path) -> list[TextRow]:
    """The documents of a jsonl that the text stage wrote."""
    with path.open(encoding="utf-8") as file:
        return [TextRow(id=row["id"], text=row["text"]) for row in map(json.loads, file)]


def measure_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: Adapter | None,
    *,
    tasks: Sequence[Task],
    evaluate: Evaluate,
    progress: Progress,
) -> list[ItemRow]:
    """Mount a stack's combined adapter, run every task, and take the adapter off again.

    Args:
        model: the stack's checkpoint.
        tokenizer: the instruct model's.
        adapter: the sum of the stack's weighted adapters; None for a plain checkpoint.
        tasks: what to run.
        evaluate: batch size and length.
        progress: where to say how far it is.
    """
    engine = Engine(model, tokenizer, batch_size=evaluate.batch_size, max_length=evaluate.seq_len)
    total = sum(len(task.item_ids) for task in tasks)
    finished: dict[str, int] = {}
    with progress.task("measure", total) as advance:

        def report(name: str, done: int, _: int) -> None:
            advance(done - finished.get(name, 0), name)
            finished[name] = done

        if adapter is not None:
            mount(model, adapter)
        try:
            return measure(engine, tasks, progress=report)
        finally:
            if adapter is not None:
                unmount(model)
