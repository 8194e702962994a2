"""Every shipped recipe is read, planned and fits the card in its name."""

from __future__ import annotations

import re

import pytest

from kit.models.lilliput import BASE
from kit.planning.plan import make_plan
from kit.recipe.read import list_recipes, read_recipe, recipes_folder

CARDS = list_recipes()
HARDWARE = {
    "t4": "T4",
    "3060": "RTX 3060",
    "4060ti": "RTX 4060 Ti 16 GB",
    "4090": "RTX 4090",
    "cpu": "cpu 2 cores, 8 GiB",
    "quickstart": "cpu 2 cores, 8 GiB",
}


def test_none_is_left_out():
    files = [p for p in recipes_folder().rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".yaml"}
    assert len(files) == len(CARDS) == 10


def loaded(card, tmp_path):
    """The recipe, with the user's own files put in place of those that it only names."""
    overrides = []
    text = read_recipe(card.path).recipe
    if any(not source.startswith("lilliput:") for source in text.corpus.sources):
        (tmp_path / "text.md").write_text("A text of the user's own.\n" * 50)
        (tmp_path / "more.md").write_text("Another text of the user's own.\n" * 50)
        overrides.append(f"corpus.sources=[{tmp_path}]")
    if text.evaluate.ifeval is not None and text.evaluate.ifeval.data is not None:
        (tmp_path / "prompts.jsonl").write_text("{}\n")
        overrides.append(f"evaluate.ifeval.data={tmp_path / 'prompts.jsonl'}")
    return read_recipe(card.path, overrides)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_it_plans_and_fits_its_card(card, tmp_path):
    if card.name == "quickstart" and not (BASE / "config.json").is_file():
        pytest.skip("the embedded pair has not been trained yet")
    hardware = HARDWARE[re.split(r"[-/]", card.name)[-1]]
    plan = make_plan(loaded(card, tmp_path).recipe, hardware=hardware)
    assert plan.verdict is not None and plan.verdict.fits, plan.lines()
    assert plan.measuring_bytes is not None
    assert plan.measuring_bytes <= plan.verdict.usable_bytes, plan.measuring
    assert plan.budget.num_steps >= 20
    assert not any("no linear" in w or "context" in w for w in plan.warnings)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_it_is_its_own_manual(card):
    lines = card.path.read_text("utf-8").splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert 25 <= len(lines) <= 45, len(lines)
    assert max(map(len, lines)) <= 100
    text = "\n".join(header)
    for word in ("What it does:", "Command:", "Needs:", "Afterwards:"):
        assert word in text, word
    assert card.path.stem in text, "the command names the recipe"
    recipe = read_recipe(card.path).recipe
    assert recipe.name == card.name.replace("/", "-")


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_its_body_holds_deviations_alone(card):
    """Whatever a recipe repeats of the defaults would hide what it changes."""
    from ruamel.yaml import YAML

    from kit.recipe.schema import Recipe

    body = YAML(typ="safe", pure=True).load(card.path.read_text("utf-8"))
    for section, kind in Recipe.model_fields.items():
        values = body.get(section)
        if not isinstance(values, dict):
            continue
        options = [kind.annotation, *getattr(kind.annotation, "__args__", ())]
        (model,) = [o for o in options if hasattr(o, "model_fields")]
        for key, value in values.items():
            if key != "arms":  # they are the study, and always said
                assert model.model_fields[key].default != value, f"{section}.{key} is the default"


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_only_small_machines_have_one_seed(card):
    seeds = read_recipe(card.path).recipe.study.seeds
    assert len(seeds) == (3 if card.name.startswith("residual/") else 1)
