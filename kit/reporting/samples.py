"""A few items of each generating task, with what every arm replied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kit.reporting.lines import Line, task_infos
from kit.runs.records import ItemRow, Measurement

LONGEST_REPLY = 600


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one line said; of several seeds the first."""

    label: str
    status: str
    text: str
    cut: int
    """Characters that are not shown."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One item."""

    item: str
    prompt_hash: str
    replies: tuple[Reply, ...]


def samples(
    lines: Sequence[Line], measurements: Sequence[Measurement], *, per_task: int = 5
) -> dict[str, list[Sample]]:
    """Task title -> items, spread evenly over the task so that nobody picked them."""
    firsts = _first_seeds(lines, measurements)
    found: dict[str, list[Sample]] = {}
    for info in task_infos(lines):
        tables = {
            label: {row.item: row for row in measurement.rows if row.task == info.task}
            for label, measurement in firsts.items()
        }
        items = list(
            dict.fromkeys(i for rows in tables.values() for i, r in rows.items() if r.prediction)
        )
        if items:
            found[info.title] = [_sample(i, tables) for i in spread(items, per_task)]
    return found


def spread(items: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, evenly, the first among them."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _first_seeds(
    lines: Sequence[Line], measurements: Sequence[Measurement]
) -> dict[str, Measurement]:
    """Label -> its measurement of the smallest seed, in the order of the lines."""
    found: dict[str, Measurement] = {}
    for line in lines:
        own = [m for m in measurements if m.label == line.label]
        found[line.label] = min(own, key=lambda m: -1 if m.seed is None else m.seed)
    return found


def _sample(item: str, tables: dict[str, dict[str, ItemRow]]) -> Sample:
    rows = {label: table[item] for label, table in tables.items() if item in table}
    return Sample(
        item=item,
        prompt_hash=next(iter(rows.values())).prompt_hash,
        replies=tuple(
            Reply(
                label=label,
                status=row.status,
                text=row.prediction[:LONGEST_REPLY] or row.note,
                cut=max(0, len(row.prediction) - LONGEST_REPLY),
            )
            for label, row in rows.items()
        ),
    )
