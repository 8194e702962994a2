"""Stages: what a study does, as plain frozen records.

    pair       sigma and spectrum of instruct - base
    text ----> cpt@base, cpt@instruct ----> graft ----> measure ...
                   `--> sft (goes on with cpt@base) ----^
    residual (instruct - base, low rank) ---------------^

A dry run, the execution, the resume and the report read the same list. A stage names its inputs;
its fingerprint is made of its settings and theirs, so what is unchanged is never done twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Where = Literal["base", "instruct"]


@dataclass(frozen=True, kw_only=True)
class ComparePair:
    """Measure how far the two checkpoints are apart."""

    name: str = "pair"
    inputs: tuple[str, ...] = ()
    format: int = 1


@dataclass(frozen=True, kw_only=True)
class PrepareText:
    """Read, split, tokenise and pack the corpus."""

    name: str = "text"
    inputs: tuple[str, ...] = ()
    format: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainCpt:
    """Continually pre-train an adapter on one of the two checkpoints."""

    name: str
    on: Where
    seed: int
    inputs: tuple[str, ...] = ("text",)
    format: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainSft:
    """Go on with a base-trained CPT adapter on a small instruction set."""

    name: str
    seed: int
    inputs: tuple[str, ...]
    """The CPT stage."""
    format: int = 1


@dataclass(frozen=True, kw_only=True)
class Graft:
    """Check that a base-trained adapter may go on the instruct model, and write down why."""

    name: str
    inputs: tuple[str, ...]
    """The CPT stage."""
    format: int = 1


@dataclass(frozen=True, kw_only=True)
class ExtractResidual:
    """instruct - base as low-rank adapters on the base, one per rank, from one pass."""

    name: str
    ranks: tuple[int, ...]
    inputs: tuple[str, ...] = ()
    format: int = 1


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One adapter of a stack: the stage that made it, a folder inside it, a weight."""

    stage: str
    folder: str
    weight: float
    word: str
    """How the written stack names it: `cpt@base`, `residual-r32`."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Run every task on one stack."""

    name: str
    arm: str
    label: str
    seed: int | None
    checkpoint: Where
    layers: tuple[Layer, ...] = ()
    settings: dict[str, float | int] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("text",)
    format: int = 1


Stage = ComparePair | PrepareText | TrainCpt | TrainSft | Graft | ExtractResidual | Measure
