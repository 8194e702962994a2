"""Conversations to tune on: lists of messages with a role and a content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kit.data.rows import existing_file, jsonl_rows
from kit.errors import DataError
from kit.models.chat import Messages

LILLIPUT_CHATS = 1000
"""Chats that Lilliput writes where no limit is set."""


def read_chats(
    sources: Sequence[str], *, limit: int | None = None, seed: int = 0
) -> list[Messages]:
    """Read chats, in order, at most `limit` of them.

    A row of a jsonl file is one of

        {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}
        {"instruction": "...", "input": "...", "output": "..."}     `input` may be missing
        {"instruction": "...", "instances": [{"input": "...", "output": "..."}]}

    Args:
        sources: jsonl files, or `lilliput:chats`.
        limit: the first so many; None takes all.
        seed: of the chats that Lilliput writes.

    Raises:
        DataError: a source or a row cannot be read, or there is no chat.
    """
    listed = [sources] if isinstance(sources, str) else list(sources)
    chats: list[Messages] = []
    for source in listed:
        left = None if limit is None else limit - len(chats)
        if left is not None and left <= 0:
            break
        if source.startswith("lilliput:"):
            chats += _lilliput(source, count=left, seed=seed)
            continue
        for chat in _file_chats(source):
            chats.append(chat)
            if len(chats) == limit:
                break
    if not chats:
        raise DataError(
            "the sources hold no chat",
            where=", ".join(listed) or "no source is named",
            fix="name a jsonl file of messages, or of instruction, input and output",
        )
    return chats


def _lilliput(source: str, *, count: int | None, seed: int) -> list[Messages]:
    from kit.models.lilliput.world import chat_rows

    if source != "lilliput:chats":
        raise DataError(
            f"Lilliput has no {source.removeprefix('lilliput:')!r} to tune on",
            where=source,
            fix="take lilliput:chats",
        )
    return chat_rows(seed, LILLIPUT_CHATS if count is None else count)


def _file_chats(source: str) -> Iterator[Messages]:
    path = existing_file(source)
    if path.suffix.lower() != ".jsonl":
        raise DataError(
            "chats are read from jsonl files alone", where=source, fix="convert it to jsonl"
        )
    for number, row in jsonl_rows(path):
        yield from _row_chats(row, where=f"{source}:{number}")


def _row_chats(row: dict[str, Any], *, where: str) -> list[Messages]:
    if "messages" in row:
        return [_checked(row["messages"], where=where)]
    if "instruction" in row and "instances" in row:
        instances = row["instances"]
        if not isinstance(instances, list) or not all(isinstance(i, dict) for i in instances):
            raise DataError(
                "instances is no list of objects",
                where=where,
                fix='write [{"input": "...", "output": "..."}]',
            )
        return [_instructed(row["instruction"], each, where=where) for each in instances]
    if "instruction" in row and "output" in row:
        return [_instructed(row["instruction"], row, where=where)]
    raise DataError(
        f"the row is no chat; it has the fields {', '.join(row) or 'none'}",
        where=where,
        fix="write messages, or instruction, input and output",
    )


def _instructed(instruction: Any, row: dict[str, Any], *, where: str) -> Messages:
    # The input stands below the instruction, an empty line between, as people write in a chat.
    given = [part for part in (instruction, row.get("input")) if part not in (None, "")]
    if not all(isinstance(part, str) for part in given):
        raise DataError("instruction or input is no text", where=where, fix="write them as text")
    return _checked(
        [
            {"role": "user", "content": "\n\n".join(given)},
            {"role": "assistant", "content": row.get("output")},
        ],
        where=where,
    )


def _checked(messages: Any, *, where: str) -> Messages:
    """Messages with nothing but role and content, in an order that a template can write."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise DataError(
            "messages is no list of objects",
            where=where,
            fix='write [{"role": "user", "content": "..."}, {"role": "assistant", ...}]',
        )
    for place, message in enumerate(messages, start=1):
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise DataError(
                f"message {place} has no content",
                where=where,
                fix="every message needs a role and a text as content",
            )
    roles = [message.get("role") for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = [("user", "assistant")[i % 2] for i in range(len(turns))]
    if turns != expected or not turns or turns[-1] != "assistant":
        raise DataError(
            f"the roles are {', '.join(map(str, roles)) or 'none'}",
            where=where,
            fix="after an optional system message, user and assistant take turns, and the "
            "assistant is last",
        )
    return [{"role": m["role"], "content": m["content"]} for m in messages]
