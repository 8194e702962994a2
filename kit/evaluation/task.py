"""What a task is: named items, a way to ask an engine about them, one row for each of them.

An item is exactly one of

    correct     its first metric's condition holds, whether or not the reply reached its end
    wrong       it does not, and the reply ended by itself
    truncated   it does not, and the reply was cut off: more tokens might have changed it
    scored      text, which is neither right nor wrong
    error       it could not be measured (NaN, a prompt longer than the context); no scores

A truncated item keeps the scores that its checker gave to the part that was there, so shares are
over all items but errors, and counting the truncated ones says how far to trust them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kit.progress import Advance, silent
from kit.runs.records import ItemRow, Status, TaskInfo

if TYPE_CHECKING:
    from kit.evaluation.engine import Engine
    from kit.evaluation.generation import Generation

Scores = dict[str, tuple[float, float]]
"""(numerator, denominator) of each metric."""


@dataclass(frozen=True)
class Verdict:
    """What a checker says about one reply."""

    passed: bool
    """Whether the condition of the task's first metric holds."""
    scores: Scores
    """Every metric of the task."""
    error: str = ""
    """Why the checker could not say; empty when it could."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Work in tokens."""

    read: int = 0
    """Scored, or read as a prompt."""
    written: int = 0
    """Of replies, at most."""


class Task(Protocol):
    """Something to measure on any stack; its items are the same for all of them."""

    @property
    def info(self) -> TaskInfo:
        """What it measures."""

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Its items, unique."""

    @property
    def chunk(self) -> int:
        """Items that are measured together.

        What stands in one batch rounds together, so a stop and a resume give identical rows only
        where the borders of the batches depend on nothing but the task.
        """

    def run(
        self, engine: Engine, numbers: Sequence[int], advance: Advance = silent
    ) -> list[ItemRow]:
        """Measure the items of these numbers; one row for each, in this order."""

    def cost(self, engine: Engine) -> Cost:
        """Tokens that all items take on one stack, replies at their full length."""

    def item_text(self, number: int) -> str:
        """Question and right answer as plain text, to look for in the training text."""


def prompt_hash(given: str | Sequence[int]) -> str:
    """First 16 hex digits of the SHA-256 of a text, or of token ids written with blanks."""
    text = given if isinstance(given, str) else " ".join(map(str, given))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def error_row(task: str, item: str, *, given: str | Sequence[int], note: str) -> ItemRow:
    """The row of an item that could not be measured."""
    tokens = 0 if isinstance(given, str) else len(given)
    return ItemRow(
        task=task,
        item=item,
        status="error",
        scores={},
        prompt_hash=prompt_hash(given),
        prompt_tokens=tokens,
        note=note,
    )


def reply_rows(
    task: str,
    items: Sequence[str],
    *,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Generation],
    judge: Callable[[int, str], Verdict],
) -> list[ItemRow]:
    """The rows of items that were answered.

    Args:
        task: the task's name.
        items: the items' ids.
        prompts: the ids that the model was given for each.
        replies: what came back.
        judge: called with an item's number and its reply's text.
    """
    rows = []
    asked = zip(items, prompts, replies, strict=True)
    for number, (item, prompt, reply) in enumerate(asked):
        verdict = None if reply.error else judge(number, reply.text)
        error = reply.error or (verdict.error if verdict else "")
        if error or verdict is None:
            rows.append(error_row(task, item, given=prompt, note=error))
            continue
        status: Status = "correct" if verdict.passed else "wrong" if reply.stopped else "truncated"
        rows.append(
            ItemRow(
                task=task,
                item=item,
                status=status,
                scores=verdict.scores,
                prompt_hash=prompt_hash(prompt),
                prediction=reply.text,
                prompt_tokens=len(prompt),
                output_tokens=len(reply.ids),
                note="" if reply.stopped else f"cut off after {len(reply.ids)} tokens",
            )
        )
    return rows
