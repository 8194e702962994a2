"""Rows of a measurement under way, so that a kill loses one chunk of items and not an evening.

partial/NAME.jsonl    first line: whose rows these are; then rows, chunk after chunk, and the
                      seconds that each chunk took

A chunk counts when all of its rows are there. What a kill cut short is measured again, with the
same neighbours in its batches, so that a resume changes no row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kit.errors import RunDirectoryError
from kit.runs.directory import storage_errors, write_text
from kit.runs.records import ItemRow, item_row, read_jsonl


class PartialRows:
    """The rows so far of one stack, on disk after every chunk.

    Args:
        path: the file; it need not be there.
        fingerprint: of everything that the rows depend on; rows of another one are thrown away.
    """

    def __init__(self, path: Path, *, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.rows: dict[tuple[str, str], ItemRow] = {}
        self.seconds = 0.0
        for row in self._read():
            if "seconds" in row:
                self.seconds += row["seconds"]
            else:
                self.keep([item_row(row)])
        if self.rows:  # whole again, without a line that a kill cut short
            write_text(self.path, "".join(map(_line, [self._head(), *self._lines()])))

    def has(self, task: str, items: Sequence[str]) -> bool:
        """Whether all of these items were measured."""
        return all((task, item) in self.rows for item in items)

    def keep(self, rows: Iterable[ItemRow]) -> None:
        """Count rows as measured that stand on disk already."""
        self.rows.update({(row.task, row.item): row for row in rows})

    def add(self, rows: Sequence[ItemRow], *, seconds: float) -> None:
        """Add the rows of one chunk, and make them last."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, _line(self._head()))
        text = "".join(map(_line, [*map(asdict, rows), {"seconds": seconds}]))
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.seconds += seconds
        self.keep(rows)

    def _lines(self) -> list[dict[str, Any]]:
        return [*map(asdict, self.rows.values()), {"seconds": self.seconds}]

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        try:
            head, *rows = read_jsonl(self.path) or [{}]
        except RunDirectoryError:  # a damaged file costs the time to measure again, nothing else
            head, rows = {}, []
        if head != self._head():
            self.path.unlink()
            return []
        return rows

    def _head(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint}


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
