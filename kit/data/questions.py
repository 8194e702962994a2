"""Questions about the new text, with the answers that are accepted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kit.data.rows import existing_file, jsonl_rows
from kit.errors import DataError

Form = Literal["chat", "plain"]


@dataclass(frozen=True)
class QuestionItem:
    """One question."""

    id: str
    """Unique in its set, the same for every stack."""
    question: str
    """A user's turn, or the beginning of a text that the model continues."""
    answers: tuple[str, ...]
    """Accepted answers."""
    choices: tuple[str, ...] = ()
    """All that could be answered, right and wrong; empty where that is open."""
    form: Form | None = None
    """How it wants to be asked; None where either way will do."""

    @property
    def chance(self) -> float | None:
        """The share that guessing among the choices gets right."""
        return len(self.answers) / len(self.choices) if self.choices else None


def read_questions(sources: Sequence[str]) -> list[QuestionItem]:
    """Read questions, in order.

    A row of a jsonl file is `{"question": "...", "answer": "..."}`; `answer` may be a list of
    accepted texts; `id` and `choices` (a list of texts) may be added.

    Args:
        sources: jsonl files, or `lilliput:GROUP-FORM` with a group of Lilliput's people (`new`,
            `held`, `sft`) and `chat` (questions) or `cloze` (sentences to complete).

    Raises:
        DataError: a source or a row cannot be read, an id comes twice, or there is no question.
    """
    listed = [sources] if isinstance(sources, str) else list(sources)
    items: dict[str, QuestionItem] = {}
    for source in listed:
        read = _lilliput(source) if source.startswith("lilliput:") else _file(source)
        for item in read:
            if item.id in items:
                raise DataError(
                    f"the id {item.id!r} comes twice", where=source, fix="give every row its own id"
                )
            items[item.id] = item
    if not items:
        raise DataError(
            "the sources hold no question",
            where=", ".join(listed) or "no source is named",
            fix="name a jsonl file with question and answer",
        )
    return list(items.values())


def _file(source: str) -> Iterator[QuestionItem]:
    path = existing_file(source)
    if path.suffix.lower() != ".jsonl":
        raise DataError(
            "questions are read from jsonl files alone", where=source, fix="convert it to jsonl"
        )
    for number, row in jsonl_rows(path):
        yield _item(row, where=f"{source}:{number}")


def _item(row: dict[str, Any], *, where: str) -> QuestionItem:
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not question.strip() or "answer" not in row:
        raise DataError(
            f"the row needs question and answer; it has {', '.join(row) or 'no field'}",
            where=where,
            fix='write {"question": "...", "answer": "..."}',
        )
    answers = _texts([answer] if isinstance(answer, str) else answer, "answer", where=where)
    choices = _texts(row["choices"], "choices", where=where) if "choices" in row else ()
    return QuestionItem(
        id=str(row.get("id", where)), question=question, answers=answers, choices=choices
    )


def _texts(value: Any, name: str, *, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(_is_text(text) for text in value):
        raise DataError(
            f"{name} is neither a text nor a list of texts, or one is empty",
            where=where,
            fix='write "answer": "..." or "answer": ["...", "..."]',
        )
    return tuple(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _lilliput(source: str) -> Iterator[QuestionItem]:
    from kit.models.lilliput.people import Group
    from kit.models.lilliput.world import cloze_items, questions

    groups: tuple[Group, ...] = get_args(Group)
    name, _, form = source.removeprefix("lilliput:").partition("-")
    group = next((g for g in groups if g == name), None)
    if group is None or form not in ("chat", "cloze"):
        names = [f"lilliput:{g}-{f}" for g in groups for f in ("chat", "cloze")]
        raise DataError(
            "Lilliput has no such questions", where=source, fix=f"take one of {', '.join(names)}"
        )
    if form == "cloze":
        for c in cloze_items(group):
            yield QuestionItem(c.id, c.prompt, (c.answer,), c.choices, "plain")
    else:
        for q in questions(group):
            yield QuestionItem(q.id, q.question, (q.answer,), q.choices, "chat")
