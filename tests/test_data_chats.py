"""Chats come with roles that a template can write, or are named by file and line."""

from __future__ import annotations

import json

import pytest

from kit.data.chats import read_chats
from kit.errors import DataError


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


def test_three_forms_of_rows(tmp_path):
    system = {"role": "system", "content": "Be short."}
    source = write(
        tmp_path / "a.jsonl",
        {"messages": [system, {"role": "user", "content": "q", "id": 7}, *turns("q", "a")[1:]]},
        {"instruction": "Do.", "input": "this", "output": "done"},
        {"instruction": "Do.", "input": "", "output": "done", "answer": "x"},
        {"instruction": "Do.", "output": "done"},
        {"instruction": "I", "instances": [{"input": "1", "output": "a"}, {"output": "b"}]},
    )
    assert read_chats([source]) == [
        [system, *turns("q", "a")],
        turns("Do.\n\nthis", "done"),
        turns("Do.", "done"),
        turns("Do.", "done"),
        turns("I\n\n1", "a"),
        turns("I", "b"),
    ]


def test_the_limit_takes_the_first_ones(tmp_path):
    one = write(tmp_path / "a.jsonl", *({"messages": turns("q", str(i))} for i in range(3)))
    two = write(tmp_path / "b.jsonl", *({"messages": turns("q", str(i))} for i in range(3, 6)))
    assert [c[1]["content"] for c in read_chats([one, two], limit=4)] == ["0", "1", "2", "3"]
    assert len(read_chats([one, two], limit=3)) == 3
    assert len(read_chats([one, "lilliput:chats"], limit=5)) == 5
    assert len(read_chats([one, two])) == 6


def test_lilliput_writes_chats_by_the_seed():
    one, same, other = (read_chats(["lilliput:chats"], limit=8, seed=s) for s in (1, 1, 2))
    assert one == same != other and len(one) == 8
    assert all(chat[-1]["role"] == "assistant" for chat in one)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a"}, "it has the fields text"),
        ({"messages": "a"}, "no list of objects"),
        ({"messages": ["a"]}, "no list of objects"),
        ({"messages": []}, "the roles are none"),
        ({"messages": turns("q")}, "the roles are user"),
        ({"messages": turns("q", "a", "q")}, "user, assistant, user"),
        ({"messages": turns("q", "a")[::-1]}, "assistant, user"),
        ({"messages": [{"role": "system", "content": "s"}]}, "the roles are system"),
        ({"messages": [{"role": "tool", "content": "s"}, *turns("q", "a")]}, "tool, user"),
        ({"messages": turns("q", " ")}, "message 2 has no content"),
        ({"messages": [{"role": "user"}, *turns("q", "a")[1:]]}, "message 1 has no content"),
        ({"instruction": "i", "output": ""}, "message 2 has no content"),
        ({"instruction": None, "output": "o"}, "message 1 has no content"),
        ({"instruction": 3, "output": "o"}, "is no text"),
        ({"instruction": "i", "instances": "x"}, "no list of objects"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, says):
    source = write(tmp_path / "a.jsonl", {"messages": turns("q", "a")}, row)
    with pytest.raises(DataError) as caught:
        read_chats([source])
    assert says in caught.value.what and caught.value.where == f"{source}:2" and caught.value.fix


def test_bad_sources_are_refused(tmp_path):
    for source, says in [
        (write(tmp_path / "empty.jsonl"), "hold no chat"),
        (write(tmp_path / "a.json", {}), "jsonl files alone"),
        (str(tmp_path / "none.jsonl"), "there is no 'none.jsonl'"),
        ("lilliput:talk", "has no 'talk'"),
    ]:
        with pytest.raises(DataError, match=says):
            read_chats([source])


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("self_instruct_seed_tasks", 175),
        ("oasst1_validation_en.sft", 419),
        ("oasst_fr_top1", 256),
        ("ARC-Easy_train", 2251),
        ("openbookqa_train", 4957),
    ],
)
def test_real_chats(real_data, name, count):
    assert len(read_chats([str(real_data / "instruct" / f"{name}.jsonl")])) == count
