"""Recipes from files: YAML 1.2, extends, overrides, fingerprints."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kit.errors import RecipeError
from kit.recipe.read import find_recipe, fingerprint, list_recipes, read_recipe

SMALL = """\
name: small
models: {instruct: m}
corpus: {sources: [a.txt]}
"""


def write(folder, text, name="recipe.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_the_schemas(tmp_path):
    loaded = read_recipe(write(tmp_path, SMALL))
    assert loaded.recipe.train.seq_len == 1024
    assert loaded.recipe.study.seeds == [0, 1, 2]
    assert loaded.notes == ()


def test_yaml_1_2_numbers_text_and_dates(tmp_path):
    text = (
        "name: no\n"
        "models: {instruct: yes}\n"
        "corpus: {sources: [on, '0'], date_field: off, from_date: 2025-01-01}\n"
        "train: {learning_rate: 1e-4, tokens: 20M, seq_len: 512, weight_decay: 0}\n"
    )
    recipe = read_recipe(write(tmp_path, text)).recipe
    assert recipe.name == "no" and recipe.models.instruct == "yes"
    assert recipe.corpus.sources == ["on", "0"] and recipe.corpus.from_date == "2025-01-01"
    assert recipe.train.learning_rate == 1e-4 and recipe.train.tokens == 20_000_000
    assert isinstance(recipe.train.seq_len, int)


def test_anchors_and_merge_keys(tmp_path):
    text = (
        "name: a\nmodels: &pair {instruct: m, base: b}\ncorpus: {sources: [x]}\n"
        "evaluate:\n  questions:\n    one: &q {sources: [x], max_new_tokens: 7}\n"
        "    two: {<<: *q, form: plain}\n"
    )
    questions = read_recipe(write(tmp_path, text)).recipe.evaluate.questions
    assert questions["two"].max_new_tokens == 7 and questions["two"].form == "plain"


def test_an_anchored_boolean_is_one(tmp_path):
    text = SMALL + "lora: {rslora: &no false}\ntrain: {activation_checkpointing: *no}\n"
    recipe = read_recipe(write(tmp_path, text)).recipe
    assert recipe.lora.rslora is False and recipe.train.activation_checkpointing is False


def test_overrides_in_order(tmp_path):
    path = write(tmp_path, SMALL)
    overrides = [
        "train.learning_rate=1e-3",
        "train.tokens=5_000",
        "train.tokens=1.5M tokens",
        "study.seeds=[4, 5]",
        "models.base=org/name",
        "evaluate.questions.mine={sources: [q.jsonl]}",
        "sft.sources=[c.jsonl]",
        "corpus.from_date=2025-01-01",
    ]
    loaded = read_recipe(path, overrides)
    recipe = loaded.recipe
    assert recipe.train.learning_rate == 1e-3 and recipe.train.tokens == 1_500_000
    assert recipe.study.seeds == [4, 5] and recipe.models.base == "org/name"
    assert recipe.evaluate.questions["mine"].sources == ["q.jsonl"]
    assert recipe.sft is not None and recipe.sft.sources == ["c.jsonl"]
    assert recipe.corpus.from_date == "2025-01-01"
    assert len(loaded.notes) == len(overrides)
    assert "instead of 5000" in loaded.notes[2]


def test_an_override_takes_null_and_empty(tmp_path):
    path = write(tmp_path, SMALL + "sft: {sources: [x]}\nevaluate: {lilliput_rules: 3}\n")
    recipe = read_recipe(path, ["sft=null", "evaluate.lilliput_rules="]).recipe
    assert recipe.sft is None and recipe.evaluate.lilliput_rules is None


def test_an_override_may_hold_an_equals_sign(tmp_path):
    assert read_recipe(write(tmp_path, SMALL), ["models.instruct=a=b"]).recipe.models.instruct == (
        "a=b"
    )


def test_extends_merges_mappings_and_replaces_lists(tmp_path):
    below = SMALL + "train: {tokens: 5M, seq_len: 512}\nstudy: {seeds: [0, 1, 2]}\n"
    write(tmp_path, below, "below.yaml")
    path = write(
        tmp_path, "extends: below.yaml\nname: top\ntrain: {tokens: 6M}\nstudy: {seeds: [9]}\n"
    )
    loaded = read_recipe(path)
    assert loaded.recipe.name == "top" and loaded.recipe.train.tokens == 6_000_000
    assert loaded.recipe.train.seq_len == 512 and loaded.recipe.study.seeds == [9]
    (note,) = loaded.notes
    assert "train.seq_len" in note and "below.yaml" in note
    assert "train.tokens" not in note and "study.seeds" not in note


def test_extends_is_relative_to_the_file(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, SMALL, "below.yaml")
    path = write(tmp_path / "sub", "extends: ../below.yaml\n")
    assert read_recipe(path).recipe.name == "small"


def test_an_error_in_an_inherited_value_names_the_lower_file(tmp_path):
    write(tmp_path, SMALL + "train:\n  seq_len: long\n", "below.yaml")
    with pytest.raises(RecipeError, match=r"below\.yaml:5  train\.seq_len"):
        read_recipe(write(tmp_path, "extends: below.yaml\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: b.yaml\n", "one level is allowed"),
        ("extends: nowhere.yaml\n", "there is no file 'nowhere.yaml'"),
        ("extends: [a]\n", "is no file name"),
        ("name: a\nname: b\n", r"recipe\.yaml:2"),
        ("name: a\n\tmodels: b\n", "forbids tabs"),
        ("name: [a\n", "no valid YAML"),
        ("- a\n", "mapping of sections"),
        ("", "mapping of sections"),
        ("name: a\n1: b\n", "the key 1 is no text"),
        ("name: !!python/object:os.system x\n", "name: a value with a YAML tag"),
        ("name: a\nlora: !!set {a, b}\n", "lora: a value with a YAML tag"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, said):
    write(tmp_path, "extends: c.yaml\n", "b.yaml")
    with pytest.raises(RecipeError, match=said):
        read_recipe(write(tmp_path, text))


def test_a_key_may_not_stand_twice_below_the_top(tmp_path):
    text = SMALL + "train:\n  seq_len: 8\n  seq_len: 9\n"
    with pytest.raises(RecipeError, match=r"duplicate key \"seq_len\"") as caught:
        read_recipe(write(tmp_path, text))
    assert "recipe.yaml:6" in str(caught.value)


def test_no_utf8_is_said(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(RecipeError, match="no UTF-8"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.tokens", r"written a\.b=c"),
        ("=3", r"written a\.b=c"),
        ("train..tokens=3", r"written a\.b=c"),
        ("name.first=x", "is a value"),
        ("corpus.sources.0=x", "replaced as a whole"),
        ("extends=x.yaml", "cannot be overridden"),
        ("study.seeds=[1", "no valid YAML"),
        ("train.tokns=3", r"override 'train\.tokns=3'  train\.tokns: unknown key; did you mean "),
        ("train.tokens=0", "must be above zero"),
        ("trian.tokens=3", "did you mean train"),
    ],
)
def test_overrides_that_cannot_be_meant(tmp_path, override, said):
    with pytest.raises(RecipeError, match=said) as caught:
        read_recipe(write(tmp_path, SMALL), [override])
    assert "override" in str(caught.value)


def test_the_resolved_recipe_reads_back_to_the_same_fingerprint(tmp_path):
    text = SMALL + (
        "lora: {alpha: 1e-5}\ntrain: {learning_rate: 3e-5}\n"
        "evaluate: {questions: {a: {sources: ['no', '2025-01-01', '1e3', 'x: y']}}}\n"
    )
    loaded = read_recipe(write(tmp_path, text))
    again = read_recipe(write(tmp_path, loaded.resolved_yaml, "again.yaml"))
    assert again.recipe == loaded.recipe
    assert again.fingerprint == loaded.fingerprint == fingerprint(loaded.recipe)
    assert len(loaded.fingerprint) == 16 and int(loaded.fingerprint, 16) >= 0


def test_the_fingerprint_is_about_meaning(tmp_path):
    plain = read_recipe(write(tmp_path, SMALL)).fingerprint
    spelled = read_recipe(write(tmp_path, "# words\n" + SMALL + "train: {tokens: 1_000k}\n"))
    assert spelled.fingerprint == plain  # 1M is the default
    assert read_recipe(write(tmp_path, SMALL), ["train.tokens=2M"]).fingerprint != plain


def test_recipes_are_found_by_path_name_and_last_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = write(tmp_path, SMALL, "own.yaml")
    assert find_recipe("own.yaml").resolve() == own
    assert find_recipe("quickstart").name == "quickstart.yaml"
    assert find_recipe("residual/llama-3.2-1b-t4").name == "llama-3.2-1b-t4.yaml"
    assert find_recipe("llama-3.2-1b-t4") == find_recipe("residual/llama-3.2-1b-t4.yaml")
    with pytest.raises(RecipeError, match="did you mean quickstart"):
        find_recipe("quikstart")


def test_cards_say_what_a_recipe_needs():
    cards = list_recipes()
    assert [card.name for card in cards] == sorted(card.name for card in cards)
    for card in cards:
        assert card.title and card.needs, card.name


def test_reading_a_recipe_loads_nothing_heavy():
    code = (
        "import sys, kit.recipe.read as r; r.read_recipe(r.find_recipe('quickstart'));"
        "print([m for m in ('torch', 'transformers', 'datasets', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
