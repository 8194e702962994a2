"""Run tasks on one stack chunk by chunk, and prove that every item was counted once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from kit.errors import RecipeError
from kit.evaluation.engine import Engine
from kit.evaluation.task import Task
from kit.progress import Advance, silent
from kit.runs.records import ItemRow

Numbers = tuple[int, ...]
"""Numbers of the items of one chunk."""


def chunks(task: Task, numbers: Sequence[int] | None = None) -> Iterator[Numbers]:
    """The items of a task in pieces that are measured together.

    Args:
        task: says how large they are.
        numbers: the items, in the order in which they are measured; None: all.
    """
    wanted = range(len(task.item_ids)) if numbers is None else numbers
    for start in range(0, len(wanted), task.chunk):
        yield tuple(wanted[start : start + task.chunk])


def measure(engine: Engine, tasks: Sequence[Task]) -> list[ItemRow]:
    """Measure every item of every task once.

    An item that cannot be measured is a row with status `error` and does not stop the others.

    Args:
        engine: asks the stack's model.
        tasks: with different names; their rows follow each other in this order.

    Raises:
        RecipeError: two tasks have the same name.
    """
    check_names(tasks)
    rows: list[ItemRow] = []
    for task in tasks:
        for numbers in chunks(task):
            rows += measure_chunk(engine, task, numbers)
    return rows


def measure_chunk(
    engine: Engine, task: Task, numbers: Numbers, *, advance: Advance = silent
) -> list[ItemRow]:
    """Measure these items of a task, and check what comes back."""
    rows = task.run(engine, numbers, advance)
    check_rows(task, numbers, rows)
    return rows


def check_names(tasks: Sequence[Task]) -> None:
    """See that no two tasks have the same name.

    Raises:
        RecipeError: two have.
    """
    names = [task.info.task for task in tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecipeError(
            f"two tasks are named {twice!r}", where="evaluate", fix="name each set once"
        )


def check_rows(task: Task, numbers: Sequence[int], rows: Sequence[ItemRow]) -> None:
    """Assert that the rows are these items: each once, in order, with all of its metrics."""
    info, items = task.info, [row.item for row in rows]
    assert len(set(task.item_ids)) == len(task.item_ids), f"{info.task}: an item id stands twice"
    wanted = [task.item_ids[number] for number in numbers]
    assert items == wanted, f"{info.task}: rows are not the items: {items[:5]} ..."
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
