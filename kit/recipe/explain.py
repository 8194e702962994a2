"""Every error of a recipe in one message, in the words of the person who wrote it.

    recipes/a.yaml:12  train.learning_rat: unknown key; did you mean learning_rate?
    override 'train.tokens=many'  train.tokens: 'many' is no number of tokens; write 300_000 or 20M

What is allowed is read from the schema's own types, so the sentences cannot fall behind it.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from kit.errors import RecipeError
from kit.recipe.document import Document, Keys, dotted
from kit.recipe.schema import Recipe
from kit.units import parse_tokens

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def explain(error: ValidationError, document: Document, *, name: str) -> RecipeError:
    """Turn what the schema found into one RecipeError that lists everything.

    Args:
        error: what validation raised.
        document: the data that was validated, with the origin of every value.
        name: the file, for the first line.
    """
    seen: dict[Keys, str] = {}
    for found in error.errors(include_url=False):
        keys, annotation, note = _locate(found["loc"])
        kind = found["type"]
        sentence = _sentence(kind, keys, annotation, note, found, document)
        # each member of a union complains for itself; one line for the value is enough
        seen.setdefault(keys, f"{_where(keys, kind, sentence, document)}  {sentence}")
    lines = list(seen.values())
    count = "1 error" if len(lines) == 1 else f"{len(lines)} errors"
    return RecipeError(
        "\n".join([f"{count} in the recipe {name}", *(f"  {line}" for line in lines)]),
        fix="`kit schema` prints what every key means and takes",
    )


def schema_json() -> str:
    """The JSON schema of a recipe, for editors.

    Save it (`kit schema > recipe.schema.json`) and begin a recipe with

        # yaml-language-server: $schema=recipe.schema.json

    An editor with the YAML language server then completes keys and shows their documentation. A
    file with `extends` inherits what the schema would require, so there nothing is required at the
    top; inside the sections the same rules hold.
    """
    schema = Recipe.model_json_schema()
    required = schema.pop("required")
    schema["properties"]["extends"] = {
        "type": "string",
        "title": "Extends",
        "description": "Another recipe, relative to this file, whose values are the defaults here.",
    }
    schema["anyOf"] = [{"required": ["extends"]}, {"required": required}]
    about = {"$schema": SCHEMA_ID, "title": "lora-kit recipe"}
    return json.dumps({**about, **{k: v for k, v in schema.items() if k not in about}}, indent=2)


def reference_table() -> str:
    """Every section and key as a Markdown table; the README holds it between two markers."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    return "\n".join([*lines, *_reference_rows(Recipe, "")]) + "\n"


def _reference_rows(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        key = f"{prefix}{name}"
        if inner is not None:
            yield f"| **`{key}`** | | {field.description} |"
            path = f"{key}.NAME." if get_origin(field.annotation) is dict else f"{key}."
            yield from _reference_rows(inner, path)
            continue
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        yield f"| `{key}` | {default} | {field.description} |"


def _section_in(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def describe(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a type takes, in words: `a whole number above 0`, `one of nf4, 16bit, 32bit`."""
    metadata = list(metadata)
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return describe(inner, [*metadata, *more])
    if any(isinstance(m, BeforeValidator) and m.func is parse_tokens for m in metadata):
        return "a number of tokens above 0, such as 300_000, 20M or 1.5B tokens"
    if origin in (types.UnionType, typing.Union):
        options = [a for a in get_args(annotation) if a is not type(None)]
        text = ", or ".join(describe(a, metadata) for a in options)
        return f"{text}, or null" if len(options) < len(get_args(annotation)) else text
    if origin is Literal:
        options = [str(a) for a in get_args(annotation)]
        return options[0] if len(options) == 1 else f"one of {', '.join(options)}"
    if origin is list:
        least = "with at least one entry, " if _limit(metadata, "min_length") else ""
        return f"a list, {least}each {describe(get_args(annotation)[0])}"
    if origin is dict:
        return f"a mapping from names to {describe(get_args(annotation)[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section with the keys {', '.join(annotation.model_fields)}"
    return _WORDS.get(annotation, "a value") + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    """` above 0 and below 1`, read from field constraints."""
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}
    found = []
    for limit, word in words.items():
        value = _limit(metadata, limit)
        if value is not None:
            found.append(f"{word} {value:g}")
    pattern = _limit(metadata, "pattern")
    if pattern is not None:
        found.append("of letters, digits, '.', '_' and '-' that begins with a letter or digit")
    return " " + " and ".join(found) if found else ""


def _limit(metadata: list[Any], name: str) -> Any:
    for item in metadata:
        inner = item.metadata if isinstance(item, FieldInfo) else [item]
        for constraint in inner:
            value = getattr(constraint, name, None)
            if value is not None:
                return value
    return None


def _locate(loc: tuple[str | int, ...]) -> tuple[Keys, Any, list[Any]]:
    """Walk the schema along a location; labels of union members are no part of the path.

    Returns:
        The path in the recipe, the type there, and the constraints on it.
    """
    keys: list[str | int] = []
    annotation: Any = Recipe
    metadata: list[Any] = []
    for part in loc:
        annotation, more = _bare(annotation)
        metadata = [*metadata, *more]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys.append(part)
            field = annotation.model_fields.get(str(part))
            if field is None:
                return tuple(keys), annotation, []
            annotation, metadata = field.annotation, list(field.metadata)
        elif get_origin(annotation) in (list, dict):
            keys.append(part)
            annotation, metadata = get_args(annotation)[-1], []
        else:
            break  # a label inside a union: the union as a whole is what the message is about
    return tuple(keys), annotation, metadata


def _bare(annotation: Any) -> tuple[Any, list[Any]]:
    """The type without Annotated and without None."""
    more: list[Any] = []
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *extra = get_args(annotation)
            more += extra
        elif get_origin(annotation) in (types.UnionType, typing.Union):
            options = [a for a in get_args(annotation) if a is not type(None)]
            if len(options) != 1:
                return annotation, more
            annotation = options[0]
        else:
            return annotation, more


def _sentence(
    kind: str, keys: Keys, annotation: Any, metadata: list[Any], found: Any, document: Document
) -> str:
    path = dotted(keys) or "the recipe"
    if kind == "extra_forbidden":
        names = list(annotation.model_fields)
        return f"{path}: unknown key; {_nearest(str(keys[-1]), names)}"
    if kind == "missing":
        return f"{path}: is missing; write {describe(annotation, metadata)}"
    value = _shown(document.value(keys))
    if kind == "value_error":
        own = str(found["ctx"]["error"])
        return f"{path}: {own}" if keys else own
    near = _nearest_choice(document.value(keys), annotation)
    return f"{path}: {value} is not allowed; write {describe(annotation, metadata)}{near}"


def _nearest(name: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"allowed: {', '.join(allowed)}"


def _nearest_choice(value: Any, annotation: Any) -> str:
    annotation, _ = _bare(annotation)
    if get_origin(annotation) is not Literal or not isinstance(value, str):
        return ""
    near = difflib.get_close_matches(value, [str(a) for a in get_args(annotation)], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _where(keys: Keys, kind: str, sentence: str, document: Document) -> str:
    """The origin of a value; for a rule over several keys, the first key that it names."""
    if kind == "value_error" and not keys:
        for named in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", sentence):
            path = tuple(named.split("."))
            if path in document.origins:
                return document.origins[path]
    return document.origin(keys)
