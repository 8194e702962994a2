"""Run tasks on one stack, and prove that every item was counted once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from kit.errors import RecipeError
from kit.evaluation.engine import Engine
from kit.evaluation.task import Task
from kit.progress import Advance, silent
from kit.runs.records import ItemRow

TaskProgress = Callable[[str, int, int], None]
"""Called with a task's name, its items done so far, and all its items."""


def measure(
    engine: Engine, tasks: Sequence[Task], *, progress: TaskProgress | None = None
) -> list[ItemRow]:
    """Measure every item of every task once.

    An item that cannot be measured is a row with status `error` and does not stop the others.

    Args:
        engine: asks the stack's model.
        tasks: with different names; their rows follow each other in this order.
        progress: told whenever items of a task are done.

    Raises:
        RecipeError: two tasks have the same name.
    """
    names = [task.info.task for task in tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecipeError(
            f"two tasks are named {twice!r}", where="evaluate", fix="name each set once"
        )
    rows: list[ItemRow] = []
    for task in tasks:
        measured = task.run(engine, _counting(task, progress) if progress else silent)
        check_rows(task, measured)
        rows += measured
    return rows


def check_rows(task: Task, rows: Sequence[ItemRow]) -> None:
    """Assert that the rows are the task's items: each once, in order, with all of its metrics."""
    info, items = task.info, [row.item for row in rows]
    assert len(set(task.item_ids)) == len(task.item_ids), f"{info.task}: an item id stands twice"
    assert items == list(task.item_ids), f"{info.task}: rows are not the items: {items[:5]} ..."
    is_text = info.unit == "bits per byte"
    allowed = {"scored", "error"} if is_text else {"correct", "wrong", "truncated", "error"}
    for row in rows:
        where = f"{info.task}, item {row.item}"
        assert row.task == info.task, f"{where}: the row says {row.task}"
        assert row.status in allowed, f"{where}: status {row.status}"
        expected = set() if row.status == "error" else set(info.metrics)
        assert set(row.scores) == expected, f"{where}: scores {sorted(row.scores)}"
        assert row.status != "error" or row.note, f"{where}: an error without its reason"
        for name, (numerator, denominator) in row.scores.items():
            good = math.isfinite(numerator) and math.isfinite(denominator) and denominator > 0
            assert good, f"{where}: {name} is {numerator} / {denominator}"


def _counting(task: Task, progress: TaskProgress) -> Advance:
    done_so_far = 0

    def advance(done: int, note: str = "") -> None:
        nonlocal done_so_far
        done_so_far += done
        progress(task.info.task, done_so_far, len(task.item_ids))

    return advance
