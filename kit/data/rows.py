"""What lies in one local file: text, JSON lines or parquet; every error says where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from kit.errors import DataError

BadUtf8 = Literal["error", "skip"]
Row = tuple[int, dict[str, Any]]
"""Line or row number, counted from 1, and the row."""

_MAGIC = {
    b"PK\x03\x04": "a zip archive (docx and epub are zip archives too)",
    b"%PDF-": "a PDF",
    b"\x1f\x8b": "gzip-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"BZh91AY": "bzip2-compressed",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


def existing_file(source: str) -> Path:
    """The path of a file or folder that exists.

    Raises:
        DataError: it does not; names what lies there with a similar name.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    folder = path.parent
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {str(folder)!r}", where=source, fix="check the path's spelling"
        )
    names = sorted(entry.name for entry in folder.iterdir())
    near = get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:5]
    listed = ", ".join(near) if near else "the folder is empty"
    raise DataError(
        f"there is no {path.name!r} in {str(folder)!r}",
        where=source,
        fix=f"check the spelling; what lies there: {listed}",
    )


def read_text(path: Path, *, bad_utf8: BadUtf8, skipped: Counter[str]) -> str | None:
    """The whole of a text file, or None where it is no UTF-8 and such files are left out.

    Line ends become newlines and a byte order mark is dropped; nothing else is changed.

    Raises:
        DataError: it is binary, or no UTF-8.
    """
    data = path.read_bytes()
    refuse_binary(data, where=str(path))
    text = _decode(data, where=str(path), offset=0, bad_utf8=bad_utf8, skipped=skipped)
    if text is None:
        return None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def refuse_binary(data: bytes, *, where: str) -> None:
    """Raise a DataError where bytes are plainly no UTF-8 text: a known magic, or a zero byte."""
    kind = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
    if kind is None and b"\0" in data:
        kind = f"binary (a zero byte at offset {data.index(0)})"
    if kind is not None:
        raise DataError(
            f"the file is {kind}, no UTF-8 text",
            where=where,
            fix="convert it to UTF-8 text, or leave it out of the sources",
        )


def _decode(
    data: bytes, *, where: str, offset: int, bad_utf8: BadUtf8, skipped: Counter[str]
) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if bad_utf8 == "skip":
            skipped["no UTF-8"] += 1
            return None
        raise DataError(
            f"byte {offset + error.start} (0x{data[error.start]:02x}) is no UTF-8",
            where=where,
            fix="convert the file to UTF-8 (iconv -f latin1 -t utf-8 is often right), "
            "or leave such text out with bad_utf8: skip",
        ) from error


def jsonl_rows(
    path: Path, *, bad_utf8: BadUtf8 = "error", skipped: Counter[str] | None = None
) -> Iterator[Row]:
    """Rows of a JSON-lines file, read line by line; empty lines are passed over.

    Raises:
        DataError: a line is binary, no UTF-8, no JSON, or no JSON object; names file and line.
    """
    counts: Counter[str] = Counter() if skipped is None else skipped
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            refuse_binary(line, where=where)
            text = _decode(line, where=where, offset=offset, bad_utf8=bad_utf8, skipped=counts)
            offset += len(line)
            if text is None:
                continue
            text = text.removeprefix("\ufeff").strip() if number == 1 else text.strip()
            if text:
                yield number, _json_object(text, where=where)


def _json_object(text: str, *, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"the line is no JSON: {error.msg} at column {error.colno}",
            where=where,
            fix="write one JSON object per line, without line breaks inside",
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"the line is a JSON {type(row).__name__}, no object with named fields",
            where=where,
            fix='write one JSON object per line, such as {"text": "..."}',
        )
    return row


def parquet_rows(path: Path, *, columns: list[str]) -> Iterator[Row]:
    """Rows of a parquet file, only the named columns.

    Raises:
        DataError: it cannot be read, or has no such column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for name in columns:
                if name not in file.schema_arrow.names:
                    raise missing_field(name, file.schema_arrow.names, where=str(path))
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"the parquet file cannot be read: {error}",
            where=str(path),
            fix="download or write the file again",
        ) from error


def missing_field(name: str, existing: list[str], *, where: str) -> DataError:
    """The error of a row without a field, which names the fields that it has."""
    near = get_close_matches(name, existing, n=1)
    hint = f"perhaps {near[0]!r}" if near else "name the field that holds it"
    return DataError(
        f"the row has no field {name!r}; it has {', '.join(existing) or 'none'}",
        where=where,
        fix=f"{hint} (text_field, date_field), or leave the source out",
    )


def iso_date(value: object, *, where: str) -> str:
    """An ISO date, or date and time turned to UTC, in the one form that sorts as text.

    Raises:
        DataError: it is none.
    """
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, date):
        return value.isoformat()
    else:
        try:
            if not isinstance(value, str):
                raise ValueError("no text")
            text = value.strip()
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise DataError(
                f"{value!r} is no ISO date",
                where=where,
                fix="write dates as 2026-03-28 or 2026-03-28T12:00:00+00:00",
            ) from error
        if len(text) <= len("2026-03-28"):
            return moment.date().isoformat()
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return moment.isoformat()
