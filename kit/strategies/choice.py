"""What a user asks for beside a recipe: some tasks, or a suite."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kit.errors import RecipeError
from kit.recipe.schema import SuiteName

TEXT, IFEVAL = "text", "ifeval"


@dataclass(frozen=True, kw_only=True)
class TaskChoice:
    """Tasks to measure, or a suite; neither: what the recipe says."""

    tasks: tuple[str, ...] = ()
    """lm-eval's names (`arc_easy`, `mmlu`, `ifeval`), `text` for bits per byte."""
    suite: SuiteName | None = None
    """quick, standard or full."""
    limit: int | None = None
    """At most so many items of each task. None: what a recipe has by default."""
    num_fewshot: int | None = None
    """Worked examples before each question. None: as the task has it."""
    chat: bool = False
    """Ask benchmarks through the chat template."""
    data_dir: str | None = None
    """Folder with the benchmarks' data as jsonl. None: the recipe's, or the hub."""

    def overrides(self) -> list[str]:
        """The same as changes to a recipe."""
        if self.tasks and self.suite:
            raise RecipeError("a suite and tasks are named", fix="name one of the two")
        options = (self.limit, self.num_fewshot, self.chat or None)
        if not self.tasks and any(option is not None for option in options):
            raise RecipeError(
                "limit, few-shot examples and chat belong to tasks, and none is named",
                fix="name --tasks, or write them into a recipe's evaluate.benchmarks",
            )
        changes: dict[str, Any] = {}
        if self.tasks:
            changes = {f"evaluate.{key}": value for key, value in self._section().items()}
        if self.suite:
            changes["evaluate.suite"] = self.suite
        if self.data_dir:
            changes["evaluate.data_dir"] = self.data_dir
        return [f"{name}={json.dumps(value)}" for name, value in changes.items()]

    def _section(self) -> dict[str, Any]:
        """These tasks and no others; sizes stay as the recipe has them."""
        given = {"limit": self.limit, "num_fewshot": self.num_fewshot, "chat": self.chat or None}
        options = {name: value for name, value in given.items() if value is not None}
        names = [name for name in self.tasks if name not in (TEXT, IFEVAL)]
        ifeval = {"prompts": self.limit} if self.limit else {}
        return {
            "text": TEXT in self.tasks,
            "suite": None,
            "benchmarks": {name: options for name in names},
            "ifeval": ifeval if IFEVAL in self.tasks else None,
            "lilliput_rules": None,
            "questions": {},
        }
