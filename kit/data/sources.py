"""Documents from files, folders, the hub and the worlds that the kit carries.

    notes.txt, notes.md       one document
    rows.jsonl, rows.parquet  one document per row
    folder/                   everything of these kinds in it and below, in order of name
    hub:OWNER/NAME[:SPLIT]    a data set of the Hugging Face hub, split `train` if not said
    lilliput:old|new-train|new-heldout
    pydoc:topics              Python's own help texts, English, on every machine

A document is the unit of everything that follows: it is never joined with another one, and ends
in one end-of-text token.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from kit.data.rows import (
    BadUtf8,
    Row,
    existing_file,
    iso_date,
    jsonl_rows,
    missing_field,
    parquet_rows,
    read_text,
)
from kit.errors import DataError
from kit.units import show_bytes, show_count

TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".parquet")


@dataclass(frozen=True)
class Document:
    """One text of the corpus."""

    id: str
    """Unique in its set: the source as written, and the row in it."""
    text: str
    date: str | None
    """ISO date or date and time (UTC); None where the source has none."""
    source: str
    """The source as written by the caller."""


@dataclass(frozen=True)
class DocumentSet:
    """Documents in order, with what was left out and why."""

    documents: tuple[Document, ...]
    skipped: dict[str, int]
    """Reason to number of files or rows."""

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(len(document.text.encode()) for document in self.documents)

    def lines(self) -> list[str]:
        """What was read, to be printed."""
        dates = [d.date for d in self.documents if d.date is not None]
        span = f", {min(dates)[:10]} to {max(dates)[:10]}" if dates else ", undated"
        read = f"{show_count(len(self.documents))} documents, {show_bytes(self.text_bytes)}{span}"
        return [read, *(f"left out: {count} ({why})" for why, count in self.skipped.items())]


@dataclass(frozen=True)
class _Fields:
    """How rows are read."""

    text: str
    date: str | None
    bad_utf8: BadUtf8


def read_documents(
    sources: Sequence[str],
    *,
    text_field: str = "text",
    date_field: str | None = None,
    from_date: str | None = None,
    bad_utf8: BadUtf8 = "error",
) -> DocumentSet:
    """Read every document of the sources.

    Dated documents come in order of date (of reading within a date), before undated ones, which
    keep the order of reading. Texts of nothing but blanks are left out and counted.

    Args:
        sources: see the module's first lines.
        text_field: the field of a row that holds the text.
        date_field: the field of a row that holds an ISO date; text files have none.
        from_date: documents before this ISO date are left out and counted.
        bad_utf8: `skip` leaves out, and counts, files and rows that are no UTF-8.

    Raises:
        DataError: a source cannot be read, or nothing is left.
    """
    fields = _Fields(text=text_field, date=date_field, bad_utf8=bad_utf8)
    start = None if from_date is None else iso_date(from_date, where="from_date")
    if start is not None and date_field is None:
        raise DataError(
            "from_date is set, but no field with dates is named",
            where=f"from_date {from_date}",
            fix="name the field with date_field, or unset from_date",
        )
    listed = _distinct(sources)
    skipped: Counter[str] = Counter()
    documents = [d for source in listed for d in _read_source(source, fields, skipped)]
    if start is not None:
        documents = _since(documents, start, skipped)
    if not documents:
        reasons = ", ".join(f"{count} left out ({why})" for why, count in skipped.items())
        raise DataError(
            f"the sources hold no document{': ' + reasons if reasons else ''}",
            where=", ".join(listed) or "no source is named",
            fix="check the sources, text_field and from_date",
        )
    documents.sort(key=lambda d: (d.date is None, d.date or ""))
    return DocumentSet(documents=tuple(documents), skipped=dict(skipped))


def _distinct(sources: Sequence[str]) -> list[str]:
    listed = [sources] if isinstance(sources, str) else list(sources)
    repeated = [name for name, count in Counter(listed).items() if count > 1]
    if repeated:
        raise DataError("a source is named twice", where=repeated[0], fix="name it once")
    return listed


def _since(documents: list[Document], start: str, skipped: Counter[str]) -> list[Document]:
    kept = []
    for document in documents:
        if document.date is None:
            raise DataError(
                "from_date is set, but this document has no date",
                where=document.id,
                fix="leave undated sources out, or unset from_date",
            )
        if document.date >= start:
            kept.append(document)
    if len(kept) < len(documents):
        skipped[f"before {start}"] += len(documents) - len(kept)
    return kept


def _read_source(source: str, fields: _Fields, skipped: Counter[str]) -> Iterator[Document]:
    kind, _, rest = source.partition(":")
    if kind == "hub":
        yield from _of_rows(_hub_rows(rest, source, fields), source, fields, skipped)
    elif kind == "lilliput":
        yield from _lilliput(rest, source)
    elif kind == "pydoc":
        yield from _pydoc(rest, source)
    elif (path := existing_file(source)).is_dir():
        for file in _folder_files(path, skipped):
            name = f"{source.rstrip('/')}/{file.relative_to(path).as_posix()}"
            yield from _read_file(file, name, fields, skipped)
    elif path.suffix.lower() in SUFFIXES:
        yield from _read_file(path, source, fields, skipped)
    else:
        raise DataError(
            f"files of the kind {path.suffix or '(none)'!r} are not read",
            where=source,
            fix=f"convert it to one of {', '.join(SUFFIXES)}",
        )


def _folder_files(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        hidden = [name for name in folders if name.startswith(".")]
        folders[:] = sorted(set(folders) - set(hidden))
        if hidden:
            skipped["hidden folder"] += len(hidden)
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                skipped["hidden file"] += 1
            elif suffix not in SUFFIXES:
                skipped[f"file of the kind {suffix or '(none)'}"] += 1
            else:
                yield Path(root, name)


def _read_file(path: Path, name: str, fields: _Fields, skipped: Counter[str]) -> Iterator[Document]:
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        text = read_text(path, bad_utf8=fields.bad_utf8, skipped=skipped)
        if text is not None and text.strip():
            yield Document(id=name, text=text, date=None, source=name)
        elif text is not None:
            skipped["empty text"] += 1
        return
    if suffix == ".jsonl":
        rows = jsonl_rows(path, bad_utf8=fields.bad_utf8, skipped=skipped)
    else:
        columns = [fields.text] + ([fields.date] if fields.date else [])
        rows = parquet_rows(path, columns=columns)
    yield from _of_rows(rows, name, fields, skipped)


def _of_rows(
    rows: Iterator[Row], name: str, fields: _Fields, skipped: Counter[str]
) -> Iterator[Document]:
    for number, row in rows:
        where = f"{name}:{number}"
        for field in (fields.text, fields.date):
            if field is not None and field not in row:
                raise missing_field(field, list(row), where=where)
        text = row[fields.text]
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"field {fields.text!r} holds a {type(text).__name__}, no text",
                where=where,
                fix="name the field that holds the text with text_field",
            )
        if text is None or not text.strip():
            skipped["empty text"] += 1
            continue
        if not _is_unicode(text, where, fields, skipped):
            continue
        day = None if fields.date is None else iso_date(row[fields.date], where=where)
        yield Document(id=where, text=text, date=day, source=name)


def _is_unicode(text: str, where: str, fields: _Fields, skipped: Counter[str]) -> bool:
    """JSON can spell half a surrogate pair, which is no text in any encoding."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if fields.bad_utf8 == "skip":
            skipped["no UTF-8"] += 1
            return False
        raise DataError(
            f"character {error.start} of the text is half a surrogate pair, which is no UTF-8",
            where=where,
            fix="write the row again, or leave such rows out with bad_utf8: skip",
        ) from error
    return True


def _hub_rows(name: str, source: str, fields: _Fields) -> Iterator[Row]:
    repository, _, split = name.partition(":")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise DataError(
            f"{repository!r} is no name of a data set",
            where=source,
            fix="write hub:OWNER/NAME or hub:OWNER/NAME:SPLIT",
        )
    import datasets

    try:
        table: Any = datasets.load_dataset(repository, split=split or "train")
    except (OSError, ValueError, RuntimeError) as error:
        # The library's own errors are of these three families; its message says which it was.
        raise DataError(
            f"the data set cannot be loaded: {error}",
            where=source,
            fix="check the name, the split and the connection; a gated set needs a login",
        ) from error
    wanted = [name for name in (fields.text, fields.date) if name in table.column_names]
    # The other columns may be pictures or sound, which are dear to decode.
    yield from enumerate(table.select_columns(wanted) if wanted else table, start=1)


def _lilliput(part: str, source: str) -> Iterator[Document]:
    from kit.models.lilliput.world import Part, documents

    parts: tuple[Part, ...] = get_args(Part)
    known = next((p for p in parts if p == part), None)
    if known is None:
        raise DataError(
            f"Lilliput has no documents {part!r}",
            where=source,
            fix=f"take one of {', '.join('lilliput:' + p for p in parts)}",
        )
    for document in documents(known):
        yield Document(id=f"lilliput:{document.id}", text=document.text, date=None, source=source)


def _pydoc(part: str, source: str) -> Iterator[Document]:
    if part != "topics":
        raise DataError(f"Python has no help texts {part!r}", where=source, fix="take pydoc:topics")
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(id=f"pydoc:{name}", text=topics[name], date=None, source=source)
