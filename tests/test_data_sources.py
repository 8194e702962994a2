"""Documents come whole and in order; what cannot be read is named by file and place."""

from __future__ import annotations

import datetime
import gzip
import json
import subprocess
import sys

import pytest

from kit.data.sources import Document, read_documents
from kit.errors import DataError


def jsonl(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def parquet(path, columns) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def texts(read) -> list[str]:
    return [document.text for document in read.documents]


def refused(*sources: str, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        read_documents(list(sources), **options)
    assert caught.value.where and caught.value.fix
    return caught.value


def test_a_text_file_is_one_document(tmp_path):
    path = tmp_path / "note.md"
    path.write_bytes(b"\xef\xbb\xbf# Title\r\n\r\nTwo\rlines \xc3\xa9\n")
    read = read_documents([str(path)])
    assert read.documents == (
        Document(id=str(path), text="# Title\n\nTwo\nlines \u00e9\n", date=None, source=str(path)),
    )
    assert read.text_bytes == len("# Title\n\nTwo\nlines \u00e9\n".encode())


def test_rows_keep_their_line_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two\\n"}')
    read = read_documents([str(path)])
    assert [(d.id, d.text) for d in read.documents] == [
        (f"{path}:1", "one"),
        (f"{path}:3", "two\n"),
    ]


def test_empty_texts_are_left_out_and_counted(tmp_path):
    rows = [{"text": "one"}, {"text": " \n"}, {"text": None}, {"text": ""}]
    (tmp_path / "empty.txt").write_text("")
    read = read_documents([jsonl(tmp_path / "a.jsonl", rows), str(tmp_path / "empty.txt")])
    assert texts(read) == ["one"] and read.skipped == {"empty text": 4}
    assert read.lines() == ["1 documents, 3 B, undated", "left out: 4 (empty text)"]


def test_parquet_is_read_like_json_lines(tmp_path):
    days = [datetime.date(2026, 1, 2), datetime.date(2026, 1, 1)]
    path = parquet(tmp_path / "a.parquet", {"body": ["one", "two"], "day": days, "n": [1, 2]})
    read = read_documents([path], text_field="body", date_field="day")
    assert [(d.id, d.text, d.date) for d in read.documents] == [
        (f"{path}:2", "two", "2026-01-01"),
        (f"{path}:1", "one", "2026-01-02"),
    ]


def test_a_folder_is_read_in_order_of_name(tmp_path):
    for name in ("b/z.txt", "b/a.md", "a.txt", "c.TXT"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    jsonl(tmp_path / "b" / "rows.jsonl", [{"text": "row"}])
    (tmp_path / "b" / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden.txt").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("x")
    read = read_documents([str(tmp_path)])
    assert texts(read) == ["a.txt", "c.TXT", "b/a.md", "row", "b/z.txt"]
    assert read.documents[3].id == f"{tmp_path}/b/rows.jsonl:1"
    assert read.skipped == {"hidden folder": 1, "hidden file": 1, "file of the kind .png": 1}


def test_dates_order_the_documents_and_reading_breaks_ties(tmp_path):
    rows = [
        {"text": "c", "date": "2026-02-01"},
        {"text": "b2", "date": "2026-01-01T23:00:00-02:00"},  # 01:00 on the 2nd, UTC
        {"text": "a1", "date": "2026-01-01"},
        {"text": "a2", "date": "2026-01-01"},
        {"text": "b1", "date": "2026-01-02T00:30:00Z"},
    ]
    (tmp_path / "undated.txt").write_text("undated")
    sources = [str(tmp_path / "undated.txt"), jsonl(tmp_path / "a.jsonl", rows)]
    read = read_documents(sources, date_field="date")
    assert texts(read) == ["a1", "a2", "b1", "b2", "c", "undated"]
    assert read.documents[3].date == "2026-01-02T01:00:00"
    late = read_documents(sources[1:], date_field="date", from_date="2026-01-02")
    assert texts(late) == ["b1", "b2", "c"] and late.skipped == {"before 2026-01-02": 2}
    assert "2026-01-02 to 2026-02-01" in late.lines()[0]
    assert texts(read_documents(sources[1:], date_field="date", from_date="2026-02-01")) == ["c"]


def test_python_and_lilliput_bring_their_own_texts():
    topics = read_documents(["pydoc:topics"]).documents
    assert len(topics) > 50 and [d.id for d in topics] == sorted(d.id for d in topics)
    assert all(d.id.startswith("pydoc:") for d in topics)
    new = read_documents(["lilliput:new-train", "lilliput:new-heldout"]).documents
    assert {d.source for d in new} == {"lilliput:new-train", "lilliput:new-heldout"}
    assert len({d.id for d in new}) == len(new) > 100


def test_a_missing_file_is_answered_with_its_neighbours(tmp_path):
    (tmp_path / "corpus.jsonl").write_text("")
    (tmp_path / "other.txt").write_text("")
    error = refused(str(tmp_path / "corpsu.jsonl"))
    assert "corpus.jsonl" in error.fix and "other.txt" not in error.fix
    assert "no folder" in refused(str(tmp_path / "nowhere" / "a.txt")).what


def test_an_empty_corpus_says_what_was_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    assert "1 left out (file of the kind .csv)" in refused(str(tmp_path)).what
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "date": "2020-01-01"}])
    error = refused(path, date_field="date", from_date="2021-01-01")
    assert "1 left out (before 2021-01-01)" in error.what
    with pytest.raises(DataError, match="no source is named"):
        read_documents([])


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"text \0 and more", "zero byte at offset 5"),
        ("a.txt", "UTF-16".encode("utf-16"), "UTF-16"),
        ("a.md", b"PK\x03\x04rest", "zip archive"),
        ("a.txt", b"%PDF-1.7", "a PDF"),
        ("a.jsonl", gzip.compress(b"{}"), "gzip-compressed"),
    ],
)
def test_binary_files_are_refused(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    error = refused(str(tmp_path / name))
    assert says in error.what and name in error.where


def test_bad_utf8_is_named_by_byte_or_left_out(tmp_path):
    (tmp_path / "bad.txt").write_bytes("abc\u00e9".encode("latin-1"))
    lines = b'{"text": "one"}\n{"text": "\xff"}\n{"text": "two"}\n{"text": "\\ud800"}\n'
    (tmp_path / "rows.jsonl").write_bytes(lines)
    error = refused(str(tmp_path / "bad.txt"))
    assert "byte 3 (0xe9)" in error.what and "bad.txt" in error.where
    error = refused(str(tmp_path / "rows.jsonl"))
    assert f"byte {lines.index(0xFF)} (0xff)" in error.what and error.where.endswith(":2")
    read = read_documents([str(tmp_path)], bad_utf8="skip")
    assert texts(read) == ["one", "two"] and read.skipped == {"no UTF-8": 3}
    half = jsonl(tmp_path / "half.jsonl", [{"text": "ab\ud800"}])
    assert "character 2" in refused(half).what


def test_a_missing_field_is_answered_with_those_that_exist(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"content": "b", "txt": "c"}])
    error = refused(path)
    assert "it has content, txt" in error.what and error.where == f"{path}:2"
    assert "'txt'" in error.fix
    assert "no field 'date'" in refused(path, date_field="date").what
    table = parquet(tmp_path / "a.parquet", {"body": ["one"]})
    assert "it has body" in refused(table).what


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a"', "no JSON"),
        ('["a"]', "JSON list"),
        ('{"text": 3}', "holds a int"),
        ('{"text": ["a"]}', "holds a list"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, says):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    error = refused(str(tmp_path / "a.jsonl"))
    assert says in error.what and error.where == f"{tmp_path / 'a.jsonl'}:2"


@pytest.mark.parametrize("day", ["yesterday", "", None, 2026, "2026-13-01"])
def test_bad_dates_are_named(tmp_path, day):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "date": day}])
    error = refused(path, date_field="date")
    assert "no ISO date" in error.what and error.where == f"{path}:1"


def test_other_refusals(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "date": "2026-01-01"}])
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    assert "'.csv'" in refused(str(tmp_path / "a.csv")).what
    assert "cannot be read" in refused(str(tmp_path / "a.parquet")).what
    assert "named twice" in refused(path, path).what
    assert "no field with dates" in refused(path, from_date="2026-01-01").what
    assert "no ISO date" in refused(path, date_field="date", from_date="soon").what
    undated = [path, str(tmp_path / "a.txt")]
    assert "no date" in refused(*undated, date_field="date", from_date="2026-01-01").what
    assert "lilliput:new-train" in refused("lilliput:new").fix
    assert "pydoc:topics" in refused("pydoc:modules").fix
    assert "no name of a data set" in refused("hub:squad").what


def test_a_data_set_that_is_not_there_is_a_data_error():
    """Offline (conftest sets it): the library's own error becomes one with a way out."""
    assert "cannot be loaded" in refused("hub:nobody-here/no-such-set").what


def test_a_data_set_is_read_through_the_hubs_library(tmp_path, monkeypatch):
    """A folder OWNER/NAME below the working directory stands for the hub, as datasets allows."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    for split, day in (("train", "2026-01-02"), ("test", "2026-01-03")):
        rows = [{"body": f"{split} {i}", "day": day, "n": i} for i in range(2)]
        jsonl(tmp_path / "owner" / "name" / f"{split}.jsonl", rows)
    read = read_documents(["hub:owner/name"], text_field="body")
    assert [(d.id, d.text) for d in read.documents] == [
        ("hub:owner/name:1", "train 0"),
        ("hub:owner/name:2", "train 1"),
    ]
    both = ["hub:owner/name:test", "hub:owner/name:train[:1]"]
    dated = read_documents(both, text_field="body", date_field="day")
    assert texts(dated) == ["train 0", "test 0", "test 1"]
    assert "it has " in refused("hub:owner/name").what
    assert "cannot be loaded" in refused("hub:owner/name:valid").what


def test_reading_needs_neither_torch_nor_datasets():
    rooms = "sources, splits, rows, tokens, packing, ledger, store, budget, chats, questions"
    code = f"import sys\nfrom kit.data import {rooms}\n"
    code += "bad = {'torch', 'transformers', 'datasets', 'pyarrow', 'peft'} & set(sys.modules)\n"
    code += "from kit.data.sources import read_documents\nread_documents(['lilliput:new-train'])\n"
    code += "bad |= {'torch', 'datasets'} & set(sys.modules)\nsys.exit(str(bad) if bad else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "count"), [("rust_blog", 745), ("wikipedia_current_events", 1896)]
)
def test_real_corpora(real_data, name, count):
    read = read_documents([str(real_data / "text" / f"{name}.jsonl")], date_field="date")
    assert len(read.documents) + read.skipped.get("empty text", 0) == count
    days = [d.date for d in read.documents]
    assert days == sorted(days)
