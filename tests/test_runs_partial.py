"""Rows of a measurement under way survive a kill, and only whole lines count."""

from __future__ import annotations

from kit.runs.partial import PartialRows
from kit.runs.records import ItemRow


def row(item: str, task: str = "t") -> ItemRow:
    return ItemRow(
        task=task, item=item, status="correct", scores={"acc": (1.0, 1.0)}, prompt_hash="0" * 16
    )


def test_rows_are_there_again_with_the_time_that_they_took(tmp_path):
    path = tmp_path / "partial" / "measure-a.jsonl"
    rows = PartialRows(path, fingerprint="f")
    assert not path.exists() and not rows.has("t", ["1"])
    rows.add([row("1"), row("2")], seconds=2.5)
    rows.add([row("1", "u")], seconds=1.0)
    again = PartialRows(path, fingerprint="f")
    assert again.rows == rows.rows and list(again.rows) == [("t", "1"), ("t", "2"), ("u", "1")]
    assert again.seconds == 3.5
    assert again.has("t", ["1", "2"]) and not again.has("t", ["1", "3"])


def test_a_line_that_a_kill_cut_short_is_dropped_and_what_follows_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    PartialRows(path, fingerprint="f").add([row("1"), row("2")], seconds=1.0)
    text = path.read_text()
    path.write_text(text[: text.index('"item": "2"')])
    rows = PartialRows(path, fingerprint="f")
    assert list(rows.rows) == [("t", "1")] and not rows.has("t", ["1", "2"])
    rows.add([row("1"), row("2")], seconds=1.0)
    assert list(PartialRows(path, fingerprint="f").rows) == [("t", "1"), ("t", "2")]


def test_rows_of_something_else_or_damaged_ones_are_thrown_away(tmp_path):
    path = tmp_path / "rows.jsonl"
    PartialRows(path, fingerprint="f").add([row("1")], seconds=1.0)
    assert not PartialRows(path, fingerprint="g").rows
    assert not path.exists()
    path.write_text('{"fingerprint": "f"}\n{"task": broken\n{"task": "t"}\n')
    assert not PartialRows(path, fingerprint="f").rows
    path.write_text("")
    assert not PartialRows(path, fingerprint="f").rows
