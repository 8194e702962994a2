"""The arms of a study: each one turns a recipe into stages.

instruct           instruct
base               base
cpt-instruct       instruct + cpt@instruct
cpt-base           base + cpt@base
residual           instruct + cpt@base * weight              exact (arXiv 2410.10739 for a LoRA)
residual-lowrank   base + cpt@base + residual of rank r      an approximation, to be measured
residual-only      base + residual of rank r * weight        the control without any new text
cpt-sft            base + (cpt@base, tuned on)               the classic that costs chats
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kit.recipe.schema import Recipe
from kit.strategies.stages import (
    ComparePair,
    ExtractResidual,
    Graft,
    Layer,
    Measure,
    PrepareText,
    Stage,
    TrainCpt,
    TrainSft,
    Where,
)

Arm = Callable[[Recipe], list[Stage]]


def stages(recipe: Recipe) -> list[Stage]:
    """Everything a recipe asks for, each stage once, in an order that can be run.

    Measurements come last, by checkpoint, so that each checkpoint is loaded once for all of them.
    """
    found: dict[str, Stage] = {"text": PrepareText()}
    if recipe.models.base is not None:
        found["pair"] = ComparePair()
    for arm in recipe.study.arms:
        for stage in ARMS[arm](recipe):
            found.setdefault(stage.name, stage)
    work = [stage for stage in found.values() if not isinstance(stage, Measure)]
    measures = [stage for stage in found.values() if isinstance(stage, Measure)]
    return work + sorted(measures, key=lambda stage: stage.checkpoint == "base")


def _instruct(recipe: Recipe) -> list[Stage]:
    return [_measure("instruct", checkpoint="instruct")]


def _base(recipe: Recipe) -> list[Stage]:
    return [_measure("base", checkpoint="base")]


def _cpt(on: Where, seed: int) -> TrainCpt:
    return TrainCpt(name=f"cpt-{on}-s{seed}", on=on, seed=seed)


def _cpt_layer(on: Where, seed: int, weight: float = 1.0) -> Layer:
    return Layer(stage=f"cpt-{on}-s{seed}", folder="adapter", weight=weight, word=f"cpt@{on}")


def _cpt_arm(arm: str, on: Where) -> Arm:
    def build(recipe: Recipe) -> list[Stage]:
        made: list[Stage] = []
        for seed in recipe.study.seeds:
            layers = [_cpt_layer(on, seed)]
            made += [_cpt(on, seed), _measure(arm, checkpoint=on, seed=seed, layers=layers)]
        return made

    return build


def _residual(recipe: Recipe) -> list[Stage]:
    made: list[Stage] = []
    for seed in recipe.study.seeds:
        cpt = _cpt("base", seed)
        graft = Graft(name=f"graft-s{seed}", inputs=(cpt.name,))
        made += [cpt, graft]
        for weight in recipe.study.cpt_weights:
            if weight == 0 and "instruct" in recipe.study.arms:
                continue  # the plain instruct model, measured as its own arm
            made.append(
                _measure(
                    "residual",
                    checkpoint="instruct",
                    seed=seed,
                    layers=[_cpt_layer("base", seed, weight)],
                    settings={"cpt_weight": weight},
                    variant=f"x{weight:g}",
                    after=[graft.name],
                )
            )
    return made


def _residual_layer(rank: int, weight: float = 1.0) -> Layer:
    folder, word = f"r{rank}", f"residual-r{rank}@base"
    return Layer(stage="residual", folder=folder, weight=weight, word=word)


def _extraction(recipe: Recipe) -> ExtractResidual:
    return ExtractResidual(name="residual", ranks=tuple(sorted(recipe.study.residual_ranks)))


def _residual_lowrank(recipe: Recipe) -> list[Stage]:
    made: list[Stage] = [_extraction(recipe)]
    for seed in recipe.study.seeds:
        made.append(_cpt("base", seed))
        for rank in recipe.study.residual_ranks:
            layers = [_cpt_layer("base", seed), _residual_layer(rank)]
            made.append(
                _measure(
                    "residual-lowrank",
                    checkpoint="base",
                    seed=seed,
                    layers=layers,
                    settings={"rank": rank},
                    variant=f"r{rank}",
                )
            )
    return made


def _residual_only(recipe: Recipe) -> list[Stage]:
    made: list[Stage] = [_extraction(recipe)]
    for rank in recipe.study.residual_ranks:
        for weight in recipe.study.residual_weights:
            made.append(
                _measure(
                    "residual-only",
                    checkpoint="base",
                    layers=[_residual_layer(rank, weight)],
                    settings={"rank": rank, "residual_weight": weight},
                    variant=f"r{rank}" + ("" if weight == 1 else f" x{weight:g}"),
                )
            )
    return made


def _cpt_sft(recipe: Recipe) -> list[Stage]:
    made: list[Stage] = []
    for seed in recipe.study.seeds:
        cpt = _cpt("base", seed)
        sft = TrainSft(name=f"sft-s{seed}", seed=seed, inputs=(cpt.name,))
        layer = Layer(stage=sft.name, folder="adapter", weight=1.0, word="sft@base")
        made += [cpt, sft, _measure("cpt-sft", checkpoint="base", seed=seed, layers=[layer])]
    return made


def _measure(
    arm: str,
    *,
    checkpoint: Where,
    seed: int | None = None,
    layers: Iterable[Layer] = (),
    settings: dict[str, float | int] | None = None,
    variant: str = "",
    after: Iterable[str] = (),
) -> Measure:
    layers = tuple(layers)
    label = f"{arm} {variant}".strip()
    tail = "" if seed is None else f"-s{seed}"
    return Measure(
        name=f"measure-{label.replace(' ', '-')}{tail}",
        arm=arm,
        label=label,
        seed=seed,
        checkpoint=checkpoint,
        layers=layers,
        settings=settings or {},
        inputs=("text", *dict.fromkeys(layer.stage for layer in layers), *after),
    )


ARMS: dict[str, Arm] = {
    "instruct": _instruct,
    "base": _base,
    "cpt-instruct": _cpt_arm("cpt-instruct", "instruct"),
    "cpt-base": _cpt_arm("cpt-base", "base"),
    "residual": _residual,
    "residual-lowrank": _residual_lowrank,
    "residual-only": _residual_only,
    "cpt-sft": _cpt_sft,
}
