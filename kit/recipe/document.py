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
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

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
    data = _Plain(str(path), origins).of(node, ())
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
    except Exception as error:
        # the parser's constructors raise whatever they stumble over when a tag does not fit
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise RecipeError(
            f"no valid YAML: {first}", where=name, fix="write plain values, without YAML tags"
        ) from None


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


def plain_value(node: Any, *, name: str) -> Any:
    """A parsed YAML node as plain Python data.

    Raises:
        RecipeError: a key that is no text, a tagged value, or a value that holds itself.
    """
    return _Plain(name, {}).of(node, ())


class _Plain:
    """Turns parsed nodes into plain data and notes the line of each value."""

    def __init__(self, name: str, origins: dict[Keys, str]) -> None:
        self.name, self.origins = name, origins
        self._open: list[int] = []

    def of(self, node: Any, keys: Keys) -> Any:
        """The plain value of a node."""
        if not isinstance(node, CommentedMap | CommentedSeq):
            return self._scalar(node, keys)
        if id(node) in self._open:
            raise RecipeError(f"{dotted(keys)}: an alias to what it stands in", where=self.name)
        self._open.append(id(node))
        try:
            return (
                self._mapping(node, keys)
                if isinstance(node, CommentedMap)
                else [
                    self._noted(item, (*keys, index), node.lc.item(index))
                    for index, item in enumerate(node)
                ]
            )
        finally:
            self._open.pop()

    def _mapping(self, node: CommentedMap, keys: Keys) -> dict[str, Any]:
        found = {}
        for key, value in node.items():
            try:
                place = node.lc.key(key)
            except (KeyError, TypeError, AttributeError):  # a key that came with a `<<` merge
                place = None
            if not isinstance(key, str):
                line = f":{place[0] + 1}" if place else ""
                raise RecipeError(
                    f"the key {key!r} is no text",
                    where=f"{self.name}{line}",
                    fix="put it in quotes",
                )
            found[str(key)] = self._noted(value, (*keys, str(key)), place)
        return found

    def _noted(self, node: Any, keys: Keys, place: Any) -> Any:
        if place is not None:
            self.origins[keys] = f"{self.name}:{place[0] + 1}"
        return self.of(node, keys)

    def _scalar(self, node: Any, keys: Keys) -> Any:
        if isinstance(node, ScalarBoolean):  # an anchored true or false; it is an int, not a bool
            return bool(node)
        if isinstance(node, bool) or node is None:
            return node
        if isinstance(node, datetime.date):
            return node.isoformat()  # the parser makes a date of 2025-01-01; the text is meant
        for kind in (int, float, str):
            if isinstance(node, kind):
                return kind(node)
        raise RecipeError(
            f"{dotted(keys)}: a value with a YAML tag (!...) cannot be read",
            where=self.name,
            fix="write plain numbers, text, lists and mappings",
        )


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
