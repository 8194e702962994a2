"""What a recipe would do and cost, without torch and without loading or writing anything."""

from __future__ import annotations

from pathlib import Path

from kit.planning.corpus import count_corpus
from kit.planning.plan import Plan, make_plan
from kit.recipe.read import LoadedRecipe
from kit.strategies.catalog import stages
from kit.strategies.stages import (
    ComparePair,
    ExtractResidual,
    Graft,
    Measure,
    PrepareText,
    Stage,
    TrainCpt,
    TrainSft,
)


def preview(loaded: LoadedRecipe, *, hardware: str | None = None) -> Plan:
    """The plan of a recipe.

    Args:
        loaded: the recipe.
        hardware: `T4`, `RTX 3060`, `24 GiB`; None: the machine at hand.

    Raises:
        KitError: the recipe's files are not there, or the hardware's name says nothing.
    """
    recipe = loaded.recipe
    text_source = recipe.models.base or recipe.models.instruct
    return make_plan(
        recipe,
        corpus=count_corpus(recipe, tokenizer_file=_tokenizer_file(text_source)),
        hardware=hardware,
        stages=[f"{stage.name:32} {describe(stage)}" for stage in stages(recipe)],
    )


def _tokenizer_file(source: str) -> Path | None:
    """Where a source's tokenizer.json lies, if it is on this machine."""
    if source.startswith("lilliput:"):
        from kit.models import lilliput

        return lilliput.BASE / "tokenizer.json"
    path = Path(source).expanduser() / "tokenizer.json"
    if path.is_file():
        return path
    if source.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "tokenizer.json")
    return Path(cached) if isinstance(cached, str) else None


def describe(stage: Stage) -> str:
    """What a stage does, in a few words."""
    match stage:
        case ComparePair():
            return "compare the two checkpoints"
        case PrepareText():
            return "read, split, tokenise and pack the text"
        case TrainCpt():
            return f"continually pre-train an adapter on {stage.on}, seed {stage.seed}"
        case TrainSft():
            return f"tune {stage.inputs[0]} on chats, seed {stage.seed}"
        case Graft():
            return f"check that {stage.inputs[0]} may go on instruct"
        case ExtractResidual():
            return f"instruct - base at rank {', '.join(map(str, stage.ranks))}"
        case Measure():
            layers = [f"{layer.word}*{layer.weight:g}" for layer in stage.layers]
            return "measure " + " + ".join([stage.checkpoint, *layers])
