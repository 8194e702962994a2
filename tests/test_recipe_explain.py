"""The errors of a recipe, in one message and in plain words; and the schema for editors."""

from __future__ import annotations

import json

import pytest

from kit.errors import RecipeError
from kit.recipe.explain import describe, schema_json
from kit.recipe.read import list_recipes, read_recipe
from kit.recipe.schema import Recipe

TOP = "name: a\nmodels: {instruct: m, base: b}\ncorpus: {sources: [x]}\n"  # three lines

CASES = {
    "unknown key": ("lora:\n  rnak: 8", "r.yaml:5  lora.rnak: unknown key; did you mean rank?"),
    "unknown section": ("trian: {}", "r.yaml:4  trian: unknown key; did you mean train?"),
    "nothing near": ("lora: {zzz: 1}", "lora.zzz: unknown key; allowed: rank, alpha, rslora"),
    "text for number": ("lora: {rank: many}", "lora.rank: 'many' is not allowed; write a whole n"),
    "float for int": ("lora: {rank: 8.5}", "lora.rank: 8.5 is not allowed; write a whole number"),
    "number as text": ("lora: {rank: '8'}", "lora.rank: '8' is not allowed"),
    "bool for int": ("lora: {rank: true}", "lora.rank: true is not allowed"),
    "text for bool": ("lora: {rslora: no}", "lora.rslora: 'no' is not allowed; write true or fals"),
    "too small": ("lora: {rank: 0}", "lora.rank: 0 is not allowed; write a whole number above 0"),
    "share": (
        "lora: {dropout: 1.0}",
        "lora.dropout: 1.0 is not allowed; write a number from 0 and",
    ),
    "infinite": ("train: {learning_rate: .inf}", "train.learning_rate: inf is not allowed"),
    "null": ("lora: {rank: null}", "lora.rank: null is not allowed"),
    "tokens": ("train: {tokens: lots}", "train.tokens: 'lots' is no number of tokens; write 300_0"),
    "tokens float": ("train: {tokens: 1e6}", "train.tokens: 1000000.0 is no number of tokens"),
    "union": ("lora: {target_modules: all}", "write a list, each text, or all-linear"),
    "inside a union": ("lora: {target_modules: [1]}", "lora.target_modules: [1] is not allowed"),
    "list for text": ("general: {sources: x}", "general.sources: 'x' is not allowed; write a list"),
    "empty list": ("general: {sources: []}", "write a list, with at least one entry, each text"),
    "section": (
        "train: fast",
        "train: 'fast' is not allowed; write a section with the keys tokens",
    ),
    "choice": ("train: {schedule: cosin}", "write one of cosine, linear, constant; did you mean c"),
    "arm": (
        "study:\n  arms:\n    - instruct\n    - residul",
        "r.yaml:7  study.arms.1: 'residul' is not allowed; write one of instruct, base, ",
    ),
    "arm, nearest": ("study: {arms: [instruct, residul]}", "did you mean residual?"),
    "missing": ("sft: {epochs: 2}", "r.yaml:4  sft.sources: is missing; write a list, with at"),
    "in a mapping": (
        "evaluate:\n  questions:\n    mine:\n      form: Chat\n      sources: [x]",
        "r.yaml:7  evaluate.questions.mine.form: 'Chat' is not allowed; write one of chat, plain",
    ),
    "a section's rule": (
        "study: {arms: [cpt-instruct]}",
        "study: control is 'instruct', which is not among the arms",
    ),
    "the recipe's rule": (
        "train:\n  tokens_per_step: 100",
        "r.yaml  train.tokens_per_step is less than one forward pass (seq_len x micro_batch_size",
    ),
    "twice": ("study: {seeds: [1, 1]}", "study: seeds names something twice: [1, 1]"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_error(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    body, said = CASES[name]
    (tmp_path / "r.yaml").write_text(TOP + body + "\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_recipe("r.yaml")
    message = str(caught.value)
    if name == "the recipe's rule":
        said = said.replace("r.yaml  ", "r.yaml:5  ")
    assert said in message
    assert message.startswith("1 error in the recipe r.yaml\n")
    assert caught.value.exit_code == 2
    for jargon in ("pydantic", "https://", "input_value", "type=", "str]", "validation"):
        assert jargon not in message


def test_all_errors_at_once_each_with_its_origin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "low.yaml").write_text(TOP + "lora:\n  alpha: -1\n", encoding="utf-8")
    (tmp_path / "r.yaml").write_text(
        "extends: low.yaml\nlora:\n  rank: x\nstudy:\n  seeds: 3\n", encoding="utf-8"
    )
    with pytest.raises(RecipeError) as caught:
        read_recipe("r.yaml", ["train.warmup_share=2", "train.sq_len=2"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 errors in the recipe r.yaml"
    starts = [line.split(":  ")[0].strip().split(": ")[0] for line in lines[1:6]]
    assert starts == [
        "r.yaml:3  lora.rank",
        "low.yaml:5  lora.alpha",
        "override 'train.warmup_share=2'  train.warmup_share",
        "override 'train.sq_len=2'  train.sq_len",
        "r.yaml:5  study.seeds",
    ]


def test_base_is_needed_by_its_arms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "name: a\nmodels: {instruct: m}\ncorpus: {sources: [x]}\n"
    (tmp_path / "r.yaml").write_text(text + "study: {arms: [instruct, residual]}\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:4  study\.arms \['residual'\] need models\.ba"):
        read_recipe("r.yaml")


def test_every_field_can_be_described():
    def walk(section):
        for field in section.model_fields.values():
            said = describe(field.annotation, field.metadata)
            assert "a value" not in said, (section, field)
            yield said
            inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
            for kind in inner:
                if isinstance(kind, type) and hasattr(kind, "model_fields"):
                    yield from walk(kind)

    assert len(list(walk(Recipe))) > 50


def test_the_schema_takes_the_shipped_recipes_and_no_others():
    jsonschema = pytest.importorskip("jsonschema")
    from ruamel.yaml import YAML

    schema = json.loads(schema_json())
    validator = jsonschema.validators.validator_for(schema)(schema)
    validator.check_schema(schema)
    for card in list_recipes():
        data = YAML(typ="safe", pure=True).load(card.path.read_text("utf-8"))
        if "from_date" in data["corpus"]:
            data["corpus"]["from_date"] = str(data["corpus"]["from_date"])
        assert validator.is_valid(data), card.name
    good = {"name": "a", "models": {"instruct": "m"}, "corpus": {"sources": ["x"]}}
    assert validator.is_valid(good)
    assert validator.is_valid({"extends": "other.yaml", "train": {"tokens": "20M"}})
    assert not validator.is_valid({"name": "a"})
    assert not validator.is_valid({**good, "train": {"tokns": 3}})
    assert not validator.is_valid({**good, "study": {"arms": ["nothing"]}})


def test_the_schema_documents_every_key():
    schema = json.loads(schema_json())
    assert schema["$schema"].startswith("https://json-schema.org/")
    for name, section in schema["$defs"].items():
        for key, about in section["properties"].items():
            assert about.get("description"), f"{name}.{key}"
    assert schema["properties"]["extends"]["description"]
