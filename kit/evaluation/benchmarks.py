"""Any of lm-eval's tasks or groups as one task of the kit, item by item.

    lm-eval     rows of data, few-shot prompts, requests, filters, metrics of one item
    the kit     which items, the model's answers, means with intervals

The requests are built once for a tokenizer and asked of every stack.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, Unpack

from kit.errors import RecipeError
from kit.evaluation.harness import Fewshot, load_tasks
from kit.evaluation.harness_task import Benchmark
from kit.evaluation.ifeval import IFEval
from kit.evaluation.task import Task

_IFEVAL_TOKENS = 1280
"""Longest reply in lm-eval's definition of IFEval."""


class Settings(TypedDict, total=False):
    """How a benchmark is asked; what is left out is as in lm-eval."""

    limit: int | None
    """At most so many items, spread evenly; the tasks of a group share them. None: all."""
    num_fewshot: int | None
    fewshot: Fewshot
    chat: bool
    max_new_tokens: int | None


def load_benchmark(
    name: str,
    *,
    data_dir: Path | None = None,
    decide: Callable[[str], None] = lambda line: None,
    **settings: Unpack[Settings],
) -> Task:
    """One of lm-eval's tasks or groups, with its data, ready to be measured.

    Args:
        name: `arc_easy`, `mmlu`, `gsm8k`; `ifeval` is the kit's own class.
        data_dir: folder with the data as `kit.evaluation.local_data` says. None: the hub's.
        decide: told what a reader of the numbers should know.
        settings: how it is asked.

    Raises:
        RecipeError: there is no such task, or it cannot be measured item by item.
        DataError: its data cannot be had.
    """
    limit, longest = settings.get("limit"), settings.get("max_new_tokens")
    if name == "ifeval":
        if settings.get("num_fewshot"):
            raise RecipeError(
                "IFEval is asked without examples",
                where="evaluate.benchmarks.ifeval",
                fix="leave num_fewshot out",
            )
        return IFEval(
            data=None,
            data_dir=data_dir,
            prompts=limit,
            max_new_tokens=longest or _IFEVAL_TOKENS,
        )
    loaded = load_tasks(
        name,
        num_fewshot=settings.get("num_fewshot"),
        fewshot=settings.get("fewshot", "default"),
        data_dir=data_dir,
    )
    _set_longest(loaded.tasks, longest)
    benchmark = Benchmark(name, loaded, limit=limit, chat=settings.get("chat", False))
    for note in (*loaded.notes, *benchmark.notes):
        decide(note)
    return benchmark


def _set_longest(tasks: dict[str, Any], longest: int | None) -> None:
    """Set the longest reply where tasks ask for one, and see that they ask for greedy ones.

    Raises:
        RecipeError: a task samples.
    """
    from kit.evaluation.greedy import check_greedy

    for task in tasks.values():
        if task.OUTPUT_TYPE != "generate_until":
            continue
        if longest is not None:
            task.set_config("generation_kwargs", {"max_gen_toks": longest}, update=True)
        check_greedy(task.get_config("generation_kwargs") or {})
