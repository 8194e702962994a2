"""From measurements to lines: one per arm and variant, its seeds averaged item by item.

measurement (arm, seed)  --.
measurement (arm, seed)  ---+-> values per item, mean over seeds --> interval over items
measurement (arm, seed)  --'                                    `--> difference to the control
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from kit.errors import DataError
from kit.recipe.schema import ArmName
from kit.runs.records import ItemRow, Measurement, Role, TaskInfo
from kit.stats import (
    Interval,
    PairedDifference,
    holm,
    paired_difference,
    ratio_bootstrap,
    share_interval,
)

Key = tuple[str, str]
"""Task and metric."""
Values = dict[str, tuple[float, float]]
"""Item -> (numerator, denominator), each the mean over the seeds."""
Verdict = Literal["control", "better", "worse", "undecided", "identical", "not compared"]

SIGNIFICANT = 0.05
STATUSES = ("correct", "wrong", "truncated", "scored", "error")
ROLES = get_args(Role)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one line."""

    info: TaskInfo
    metric: str
    interval: Interval
    by_seed: dict[int | None, float]
    """The score of each seed alone, on the items that every seed measured."""
    left_out: int = 0
    """Items that some seed could not measure."""
    difference: PairedDifference | None = None
    """Line minus control, on the items of both; None for the control and without one."""
    p_adjusted: float | None = None
    """The difference's p-value, Holm-adjusted over the lines of this metric."""
    unshared: int = 0
    """Items that only one of line and control has: the difference is over the others."""
    other_prompts: int = 0
    """Shared items for which line and control were given different prompts."""
    verdict: Verdict = "not compared"
    values: Values = field(default_factory=dict, repr=False)
    prompts: dict[str, str] = field(default_factory=dict, repr=False)
    """Item -> hash of what the model was given, in the first seed."""

    @property
    def spread(self) -> tuple[float, float] | None:
        """Smallest and largest score over the seeds; None with fewer than two."""
        if len(self.by_seed) < 2:
            return None
        return min(self.by_seed.values()), max(self.by_seed.values())


@dataclass(frozen=True, kw_only=True)
class Line:
    """One arm or variant: everything that was measured on it, over its seeds."""

    label: str
    arm: str
    settings: dict[str, float | int]
    seeds: tuple[int, ...]
    """Empty where nothing was trained."""
    stack: str
    trained_tokens: dict[str, int]
    decode: str
    seconds: float
    scores: dict[Key, Score]
    counts: dict[str, dict[str, int]]
    """Task -> status -> rows, summed over the seeds."""

    def first(self, task: str) -> Score | None:
        """The score that comparisons and plots use."""
        return next((s for (name, _), s in self.scores.items() if name == task), None)


def summarize(measurements: Sequence[Measurement], control_label: str | None) -> list[Line]:
    """One line per label, the control first, with differences to it.

    Args:
        measurements: of one study; those of one label are seeds of the same thing.
        control_label: a label, or an arm that has one line. None: nothing is compared.

    Raises:
        DataError: one label and seed stand twice, or an item stands twice in a task.
    """
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.label, []).append(measurement)
    lines = [_line(group) for group in groups.values()]
    control = find_line(lines, control_label)
    lines.sort(key=lambda line: (line is not control, *_order(line)))
    if control is None:
        return lines
    return _adjusted([_compared(line, control) for line in lines])


def find_line(lines: Iterable[Line], name: str | None) -> Line | None:
    """The line of a label, or else of an arm: its variant of weight 1, or its first."""
    lines = list(lines)
    of_arm = [line for line in lines if line.arm == name]
    plain = [line for line in of_arm if all(v == 1 for v in line.settings.values())]
    labelled = [line for line in lines if line.label == name]
    return next(iter([*labelled, *plain, *of_arm]), None)


def difference(a: Score, b: Score) -> PairedDifference | None:
    """Score a minus score b on the items of both; None when they share none."""
    items = [item for item in a.values if item in b.values]
    if not items:
        return None
    columns = [[values[i][k] for i in items] for values in (a.values, b.values) for k in (0, 1)]
    return paired_difference(
        *columns,
        shares=a.info.unit == "share",
        repeats=max(len(a.by_seed), len(b.by_seed)),
    )


def verdict(found: PairedDifference, p_value: float, info: TaskInfo) -> Verdict:
    """What a difference says: something only where interval and adjusted p-value both do."""
    if found.low == found.high == 0:
        return "identical"
    if not (found.low > 0 or found.high < 0) or p_value >= SIGNIFICANT:
        return "undecided"
    return "better" if (found.estimate > 0) == (info.better == "higher") else "worse"


def task_infos(lines: Iterable[Line]) -> list[TaskInfo]:
    """The tasks, text first, then instructions, then questions."""
    found: dict[str, TaskInfo] = {}
    for line in lines:
        for score in line.scores.values():
            found.setdefault(score.info.task, score.info)
    return sorted(found.values(), key=lambda info: ROLES.index(info.role))


def _order(line: Line) -> tuple[int, str, tuple[float, ...]]:
    arms = get_args(ArmName)
    rank = arms.index(line.arm) if line.arm in arms else len(arms)
    return rank, line.arm, tuple(line.settings[name] for name in sorted(line.settings))


def _line(group: list[Measurement]) -> Line:
    first = group[0]
    seeds = [m.seed for m in group]
    if len(set(seeds)) < len(seeds):
        raise DataError(
            f"{first.label!r} was measured twice with the same seed",
            where=f"seeds {seeds}",
            fix="give each measurement once",
        )
    infos = {info.task: info for m in group for info in m.tasks}
    tables = {m.seed: _by_task(m.rows, label=m.label) for m in group}
    scores = {}
    for info in sorted(infos.values(), key=lambda info: ROLES.index(info.role)):
        per_seed = {seed: table.get(info.task, {}) for seed, table in tables.items()}
        for metric in info.metrics:
            if score := _score(info, metric, per_seed):
                scores[info.task, metric] = score
    return Line(
        label=first.label,
        arm=first.arm,
        settings=dict(first.settings),
        seeds=tuple(sorted(seed for seed in seeds if seed is not None)),
        stack=first.stack,
        trained_tokens=dict(first.trained_tokens),
        decode=first.decode,
        seconds=sum(m.seconds for m in group),
        scores=scores,
        counts={
            task: _counts(row for m in group for row in m.rows if row.task == task)
            for task in infos
        },
    )


def _by_task(rows: Iterable[ItemRow], *, label: str) -> dict[str, dict[str, ItemRow]]:
    found: dict[str, dict[str, ItemRow]] = {}
    for row in rows:
        items = found.setdefault(row.task, {})
        if row.item in items:
            raise DataError(
                f"item {row.item!r} stands twice in {row.task}",
                where=label,
                fix="measure again in a new folder",
            )
        items[row.item] = row
    return found


def _counts(rows: Iterable[ItemRow]) -> dict[str, int]:
    counted: Counter[str] = Counter(row.status for row in rows)
    return {status: counted[status] for status in STATUSES if counted[status]}


def _score(
    info: TaskInfo, metric: str, per_seed: dict[int | None, dict[str, ItemRow]]
) -> Score | None:
    """One metric over the items that every seed measured; None when there is no such item."""
    everything = list(dict.fromkeys(item for rows in per_seed.values() for item in rows))
    items = [
        item
        for item in everything
        if all(item in rows and metric in rows[item].scores for rows in per_seed.values())
    ]
    if not items:
        return None
    values: Values = {}
    for item in items:
        pairs = [rows[item].scores[metric] for rows in per_seed.values()]
        values[item] = (
            math.fsum(num for num, _ in pairs) / len(pairs),
            math.fsum(den for _, den in pairs) / len(pairs),
        )
    by_seed = {}
    for seed, rows in per_seed.items():
        pairs = [rows[item].scores[metric] for item in items]
        by_seed[seed] = math.fsum(n for n, _ in pairs) / math.fsum(d for _, d in pairs)
    return Score(
        info=info,
        metric=metric,
        interval=_interval(info, list(values.values()), seeds=len(per_seed)),
        by_seed=by_seed,
        left_out=len(everything) - len(items),
        values=values,
        prompts={item: next(iter(per_seed.values()))[item].prompt_hash for item in items},
    )


def _interval(info: TaskInfo, pairs: list[tuple[float, float]], *, seeds: int) -> Interval:
    num, den = [n for n, _ in pairs], [d for _, d in pairs]
    if info.unit == "share":
        return share_interval(num, den, repeats=seeds)
    return ratio_bootstrap(num, den)


def _compared(line: Line, control: Line) -> Line:
    scores = {}
    for key, score in line.scores.items():
        against = control.scores.get(key)
        if line is control:
            scores[key] = replace(score, verdict="control")
        elif against is None:
            scores[key] = score
        else:
            unshared = len(score.values.keys() ^ against.values.keys())
            shared = score.prompts.keys() & against.prompts.keys()
            other = sum(score.prompts[item] != against.prompts[item] for item in shared)
            scores[key] = replace(
                score, difference=difference(score, against), unshared=unshared, other_prompts=other
            )
    return replace(line, scores=scores)


def _adjusted(lines: list[Line]) -> list[Line]:
    """Holm over the lines of each metric, and with it the verdicts."""
    changed = [dict(line.scores) for line in lines]
    for key in {key for scores in changed for key in scores}:
        tested = [s for s in changed if key in s and s[key].difference is not None]
        p_values = [s[key].difference.p_value for s in tested]  # type: ignore[union-attr]
        for scores, p_value in zip(tested, holm(p_values), strict=True):
            score = scores[key]
            assert score.difference is not None
            said = verdict(score.difference, p_value, score.info)
            scores[key] = replace(score, p_adjusted=p_value, verdict=said)
    return [replace(line, scores=scores) for line, scores in zip(lines, changed, strict=True)]
