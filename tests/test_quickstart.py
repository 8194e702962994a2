"""The quickstart's own training, on the shipped pair: the new people are learned."""

from __future__ import annotations

from kit.recipe.read import find_recipe, read_recipe
from kit.reporting.collect import read_study
from kit.strategies.execute import run_study

LESS_MEASURING = [
    "study.arms=[instruct, base, cpt-base]",
    "evaluate.lilliput_rules=15",
    "evaluate.max_heldout_documents=10",
    "general.max_documents=10",
]


def test_cpt_base_knows_the_new_people_better_than_base(tmp_path):
    recipe = read_recipe(find_recipe("quickstart"), LESS_MEASURING)
    lines = {line.label: line for line in read_study(run_study(recipe, tmp_path / "run")).lines}
    for task in ("questions/new-cloze", "questions/new-chat"):
        before, after = (lines[name].first(task).interval for name in ("base", "cpt-base"))
        assert before.n == after.n >= 200
        assert after.low > before.high, f"{task}: {before} and {after} are not separate"
