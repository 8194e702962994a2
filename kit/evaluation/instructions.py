"""Lilliput's format instructions: does the reply have the format that was asked for?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kit.evaluation.task import Cost, Verdict, reply_rows
from kit.models.chat import chat_prompt
from kit.models.lilliput.rules import follows, instruction_items
from kit.progress import Advance, silent
from kit.runs.records import ItemRow, TaskInfo

if TYPE_CHECKING:
    from kit.evaluation.engine import Engine

METRIC = "followed"


class LilliputRules:
    """Format instructions about people whom no tuning chat names, checked by code.

    Args:
        count: number of instructions; the rules take turns.
        seed: same seed, same instructions.
        max_new_tokens: longest reply.
    """

    def __init__(self, count: int, *, seed: int, max_new_tokens: int = 48) -> None:
        self.info = TaskInfo(
            task="lilliput_rules",
            title="Format instructions followed",
            role="instructions",
            metrics=(METRIC,),
            better="higher",
        )
        self._items = instruction_items("held", count, seed)
        self.item_ids = tuple(f"{item.rule}/{n}" for n, item in enumerate(self._items))
        self.chunk = 128
        self._max_new_tokens = max_new_tokens

    def item_text(self, number: int) -> str:
        """The instruction; there is no one right answer."""
        return self._items[number].prompt

    def run(
        self, engine: Engine, numbers: Sequence[int], advance: Advance = silent
    ) -> list[ItemRow]:
        """Ask the instructions of these numbers as chat turns."""
        prompts = self._prompts(engine, numbers)
        replies = engine.generate(prompts, max_new_tokens=self._max_new_tokens, advance=advance)
        return reply_rows(
            self.info.task,
            [self.item_ids[number] for number in numbers],
            prompts=prompts,
            replies=replies,
            judge=lambda place, text: self._judge(numbers[place], text),
        )

    def cost(self, engine: Engine) -> Cost:
        """Tokens of all prompts, and of replies at their longest."""
        prompts = self._prompts(engine, range(len(self._items)))
        return Cost(read=sum(map(len, prompts)), written=len(prompts) * self._max_new_tokens)

    def _prompts(self, engine: Engine, numbers: Sequence[int]) -> list[list[int]]:
        turns = ([{"role": "user", "content": self._items[n].prompt}] for n in numbers)
        return [chat_prompt(engine.tokenizer, turn) for turn in turns]

    def _judge(self, number: int, text: str) -> Verdict:
        passed = follows(self._items[number], text)
        return Verdict(passed, {METRIC: (float(passed), 1.0)})
