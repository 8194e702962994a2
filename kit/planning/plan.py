"""A recipe's plan: stages, tokens, memory, time, and what to watch, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kit.errors import RecipeError
from kit.hardware import SLOTS
from kit.models.pairs import FoundShape
from kit.models.shapes import ModelShape
from kit.planning import doctor
from kit.planning.cards import Card, find_card, local_hardware
from kit.planning.corpus import CorpusCount, check_files
from kit.planning.memory import (
    Load,
    MemoryEstimate,
    Verdict,
    estimate_measuring,
    estimate_training,
    judge,
)
from kit.planning.time import TimeEstimate, generation_time, training_time
from kit.planning.warnings import find_warnings
from kit.planning.work import (
    Budget,
    count_items,
    count_measurements,
    count_trainings,
    cpt_checkpoints,
    make_budget,
    shape_of,
    training_loads,
)
from kit.recipe.schema import Recipe
from kit.recipe.suites import with_suite
from kit.units import show_bytes, show_count, show_seconds

SFT_TOKENS = 300
"""Tokens of a chat, to estimate the time of the small instruction tuning: assumed."""
DECODE_SHARE = 0.6
"""A dequantised copy is made to decode with where it takes at most this share of free memory."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known before a run; estimates say that they are."""

    recipe: str
    hardware: str
    model: str
    """The sizes in one line, and how they were come by."""
    stages: tuple[str, ...]
    trainings: int
    """Trainings of all seeds together; `cpt@base` is shared by the arms that use it."""
    measurements: int
    """Stacks that are measured."""
    budget: Budget
    corpus: CorpusCount | None
    memory: MemoryEstimate | None
    """Of the training that needs most."""
    verdict: Verdict | None
    measuring_bytes: int | None
    measuring: str
    """How weights are held while measuring, and why."""
    training_time: TimeEstimate | None
    """Of all trainings together."""
    measuring_time: TimeEstimate | None
    """Of all generated replies together, at most."""
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For `plan.json`."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For the console."""
        budget = self.budget
        passes = "" if budget.epochs is None else f", {budget.epochs:.2f} passes over the text"
        lines = [
            f"Plan of {self.recipe}",
            f"  hardware   {self.hardware}",
            f"  model      {self.model}",
            f"  text       {_corpus_line(self.corpus)}",
            f"  training   {self.trainings} x {show_count(budget.tokens)} tokens: "
            f"{budget.num_steps:,} updates of {budget.accumulation} forward passes, "
            f"{budget.warmup_steps:,} of them warm-up{passes}",
            f"  measuring  {self.measurements} stacks; {self.measuring}",
        ]
        lines += self._memory_lines() + self._time_lines()
        if self.stages:
            lines += ["Stages", *(f"  {stage}" for stage in self.stages)]
        if self.warnings:
            lines += ["To watch", *(f"  - {warning}" for warning in self.warnings)]
        return lines

    def _memory_lines(self) -> list[str]:
        if self.memory is None or self.verdict is None:
            return ["Memory: not computed, the model's sizes are not known here"]
        parts = [
            f"  {part.name:18} {show_bytes(part.size_bytes):>10}   {part.how}"
            for part in self.memory.parts
        ]
        return [f"Memory of the largest training: {self.verdict.line()}", *parts]

    def _time_lines(self) -> list[str]:
        if self.training_time is None:
            return ["Time: not computed, this hardware's rate or the model's sizes are not known"]
        time = self.training_time
        lines = [
            "Time, an order of magnitude (computed, not measured)",
            f"  all trainings      {show_seconds(time.seconds):>10}   {time.how}",
        ]
        if self.measuring_time is not None:
            time = self.measuring_time
            lines.append(f"  all replies, max.  {show_seconds(time.seconds):>10}   {time.how}")
        return lines


def make_plan(
    recipe: Recipe,
    *,
    corpus: CorpusCount | None = None,
    hardware: str | None = None,
    stages: Sequence[str] = (),
    hub_cache: Path | None = None,
) -> Plan:
    """Compute what a recipe costs.

    Args:
        recipe: what is to be done.
        corpus: its text, see `count_corpus`; None: not counted.
        hardware: `T4`, `RTX 3060`, `24 GiB`, `cpu 4 cores`; None: the machine at hand.
        stages: what will be done, one line each; they are printed as they are.
        hub_cache: the hub's cache folder, to read configurations that are there; None: the user's.

    Raises:
        DataError: a text file that the recipe names is not there.
        RecipeError: the hardware's name says nothing.
        CheckpointError: a checkpoint is here and cannot be used.
    """
    check_files(recipe)
    try:
        card = find_card(hardware or local_hardware())
    except ValueError as error:
        raise RecipeError(str(error), where="hardware", fix="name a card or a size") from None
    found = shape_of(recipe, cache=hub_cache or doctor.hub_cache())
    shape = found.shape if found else None
    loads = training_loads(recipe, card)
    memory, verdict = _worst(shape, loads, card)
    measuring, measuring_bytes = _measuring(recipe, shape, card)
    budget = make_budget(recipe, corpus)
    return Plan(
        recipe=recipe.name,
        hardware=_card_line(card),
        model=_model_line(recipe, found),
        stages=tuple(stages),
        trainings=count_trainings(recipe),
        measurements=count_measurements(recipe),
        budget=budget,
        corpus=corpus,
        memory=memory,
        verdict=verdict,
        measuring=measuring,
        measuring_bytes=measuring_bytes,
        training_time=_training_time(recipe, shape, card),
        measuring_time=_measuring_time(recipe, shape, card),
        warnings=tuple(
            find_warnings(recipe, shape=shape, card=card, budget=budget, verdict=verdict)
        ),
    )


def _worst(
    shape: ModelShape | None, loads: list[Load], card: Card
) -> tuple[MemoryEstimate | None, Verdict | None]:
    if shape is None or not loads:
        return None, None
    estimates = [(estimate_training(shape, load, device=card.device), load) for load in loads]
    memory, load = max(estimates, key=lambda pair: pair[0].total_bytes)
    return memory, judge(shape, load, card)


def _measuring(recipe: Recipe, shape: ModelShape | None, card: Card) -> tuple[str, int | None]:
    """How weights are held while measuring, by the rule that the run follows."""
    held = recipe.models.quantization
    words = f"with {held} weights"
    if shape is None:
        return words, None
    width = 4 if card.device == "cpu" and not card.bfloat16 else 2
    if held == "nf4":
        free = card.usable_bytes - shape.linear_parameters // 2 - shape.embedding_parameters * 2
        copy = shape.parameters * width
        if copy <= DECODE_SHARE * free:
            held, words = "16bit", f"with a dequantised copy ({show_bytes(copy)})"
        else:
            words = f"with 4-bit weights: a copy of {show_bytes(copy)} would not fit well"
    evaluate = with_suite(recipe.evaluate)
    new_tokens = evaluate.ifeval.max_new_tokens if evaluate.ifeval else 0
    need = estimate_measuring(
        shape,
        quantization=held,
        compute_bytes=width,
        batch_size=evaluate.batch_size or SLOTS[card.device],
        row_tokens=max(evaluate.seq_len, 256 + new_tokens),
        device=card.device,
    ).total_bytes
    if need > card.usable_bytes:
        words += f"; needs {show_bytes(need)}, too much: lower evaluate.batch_size"
    return words, need


def _training_time(recipe: Recipe, shape: ModelShape | None, card: Card) -> TimeEstimate | None:
    if shape is None:
        return None
    seconds, how = 0.0, ""
    for load in training_loads(recipe, card):
        if load.section == "train":
            tokens, runs = recipe.train.tokens, len(cpt_checkpoints(recipe))
        else:
            assert recipe.sft is not None
            tokens, runs = recipe.sft.examples * recipe.sft.epochs * SFT_TOKENS, 1
        one = training_time(shape, load, card, tokens=tokens)
        if one is None:
            return None
        seconds += one.seconds * runs * len(recipe.study.seeds)
        how = how or f"each {one.how}"
    return TimeEstimate(seconds=seconds, how=how or "no arm trains")


def _measuring_time(recipe: Recipe, shape: ModelShape | None, card: Card) -> TimeEstimate | None:
    """Replies of full length for every generated item of every stack."""
    if shape is None:
        return None
    evaluate, rows = with_suite(recipe.evaluate), []
    if evaluate.ifeval:
        rows.append((evaluate.ifeval.prompts or 541, evaluate.ifeval.max_new_tokens))
    if evaluate.lilliput_rules:
        rows.append((evaluate.lilliput_rules, 48))
    rows += [(count_items(q.sources), q.max_new_tokens) for q in evaluate.questions.values()]
    seconds = 0.0
    for count, length in rows:
        one = generation_time(
            shape,
            card,
            rows=count,
            new_tokens=length,
            batch_size=evaluate.batch_size or SLOTS[card.device],
        )
        if one is None:
            return None
        seconds += one.seconds
    if not rows:
        return None
    stacks = count_measurements(recipe)
    items = sum(count for count, _ in rows)
    how = f"{stacks} stacks x {items:,} replies, each of full length"
    return TimeEstimate(seconds=seconds * stacks, how=how)


def _corpus_line(corpus: CorpusCount | None) -> str:
    if corpus is None:
        return "not counted"
    return (
        f"{corpus.documents:,} documents, {show_bytes(corpus.text_bytes)}, "
        f"{show_count(corpus.tokens)} tokens ({corpus.how}); "
        f"{corpus.heldout_documents:,} documents held out"
    )


def _model_line(recipe: Recipe, found: FoundShape | None) -> str:
    if found is None:
        sources = " and ".join(s for s in (recipe.models.base, recipe.models.instruct) if s)
        return f"{sources}: not here and not known, so no memory and no time"
    shape = found.shape
    adapter = shape.adapter_parameters(recipe.lora.rank, recipe.lora.target_modules)
    note = f"; {shape.note}" if shape.note else ""
    return (
        f"{show_count(shape.parameters)} parameters ({found.how}{note}); adapter of rank "
        f"{recipe.lora.rank}: {show_count(adapter)} ({adapter / shape.parameters:.1%})"
    )


def _card_line(card: Card) -> str:
    assumed = f" ({card.assumed})" if card.assumed else ""
    return f"{card.name}, {show_bytes(card.usable_bytes)}{assumed}"
