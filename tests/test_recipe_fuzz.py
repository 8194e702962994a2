"""Whatever is written in a recipe or an override: a recipe, or a RecipeError; nothing else."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kit.errors import RecipeError
from kit.recipe.read import find_recipe, read_recipe
from kit.recipe.schema import Recipe

GOOD = "name: a\nmodels: {instruct: m, base: b}\ncorpus: {sources: [x]}\n"
PATIENT = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

pieces = st.sampled_from(
    ["name", "models", "train", "tokens", ": ", ":", "- ", "\n", "  ", "{", "}", "[", "]", "&a ",
     "*a", "!!int ", "|", ">", "#", "'", '"', "1e-4", "0x1F", "1_0", "null", "true", "~", "<<", "?",
     "%YAML 1.1\n", "---\n", "...\n", ".nan", "2025-01-01", "extends", "\t", "\x85", "é", "\u2028"]
)  # fmt: skip
texts = st.one_of(st.text(max_size=60), st.lists(pieces, max_size=14).map("".join))


@PATIENT
@given(text=texts)
@example(text="--- a\n--- b\n")
@example(text="%YAML 9.9\n---\na: b\n")
@example(text="a: *b\n")
@example(text="&a [*a]\n")
@example(text="a: &x {b: *x}\n")
@example(text="? [a]\n: b\n")
@example(text="<<: 3\n")
@example(text="a: !!timestamp x\n")
@example(text="a: !!float x\n")
@example(text="a: !!binary x\n")
@example(text="a: 2025-13-41\n")
@example(text="a: 9999999999999999999999-01-01\n")
@example(text="\x00")
def test_any_file(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    for body in (text, GOOD + text):
        path.write_text(body, encoding="utf-8", newline="")
        try:
            assert isinstance(read_recipe(path).recipe, Recipe)
        except RecipeError as error:
            assert str(error)


@PATIENT
@given(key=st.sampled_from(["train.tokens", "corpus.heldout", "study", "name", "x.y"]), value=texts)
@example(key="study", value="&a [*a]")
def test_any_override(tmp_path, key, value):
    path = tmp_path / "r.yaml"
    path.write_text(GOOD, encoding="utf-8")
    try:
        assert isinstance(read_recipe(path, [f"{key}={value}"]).recipe, Recipe)
    except RecipeError as error:
        assert str(error)


@PATIENT
@given(name=texts)
def test_any_name(name):
    with pytest.raises(RecipeError):
        find_recipe("no such " + name)
