"""What a user asks for beside a recipe: some tasks, or a suite."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kit.errors import RecipeError
from kit.recipe.schema import Benchmark, Evaluate, IFEval, SuiteName

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
            changes["evaluate"] = self._section().model_dump(mode="json", exclude_unset=True)
        if self.suite:
            changes["evaluate.suite"] = self.suite
        if self.data_dir:
            changes["evaluate.data_dir"] = self.data_dir
        return [f"{name}={json.dumps(value)}" for name, value in changes.items()]

    def _section(self) -> Evaluate:
        given = {"limit": self.limit, "num_fewshot": self.num_fewshot, "chat": self.chat or None}
        options: dict[str, Any] = {
            name: value for name, value in given.items() if value is not None
        }
        names = [name for name in self.tasks if name not in (TEXT, IFEVAL)]
        section: dict[str, Any] = {"text": TEXT in self.tasks}
        section["benchmarks"] = {name: Benchmark(**options) for name in names}
        if IFEVAL in self.tasks:
            section["ifeval"] = IFEval(prompts=self.limit) if self.limit else IFEval()
        return Evaluate(**section)
