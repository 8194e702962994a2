"""A YAML 1.2 file as plain data that remembers which line every value came from.

    file -> Document -> merge (extends) -> put (overrides) -> Document

A Document is plain data plus one origin per path: `recipes/a.yaml:12`, or `override 'a.b=c'`.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from kit.errors import RecipeError

Keys: TypeAlias = tuple[str | int, ...]
"""The way to a value: `("study", "arms", 0)`."""


@dataclass(frozen=True)
class Document:
    """Plain data with the origin of every value in it."""

    data: dict[str, Any]
    origins: dict[Keys, str]

    def origin(self, keys: Keys) -> str:
        """Where a value, or the nearest value above it, was written."""
        for length in range(len(keys), -1, -1):
            if keys[:length] in self.origins:
                return self.origins[keys[:length]]
        return "recipe"

    def value(self, keys: Keys) -> Any:
        """The value at a path; None where there is none."""
        node: Any = self.data
        for key in keys:
            try:
                node = node[key]
            except (KeyError, IndexError, TypeError):
                return None
        return node


def dotted(keys: Keys) -> str:
    """`study.arms.0`."""
    return ".".join(str(key) for key in keys)


def read_document(path: Path) -> Document:
    """Read one YAML file.

    Raises:
        RecipeError: no such file, no UTF-8, no YAML 1.2, a key twice, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"byte {error.start} of the file is no UTF-8", where=str(path), fix="save it as UTF-8"
        ) from None
    except OSError as error:
        raise RecipeError(
            f"the recipe cannot be read: {error.strerror or error}", where=str(path)
        ) from None
    node = parse_yaml(text, name=str(path))
    if not isinstance(node, CommentedMap):
        raise RecipeError(
            "a recipe is a mapping of sections (name, models, corpus, ...)",
            where=str(path),
            fix="`kit recipes` lists examples to copy",
        )
    origins: dict[Keys, str] = {(): str(path)}
    data = _plain(node, (), origins, str(path))
    return Document(data, origins)


def parse_yaml(text: str, *, name: str) -> Any:
    """Parse YAML 1.2: `1e-4` is a number, `no` is text, and no key may stand twice.

    Raises:
        RecipeError: with the line, counted from 1.
    """
    try:
        return YAML(typ="rt").load(StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = (error.problem or "no YAML").splitlines()[0]
        raise RecipeError(f"no valid YAML: {problem}", where=where, fix=_yaml_hint(text)) from None
    except (YAMLError, ValueError) as error:
        first = (str(error) or "unreadable").splitlines()[0]
        raise RecipeError(f"no valid YAML: {first}", where=name) from None


def dump_yaml(data: dict[str, Any]) -> str:
    """Write plain data as YAML 1.2 that `parse_yaml` reads back."""
    out = StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.width = 4096
    writer.dump(data, out)
    return out.getvalue()


def merge(lower: Document, upper: Document) -> Document:
    """`upper` over `lower`: mappings are merged, everything else (lists too) is replaced."""
    data = plain_copy(lower.data)
    origins = dict(lower.origins)
    _merge_into(data, upper.data, (), origins)
    origins.update(upper.origins)
    return Document(data, origins)


def put(document: Document, keys: Keys, value: Any, *, origin: str) -> Document:
    """Set one value; a missing mapping on the way is made.

    Raises:
        RecipeError: something on the way is no mapping.
    """
    data = plain_copy(document.data)
    origins = {path: text for path, text in document.origins.items() if path[: len(keys)] != keys}
    node = data
    for depth, key in enumerate(keys[:-1], start=1):
        if node.get(str(key)) is None:
            node[str(key)] = {}
            origins[keys[:depth]] = origin
        node = node[str(key)]
        if not isinstance(node, dict):
            kind = "a list, which is replaced as a whole" if isinstance(node, list) else "a value"
            raise RecipeError(
                f"{dotted(keys[:depth])} is {kind}; nothing can be set below it",
                where=origin,
                fix=f"write {dotted(keys[:depth])}=... with the whole of it",
            )
    node[str(keys[-1])] = value
    origins[keys] = origin
    return Document(data, origins)


def leaves(data: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every value that is no mapping, with its path; a list is one value."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from leaves(value, (*keys, key))
    else:
        yield keys, data


def plain_copy(value: Any) -> Any:
    """A copy of nested mappings and lists."""
    if isinstance(value, dict):
        return {key: plain_copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_copy(item) for item in value]
    return value


def plain_value(node: Any) -> Any:
    """A parsed YAML node as plain Python data.

    Raises:
        RecipeError: a mapping key that is no text.
    """
    return _plain(node, (), {}, "override")


def _plain(node: Any, keys: Keys, origins: dict[Keys, str], name: str) -> Any:
    if isinstance(node, CommentedMap):
        return {
            key: _plain(node[key], (*keys, key), origins, name)
            for key in _text_keys(node, keys, origins, name)
        }
    if isinstance(node, CommentedSeq):
        items = []
        for index, item in enumerate(node):
            _note(origins, (*keys, index), name, node.lc.item(index))
            items.append(_plain(item, (*keys, index), origins, name))
        return items
    return _plain_scalar(node)


def _text_keys(
    node: CommentedMap, keys: Keys, origins: dict[Keys, str], name: str
) -> Iterator[str]:
    for key in node:
        try:
            place = node.lc.key(key)
        except (KeyError, TypeError, AttributeError):  # a key that came with a `<<` merge
            place = None
        if not isinstance(key, str):
            line = f":{place[0] + 1}" if place else ""
            raise RecipeError(
                f"the key {key!r} is no text", where=f"{name}{line}", fix="put it in quotes"
            )
        _note(origins, (*keys, key), name, place)
        yield key


def _note(origins: dict[Keys, str], keys: Keys, name: str, place: Any) -> None:
    if place is not None:
        origins[keys] = f"{name}:{place[0] + 1}"


def _plain_scalar(node: Any) -> Any:
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, datetime.datetime):
        return node.isoformat()
    if isinstance(node, datetime.date):
        return node.isoformat()  # the parser makes a date of 2025-01-01; a recipe means the text
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    # round-trip parsing wraps the true and false of anchored scalars
    return bool(node) if type(node).__name__ == "ScalarBoolean" else str(node)


def _merge_into(
    data: dict[str, Any], upper: dict[str, Any], keys: Keys, origins: dict[Keys, str]
) -> None:
    for key, value in upper.items():
        path = (*keys, key)
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            _merge_into(data[key], value, path, origins)
            continue
        for old in [o for o in origins if o[: len(path)] == path]:
            del origins[old]
        data[key] = plain_copy(value)


def _yaml_hint(text: str) -> str | None:
    if "\t" in text:
        return "indent with spaces; YAML forbids tabs"
    return None
