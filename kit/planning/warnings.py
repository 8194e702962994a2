"""What a plan tells a student to watch, one sentence each, with its source."""

from __future__ import annotations

from collections.abc import Iterator

from kit.models.pairs import known_pair
from kit.models.shapes import ModelShape
from kit.planning.cards import Card
from kit.planning.memory import Verdict
from kit.planning.work import Budget
from kit.recipe.schema import Recipe
from kit.recipe.suites import with_suite

SMALL_PARAMETERS = 1_600_000_000
"""Models that are sold as 1.5B have 1.54 billion."""
REPETITION = 4.0
_RESIDUAL = {"residual", "residual-lowrank", "residual-only"}


def find_warnings(
    recipe: Recipe,
    *,
    shape: ModelShape | None,
    card: Card,
    budget: Budget,
    verdict: Verdict | None,
) -> list[str]:
    """Every warning about a recipe on a card."""
    found = [*_about_model(recipe, shape, card), *_about_budget(recipe, budget)]
    found += [*_about_study(recipe), *_about_measurements(recipe)]
    if verdict is not None and not verdict.fits:
        found.insert(0, verdict.line())
    return found


def _about_model(recipe: Recipe, shape: ModelShape | None, card: Card) -> Iterator[str]:
    models = recipe.models
    if models.compute_dtype == "bfloat16" and not card.bfloat16 and card.device == "cuda":
        yield f"{card.name} has no bfloat16 units; write compute_dtype: auto or float16"
    for source in (models.base, models.instruct):
        if source is not None and source.endswith(".gguf") and models.quantization == "nf4":
            yield f"{source} may be quantised already; NF4 adds its own error on top of that one"
            break
    pair = known_pair(models.base or models.instruct)
    if pair is not None and pair.gated and (models.base or models.instruct) == pair.base:
        yield f"{pair.base} is gated ({pair.licence}): accept its terms on the hub and log in"
    if shape is None:
        return
    if shape.parameters <= SMALL_PARAMETERS and _RESIDUAL & set(recipe.study.arms):
        yield (
            "at or below 1.5B parameters the residual transfer is reported to be unreliable "
            "(arXiv 2410.10739): take a weak result as a finding about size"
        )
    if shape.context and recipe.train.seq_len > shape.context:
        yield f"train.seq_len is longer than the model's context of {shape.context:,} tokens"
    names = recipe.lora.target_modules
    if isinstance(names, list):
        known = {linear.name for linear in shape.linears} | {"lm_head", "embed_tokens"}
        for name in names:
            if name.rsplit(".", 1)[-1] not in known:
                yield f"lora.target_modules: no linear is called {name!r}; they are {sorted(known)}"


def _about_budget(recipe: Recipe, budget: Budget) -> Iterator[str]:
    if budget.epochs is not None and budget.epochs > REPETITION:
        yield (
            f"the budget is {budget.epochs:.1f} passes over the text; beyond about 4 a repeated "
            "text teaches little more (arXiv 2305.16264) and forgetting goes on"
        )
    if budget.num_steps < 20:
        yield (
            f"{budget.num_steps} updates are few; raise train.tokens or lower train.tokens_per_step"
        )
    if recipe.train.tokens > 100_000_000 and recipe.train.learning_rate >= 1e-4:
        yield "for budgets of this size 5e-5 is the usual peak rate of an adapter"


def _about_study(recipe: Recipe) -> Iterator[str]:
    arms = set(recipe.study.arms)
    if len(recipe.study.seeds) < 3 and arms - {"instruct", "base", "residual-only"}:
        count = len(recipe.study.seeds)
        yield (
            f"{count} seed{'s' if count > 1 else ''}: the spread between trainings is not "
            "measured well; three are the least for a conclusion"
        )
    if "residual" in arms and "cpt-instruct" not in arms:
        yield "without cpt-instruct there is no naive way to compare the residual with"


def _about_measurements(recipe: Recipe) -> Iterator[str]:
    evaluate = with_suite(recipe.evaluate)
    if evaluate.ifeval is None and evaluate.lilliput_rules is None:
        yield "instruction following is not measured: set evaluate.ifeval"
    if not evaluate.questions:
        yield (
            "no questions about the new text: what was learned is measured by bits per byte of "
            "held-out text alone (evaluate.questions)"
        )
