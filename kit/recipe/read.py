"""From a file and overrides to a Recipe: YAML 1.2 -> `extends` -> `a.b=c` -> strict sections.

Paths inside a recipe (corpora, checkpoints) mean what they mean when typed at the prompt: they are
relative to the working directory. Only `extends` is relative to the file that says it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kit.errors import RecipeError
from kit.recipe.document import (
    Document,
    dotted,
    dump_yaml,
    leaves,
    merge,
    parse_yaml,
    plain_value,
    put,
    read_document,
)
from kit.recipe.explain import explain
from kit.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A recipe, resolved: every value is set, and every decision has a note."""

    recipe: Recipe
    fingerprint: str
    """First 16 hex digits of the SHA-256 of the resolved recipe as canonical JSON."""
    resolved_yaml: str
    """The whole recipe with every default written out; it reads back to the same fingerprint."""
    path: Path
    notes: tuple[str, ...]
    """What was inherited and what was overridden, one sentence each."""


@dataclass(frozen=True, kw_only=True)
class RecipeCard:
    """What `kit recipes` shows of a shipped recipe."""

    name: str
    """What `kit run NAME` takes: the path below the recipes' folder, without `.yaml`."""
    path: Path
    title: str
    """The first line of the file's header."""
    needs: str
    """The header's line `Needs:`."""


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe file, apply overrides in order, and check everything at once.

    Args:
        path: the YAML file; see `find_recipe` for names of shipped recipes.
        overrides: `a.b=c` each, c in YAML: `train.tokens=20M`, `study.seeds=[0, 1]`.

    Raises:
        RecipeError: one message that lists every error with its file and line.
    """
    path = Path(path)
    own = read_document(path)
    document, notes = _extended(own, path)
    return _resolved(document, notes, path=path, overrides=overrides)


def recipe_of(data: dict[str, Any], overrides: Sequence[str] = ()) -> LoadedRecipe:
    """A recipe from plain data, as `read_recipe` reads one from a file.

    Raises:
        RecipeError: one message that lists every error.
    """
    return _resolved(Document(data, {}), [], path=Path("the command line"), overrides=overrides)


def with_overrides(loaded: LoadedRecipe, overrides: Sequence[str]) -> LoadedRecipe:
    """The same recipe with further changes.

    Raises:
        RecipeError: one message that lists every error.
    """
    data = loaded.recipe.model_dump(mode="json")
    return _resolved(Document(data, {}), list(loaded.notes), path=loaded.path, overrides=overrides)


def _resolved(
    document: Document, notes: list[str], *, path: Path, overrides: Sequence[str]
) -> LoadedRecipe:
    for override in overrides:
        document, note = _overridden(document, override)
        notes.append(note)
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        raise explain(error, document, name=str(path)) from None
    return LoadedRecipe(
        recipe=recipe,
        fingerprint=fingerprint(recipe),
        resolved_yaml=dump_yaml(recipe.model_dump(mode="json")),
        path=path,
        notes=tuple(notes),
    )


def fingerprint(recipe: Recipe) -> str:
    """First 16 hex digits of the SHA-256 of the recipe as canonical JSON."""
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def recipes_folder() -> Path:
    """Where the shipped recipes are: inside the installed package, or in the repository."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def list_recipes() -> list[RecipeCard]:
    """Every shipped recipe, in order of name; files that begin with `_` are parts of others."""
    folder = recipes_folder()
    files = sorted(p for p in folder.rglob("*.yaml") if not p.name.startswith("_"))
    return [_card(path, folder) for path in files]


def find_recipe(name_or_path: str | Path) -> Path:
    """The file that is meant: a path, or the name of a shipped recipe.

    A file of that path comes first. `quickstart`, `residual/llama-3.2-1b-t4` and, where only one
    recipe ends so, `llama-3.2-1b-t4` name shipped ones.

    Raises:
        RecipeError: there is no such file or recipe, or several recipes end so.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    cards = list_recipes()
    wanted = str(name_or_path).removesuffix(".yaml")
    for card in cards:
        if card.name == wanted:
            return card.path
    ending = [card for card in cards if card.path.stem == wanted]
    if len(ending) == 1:
        return ending[0].path
    if ending:
        names = ", ".join(card.name for card in ending)
        raise RecipeError(f"{wanted!r} names several recipes: {names}", fix="write one of them")
    names_all = [card.name for card in cards] + [card.path.stem for card in cards]
    near = difflib.get_close_matches(wanted, names_all, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise RecipeError(
        f"there is no file and no shipped recipe {str(name_or_path)!r}",
        where=f"looked in {Path.cwd()} and among the shipped recipes",
        fix=f"{hint}`kit recipes` lists the shipped ones",
    )


def _extended(own: Document, path: Path) -> tuple[Document, list[str]]:
    """Lay a file over the one that it extends; one level, so that two files tell everything."""
    if "extends" not in own.data:
        return own, []
    target = own.data["extends"]
    where = own.origin(("extends",))
    own = Document({k: v for k, v in own.data.items() if k != "extends"}, own.origins)
    if not isinstance(target, str):
        raise RecipeError(f"extends: {target!r} is no file name", where=where)
    lower_path = path.parent / target
    if not lower_path.is_file():
        raise RecipeError(
            f"extends: there is no file {target!r}",
            where=where,
            fix=f"the name is relative to the recipe's own folder, {path.parent}",
        )
    lower = read_document(lower_path)
    if "extends" in lower.data:
        raise RecipeError(
            f"{target} extends {lower.data['extends']!r} itself; one level is allowed",
            where=f"{where} -> {lower.origin(('extends',))}",
            fix=f"copy what you need of {lower.data['extends']!r} into {target}",
        )
    document = merge(lower, own)
    prefix = str(lower_path)
    paths = [keys for keys, _ in leaves(document.data)]
    inherited = [dotted(keys) for keys in paths if _from(document, keys, prefix)]
    if not inherited:
        return document, [f"nothing of {prefix} is left: everything in it is written again"]
    return document, [f"inherited from {prefix}: {', '.join(inherited)}"]


def _from(document: Document, keys: tuple[str | int, ...], prefix: str) -> bool:
    return document.origin(keys).rpartition(":")[0] == prefix


def _overridden(document: Document, override: str) -> tuple[Document, str]:
    """Apply one `a.b=c`; the value is YAML, so numbers, lists and null are what they look like."""
    origin = f"override {override!r}"
    name, sign, text = override.partition("=")
    parts = tuple(name.strip().split("."))
    if not sign or not all(parts):
        raise RecipeError(
            "an override is written a.b=c", where=origin, fix="for example train.tokens=20M"
        )
    if parts[0] == "extends":
        raise RecipeError("extends cannot be overridden", where=origin, fix="write it in the file")
    value: Any = plain_value(parse_yaml(text, name=origin), name=origin) if text.strip() else None
    before = document.value(parts)
    changed = put(document, parts, value, origin=origin)
    old = "the default" if before is None else repr(before)
    return changed, f"{dotted(parts)} = {value!r} on the command line, instead of {old}"


def _card(path: Path, folder: Path) -> RecipeCard:
    header = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line.lstrip("#").strip())
    said = [line for line in header if line.startswith("Needs:")]
    needs = said[0].removeprefix("Needs:").strip() if said else ""
    name = path.relative_to(folder).with_suffix("").as_posix()
    return RecipeCard(name=name, path=path, title=header[0] if header else name, needs=needs)
