"""The one noun: a checkpoint and the weighted adapters on it, `instruct + cpt@base*0.5`.

Every arm of a study is a Stack, and everything that measures, chats or merges takes one. Two stacks
on one checkpoint share one loaded model: switching is mounting other adapters.

    stack    =  name { " + " adapter }
    adapter  =  name [ "@" name ] [ "*" weight ]        after the @: what it was trained on
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.adapters import graft
from kit.adapters.algebra import concatenated
from kit.adapters.tensors import Adapter, read_adapter
from kit.errors import AdapterError, RecipeError
from kit.models.weights import Checkpoint

SCHEMA_VERSION = 1
STACK_FILE = "stack.json"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_CHECKPOINT = re.compile(rf"^{_NAME}$")
_ADAPTER = re.compile(rf"^(?P<name>{_NAME}(?:@{_NAME})?)(?:\*(?P<weight>[-+0-9.eE]+))?$")


@dataclass(frozen=True)
class Weighted:
    """One adapter of a stack."""

    name: str
    """As printed: `cpt@base`, trained on the checkpoint after the @; without an @, on its own."""
    path: Path
    """Folder of PEFT's files."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not _ADAPTER.match(self.name) or "*" in self.name:
            raise RecipeError(f"{self.name!r} is no adapter's name", fix="write name or name@base")
        if not abs(self.weight) < float("inf"):
            raise RecipeError(f"the weight of {self.name} is {self.weight}")

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.name}*{self.weight:g}"


@dataclass(frozen=True)
class Stack:
    """A checkpoint's name and the adapters on it, in order."""

    checkpoint: str
    adapters: tuple[Weighted, ...] = ()

    def __post_init__(self) -> None:
        if not _CHECKPOINT.match(self.checkpoint):
            raise RecipeError(f"{self.checkpoint!r} is no checkpoint's name")

    def __str__(self) -> str:
        return " + ".join([self.checkpoint, *map(str, self.adapters)])

    @classmethod
    def parse(cls, text: str, paths: Mapping[str, Path]) -> Stack:
        """Read the written form.

        Args:
            text: `instruct + cpt@base*0.5`.
            paths: folder of each adapter by its name, `cpt@base`.

        Raises:
            RecipeError: it is not understood, or an adapter has no path.
        """
        first, *rest = (part.strip() for part in re.split(r"\s\+\s", text.strip()))
        adapters = []
        for part in rest:
            match = _ADAPTER.match(part)
            if not match:
                raise RecipeError(f"{part!r} is no weighted adapter", where=text, fix="name*0.5")
            if match["name"] not in paths:
                known = ", ".join(sorted(paths)) or "none"
                raise RecipeError(f"no adapter {match['name']} (known: {known})", where=text)
            try:
                weight = float(match["weight"] or 1)
            except ValueError as error:
                raise RecipeError(f"{match['weight']!r} is no number", where=text) from error
            adapters.append(Weighted(match["name"], Path(paths[match["name"]]), weight))
        return cls(first, tuple(adapters))

    def combined(self, checkpoints: Mapping[Any, Path] | None = None) -> Adapter | None:
        """The weighted sum of the adapters, as one; None where nothing is to be added.

        Args:
            checkpoints: folders of the checkpoints by name. They are read for adapters with fully
                trained tensors alone, whose difference from what they were trained on counts.

        Raises:
            AdapterError: an adapter cannot be read, summed or weighted.
        """
        parts = []
        for weighted in self.adapters:
            if weighted.weight == 0:
                continue
            adapter = read_adapter(weighted.path)
            if adapter.replaced:
                adapter = self._differences(weighted, adapter, checkpoints or {})
            parts.append((adapter, weighted.weight))
        return concatenated(parts) if parts else None

    def _differences(
        self, weighted: Weighted, adapter: Adapter, checkpoints: Mapping[Any, Path]
    ) -> Adapter:
        origin = weighted.name.partition("@")[2] or self.checkpoint
        missing = {origin, self.checkpoint} - set(checkpoints)
        if missing:
            raise AdapterError(
                f"{weighted.name} replaces {', '.join(sorted(adapter.replaced))}; without "
                f"the checkpoint {', '.join(sorted(missing))} the difference is unknown",
                where=str(weighted.path),
                fix="pass the checkpoints' folders",
            )
        base = Checkpoint(checkpoints[origin])
        if origin == self.checkpoint:
            return graft.as_differences(adapter, base)
        return graft.graft(adapter, base=base, instruct=Checkpoint(checkpoints[self.checkpoint]))

    def to_json(self) -> str:
        """The text of `stack.json`."""
        about: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "written": str(self),
            "checkpoint": self.checkpoint,
            "adapters": [
                {"name": a.name, "path": str(a.path), "weight": a.weight} for a in self.adapters
            ],
        }
        return json.dumps(about, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Stack:
        """Read `stack.json`.

        Raises:
            RecipeError: it was written by another version of the format.
        """
        about = json.loads(text)
        if about.get("schema_version") != SCHEMA_VERSION:
            raise RecipeError(
                f"the stack has schema_version {about.get('schema_version')}, "
                f"this kit reads {SCHEMA_VERSION}"
            )
        adapters = (
            Weighted(row["name"], Path(row["path"]), float(row["weight"]))
            for row in about["adapters"]
        )
        return cls(about["checkpoint"], tuple(adapters))


def write_stack(folder: Path, stack: Stack) -> None:
    """Write `stack.json` into a folder."""
    part = Path(folder) / f".{STACK_FILE}.{os.getpid()}"
    part.write_text(stack.to_json(), encoding="utf-8")
    os.replace(part, Path(folder) / STACK_FILE)


def read_stack(folder: Path) -> Stack:
    """Read `stack.json` from a folder."""
    return Stack.from_json((Path(folder) / STACK_FILE).read_text(encoding="utf-8"))
