"""Questions with their accepted answers, from files and from Lilliput."""

from __future__ import annotations

import json

import pytest

from kit.data.questions import QuestionItem, read_questions
from kit.errors import DataError


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rows_of_a_file(tmp_path):
    source = write(
        tmp_path / "q.jsonl",
        {"question": "Where?", "answer": "here"},
        {"question": "When?", "answer": ["now", "today"], "id": "w", "choices": ["now", "x", "y"]},
    )
    first, second = read_questions([source])
    assert first == QuestionItem(f"{source}:1", "Where?", ("here",)) and first.chance is None
    assert second.id == "w" and second.answers == ("now", "today")
    assert second.choices == ("now", "x", "y")


@pytest.mark.parametrize("form", ["chat", "cloze"])
@pytest.mark.parametrize("group", ["new", "held", "sft"])
def test_lilliput(group, form):
    items = read_questions([f"lilliput:{group}-{form}"])
    assert len({item.id for item in items}) == len(items) > 100
    assert {item.form for item in items} == {"chat" if form == "chat" else "plain"}
    assert all(item.answers[0] in item.choices for item in items)
    assert items[0].chance == pytest.approx(1 / len(items[0].choices))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "q"}, "needs question and answer; it has question"),
        ({"question": " ", "answer": "a"}, "needs question and answer"),
        ({"question": "q", "answer": ""}, "answer is neither"),
        ({"question": "q", "answer": []}, "answer is neither"),
        ({"question": "q", "answer": 3}, "answer is neither"),
        ({"question": "q", "answer": ["a", None]}, "answer is neither"),
        ({"question": "q", "answer": "a", "choices": "ab"}, "choices is neither"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, says):
    source = write(tmp_path / "q.jsonl", {"question": "q", "answer": "a"}, row)
    with pytest.raises(DataError) as caught:
        read_questions([source])
    assert says in caught.value.what and caught.value.where == f"{source}:2" and caught.value.fix


def test_bad_sources_are_refused(tmp_path):
    row = {"question": "q", "answer": "a", "id": "same"}
    for source, says in [
        (write(tmp_path / "empty.jsonl"), "hold no question"),
        (write(tmp_path / "twice.jsonl", row, row), "comes twice"),
        (write(tmp_path / "q.csv"), "jsonl files alone"),
        ("lilliput:new", "lilliput:new-chat"),
        ("lilliput:old-chat", "no such questions"),
    ]:
        with pytest.raises(DataError, match=says):
            read_questions([source])
