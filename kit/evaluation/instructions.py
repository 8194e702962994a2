"""Lilliput's format instructions: does the reply have the format that was asked for?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kit.evaluation.task import Verdict, reply_rows
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
        self._max_new_tokens = max_new_tokens

    def run(self, engine: Engine, advance: Advance = silent) -> list[ItemRow]:
        """Ask every instruction as a chat turn."""
        prompts = [
            chat_prompt(engine.tokenizer, [{"role": "user", "content": item.prompt}])
            for item in self._items
        ]
        replies = engine.generate(prompts, max_new_tokens=self._max_new_tokens, advance=advance)
        return reply_rows(
            self.info.task, self.item_ids, prompts=prompts, replies=replies, judge=self._judge
        )

    def _judge(self, number: int, text: str) -> Verdict:
        passed = follows(self._items[number], text)
        return Verdict(passed, {METRIC: (float(passed), 1.0)})
