"""How much work a recipe is: trainings, updates, measurements; pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kit.models.pairs import FoundShape, find_shape
from kit.planning.cards import Card
from kit.planning.corpus import CorpusCount
from kit.planning.memory import Load
from kit.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one continual pre-training consists of."""

    tokens: int
    num_steps: int
    warmup_steps: int
    accumulation: int
    """Forward passes per update."""
    epochs: float | None
    """Passes over the text; None where the text was not counted."""


def make_budget(recipe: Recipe, corpus: CorpusCount | None) -> Budget:
    """Updates, warm-up and passes of one continual pre-training."""
    train = recipe.train
    per_pass = train.seq_len * train.micro_batch_size
    accumulation = max(1, round(train.tokens_per_step / per_pass))
    blocks = -(-train.tokens // train.seq_len)
    num_steps = -(-blocks // (train.micro_batch_size * accumulation))
    epochs = train.tokens / corpus.tokens if corpus is not None and corpus.tokens else None
    return Budget(
        tokens=train.tokens,
        num_steps=num_steps,
        warmup_steps=math.ceil(train.warmup_share * num_steps),
        accumulation=accumulation,
        epochs=epochs,
    )


def training_loads(recipe: Recipe, card: Card) -> list[Load]:
    """The trainings of a recipe as loads on a card: continual pre-training, and tuning."""
    dtype = recipe.models.compute_dtype
    wide = dtype == "float32" or (dtype == "auto" and card.device == "cpu" and not card.bfloat16)
    targets = recipe.lora.target_modules
    train, sft = recipe.train, recipe.sft
    loads: list[tuple[Literal["train", "sft"], int, int]] = []
    if cpt_checkpoints(recipe):
        loads.append(("train", train.seq_len, train.micro_batch_size))
    if sft is not None and "cpt-sft" in recipe.study.arms:
        loads.append(("sft", sft.max_length, sft.micro_batch_size))
    return [
        Load(
            section=section,
            quantization=recipe.models.quantization,
            compute_bytes=4 if wide else 2,
            rank=recipe.lora.rank,
            target_modules=(targets,) if isinstance(targets, str) else tuple(targets),
            seq_len=length,
            micro_batch_size=rows,
            activation_checkpointing=train.activation_checkpointing,
        )
        for section, length, rows in loads
    ]


def cpt_checkpoints(recipe: Recipe) -> list[str]:
    """The checkpoints that are pre-trained further; arms share the training on the base."""
    arms = set(recipe.study.arms)
    found = ["instruct"] if "cpt-instruct" in arms else []
    if arms & {"cpt-base", "residual", "residual-lowrank", "cpt-sft"}:
        found.append("base")
    return found


def count_trainings(recipe: Recipe) -> int:
    """Continual pre-trainings of all seeds; instruction tunings are counted too."""
    per_seed = len(cpt_checkpoints(recipe)) + ("cpt-sft" in recipe.study.arms)
    return per_seed * len(recipe.study.seeds)


def count_measurements(recipe: Recipe) -> int:
    """Stacks that are measured: every arm, variant and seed."""
    study = recipe.study
    seeds, ranks = len(study.seeds), len(study.residual_ranks)
    # weight 0 is the plain instruct model, which is measured once as its own arm
    weights = sum(1 for w in study.cpt_weights if w != 0 or "instruct" not in study.arms)
    per_arm = {
        "instruct": 1,
        "base": 1,
        "residual": weights * seeds,
        "residual-lowrank": ranks * seeds,
        "residual-only": ranks * len(study.residual_weights),
    }
    return sum(per_arm.get(arm, seeds) for arm in study.arms)


def shape_of(recipe: Recipe, *, cache: Path | None = None) -> FoundShape | None:
    """The sizes of the pair: the base's, or else the instruct model's, which are the same."""
    for source in (recipe.models.base, recipe.models.instruct):
        found = find_shape(source, hub_cache=cache) if source else None
        if found is not None:
            return found
    return None


def count_items(sources: Sequence[str]) -> int:
    """Questions in local files; 120 for each source that is no file."""
    total = 0
    for source in sources:
        path = Path(source).expanduser()
        if path.is_file():
            with path.open("rb") as file:
                total += sum(1 for line in file if line.strip())
        else:
            total += 120
    return total
