"""Which of a benchmark's metrics can be summed item by item, and in what unit.

    mean over items            value / 1                      a share
    lm-eval's bits_per_byte    -log2 likelihood / bytes       bits per byte

F1, BLEU, perplexities and other numbers of a whole set have no value of an item, so neither an
interval nor a paired comparison; lm-eval computes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kit.errors import RecipeError
from kit.evaluation.task import Scores

Unit = Literal["share", "bits per byte"]
Key = tuple[str, str]
"""lm-eval's metric and filter."""


@dataclass(frozen=True)
class Scale:
    """The metrics of a benchmark that are kept."""

    metrics: dict[str, Key]
    """By their names in reports; the first one decides whether an item is correct."""
    unit: Unit
    better: Literal["higher", "lower"]
    notes: tuple[str, ...] = ()
    """What was left out."""

    def scores(self, found: Mapping[str, Mapping[str, Any]]) -> Scores:
        """The scores of an item.

        Args:
            found: what lm-eval says of it, by filter and metric.

        Raises:
            ValueError: a metric is missing, or is no number that fits the unit.
        """
        return {name: self._score(found, *key) for name, key in self.metrics.items()}

    def passed(self, scores: Scores) -> bool:
        """Whether the first metric is as good as it can be."""
        value = scores[next(iter(self.metrics))][0]
        return value >= 1.0 if self.better == "higher" else value <= 0.0

    def _score(
        self, found: Mapping[str, Mapping[str, Any]], metric: str, chosen: str
    ) -> tuple[float, float]:
        if metric not in found[chosen]:
            raise ValueError(f"lm-eval gave no {metric}")
        value = found[chosen][metric]
        if self.unit == "bits per byte":
            nats, size = value
            score = (-float(nats) / math.log(2), float(size))
            is_good = math.isfinite(score[0]) and size > 0
        else:
            score = (float(value), 1.0)
            is_good = 0.0 <= score[0] <= 1.0
        if not is_good:
            raise ValueError(f"{metric} is {value}, which cannot be summed as a {self.unit}")
        return score


def scale_of(name: str, tasks: Sequence[Any]) -> Scale:
    """The metrics that all tasks of a benchmark have and that are means over items.

    Args:
        name: the benchmark.
        tasks: lm-eval's, one or more.

    Raises:
        RecipeError: there is no such metric.
    """
    units = [_units(task) for task in tasks]
    shared = [key for key in units[0] if all(key in other for other in units[1:])]
    usable = {key: unit for key in shared if (unit := units[0][key]) is not None}
    named = sorted({metric for unit in units for metric, _ in unit})
    if not usable:
        raise RecipeError(
            f"no metric of {name} is a mean over its items ({', '.join(named)})",
            where=f"evaluate.benchmarks.{name}",
            fix="use lm-eval with this engine: lm_eval.simple_evaluate(model=KitLM(engine), ...)",
        )
    first, unit = next(iter(usable.items()))
    directions = tasks[0].higher_is_better()
    kept = [
        key
        for key in usable
        if usable[key] == unit and directions.get(key[0], True) == directions.get(first[0], True)
    ]
    has_filters = len({chosen for _, chosen in kept}) > 1
    metrics = {f"{key[0]},{key[1]}" if has_filters else key[0]: key for key in kept}
    left = [metric for metric in named if metric not in {metric for metric, _ in kept}]
    return Scale(
        metrics=metrics,
        unit=unit,
        better="higher" if directions.get(first[0], True) else "lower",
        notes=(f"{name}: without {', '.join(left)}, no mean over items",) if left else (),
    )


def _units(task: Any) -> dict[Key, Unit | None]:
    """Every metric of a task in lm-eval's order; None for one of the whole set."""
    from lm_eval.api import metrics

    known: dict[Any, Unit] = {metrics.mean: "share", metrics.bits_per_byte: "bits per byte"}
    return {
        (metric, chosen.name): known.get(rule)
        for chosen in task._filters
        for metric, rule in task.aggregation().items()
    }
