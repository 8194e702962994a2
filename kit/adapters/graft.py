"""Graft: an adapter that was trained on the base, placed on the instruct model.

    base + s BA + (instruct - base)  =  instruct + s BA

so the instruction residual is transferred exactly without being computed. It holds for a plain
additive delta on two checkpoints of one shape, and for nothing else; each condition is checked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kit.adapters.algebra import resolve_tied
from kit.adapters.tensors import (
    Adapter,
    plain_delta_problems,
    read_adapter,
    read_config,
    read_sidecar,
)
from kit.errors import AdapterError, GraftError, PairError
from kit.models.pair_check import require_pair, special_tokens, text_tokens
from kit.models.weights import Checkpoint, weights_fingerprint


@dataclass(frozen=True, kw_only=True)
class GraftReport:
    """Why a graft is exact."""

    adapter: str
    base: str
    instruct: str
    modules: int
    """Matrices with a low-rank delta."""
    replaced: tuple[str, ...]
    """Fully trained tensors that become differences."""
    kept_rows: tuple[int, ...]
    """Token ids whose rows of those stay the instruct model's."""
    reasons: tuple[str, ...]
    """One line for each condition that was checked."""
    warnings: tuple[str, ...]


def check_graft(adapter_folder: Path, *, base: Path, instruct: Path) -> GraftReport:
    """Check every condition under which a graft equals adding the residual.

    Args:
        adapter_folder: PEFT's files, trained on `base`.
        base: folder of the base checkpoint, 16 or 32 bit.
        instruct: folder of the instruct checkpoint.

    Raises:
        GraftError: a condition fails; the message says which and why.
    """
    adapter_folder = Path(adapter_folder)
    problems = plain_delta_problems(read_config(adapter_folder))
    if problems:
        raise GraftError(
            f"the adapter is no plain additive delta of the base: {'; '.join(problems)}",
            where=str(adapter_folder),
            fix="convert it to a plain LoRA with PEFT (path_initial_model_for_weight_conversion), "
            "or train a plain LoRA",
        )
    try:
        base_checkpoint, instruct_checkpoint = require_pair(base, instruct)
    except PairError as error:
        raise GraftError(error.what, where=error.where, fix=error.fix) from error
    origin, warnings = _check_origin(adapter_folder, Path(base))
    try:
        adapter = read_adapter(adapter_folder)
        matched = check_modules(adapter, instruct_checkpoint)
        grafted = graft(adapter, base=base_checkpoint, instruct=instruct_checkpoint)
    except GraftError:
        raise
    except AdapterError as error:
        raise GraftError(error.what, where=str(adapter_folder), fix=error.fix) from error
    kept = kept_rows(base_checkpoint.folder, instruct_checkpoint.folder) if grafted.added else ()
    reasons: tuple[str, ...] = (
        f"same architecture, {len(base_checkpoint.names())} tensors of the same names and shapes",
        f"plain additive delta, init {adapter.info.init}",
        origin,
        f"every adapter key has its matrix: {matched}",
    )
    if grafted.added:
        reasons += (
            f"fully trained tensors become differences ({', '.join(sorted(grafted.added))}); "
            f"{len(kept)} rows of special tokens stay the instruct model's",
        )
    return GraftReport(
        adapter=str(adapter_folder),
        base=str(base),
        instruct=str(instruct),
        modules=matched,
        replaced=tuple(sorted(adapter.replaced)),
        kept_rows=kept,
        reasons=reasons,
        warnings=warnings,
    )


def _check_origin(adapter_folder: Path, base: Path) -> tuple[str, tuple[str, ...]]:
    sidecar = read_sidecar(adapter_folder)
    if sidecar is None:
        doubt = "no sidecar: that the adapter was trained on this base is taken on trust"
        return doubt, (doubt,)
    found = weights_fingerprint(base)
    if sidecar.base_fingerprint != found:
        raise GraftError(
            f"the adapter was trained on another checkpoint: {sidecar.base_name} "
            f"({sidecar.base_fingerprint}), this base is {found}",
            where=str(adapter_folder),
            fix="name the base that it was trained on, in the same files and dtype",
        )
    return f"trained on this base ({found})", ()


def check_modules(adapter: Adapter, checkpoint: Checkpoint) -> int:
    """Count the adapter's modules; each must be a matrix of the checkpoint, with its shape.

    Raises:
        AdapterError: a module or a replaced tensor is missing or has another shape.
    """
    problems = []
    wanted: dict[str, tuple[int, ...]] = {
        f"{module}.weight": pair.shape for module, pair in adapter.deltas.items()
    }
    for source in (adapter.replaced, adapter.added):
        wanted.update({name: tuple(value.shape) for name, value in source.items()})
    for name, shape in wanted.items():
        if name not in checkpoint and not (checkpoint.tied and name == checkpoint.head_name):
            problems.append(f"{name} is not in the checkpoint")
        elif checkpoint.shape(name) != shape:
            problems.append(f"{name} is {checkpoint.shape(name)}, the adapter's is {shape}")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; {len(problems) - 5} more" if problems[5:] else "")
        raise AdapterError(
            f"{len(problems)} of {len(wanted)} adapter keys do not fit: {shown}",
            where=str(checkpoint.folder),
            fix="name the checkpoint of the architecture that the adapter was trained on",
        )
    return len(adapter.deltas)


def as_differences(adapter: Adapter, checkpoint: Checkpoint) -> Adapter:
    """Turn fully trained tensors into differences from the checkpoint they were trained on.

    What is trained of a tied pair becomes one difference, under the embedding's name.

    Raises:
        AdapterError: a tensor does not fit, or a tied pair was trained apart.
    """
    if not adapter.replaced:
        return adapter
    check_modules(adapter, checkpoint)
    adapter = _resolve_tied(adapter, checkpoint)
    added = dict(adapter.added)
    for name, value in adapter.replaced.items():
        difference = value.float() - checkpoint.tensor(name)
        added[name] = added[name] + difference if name in added else difference
    return replace(adapter, replaced={}, added=added)


def on_checkpoint(adapter: Adapter, checkpoint: Checkpoint) -> Adapter:
    """Turn differences into replacements for one checkpoint: the form that PEFT can store."""
    if not adapter.added:
        return adapter
    adapter = _resolve_tied(adapter, checkpoint)
    replaced = dict(adapter.replaced)
    for name, value in adapter.added.items():
        under = replaced[name] if name in replaced else checkpoint.tensor(name)
        replaced[name] = under + value
    if checkpoint.tied and checkpoint.head_name and checkpoint.embedding_name in replaced:
        # PEFT writes and wants a tied pair under both names.
        replaced[checkpoint.head_name] = replaced[checkpoint.embedding_name].clone()
    info = replace(adapter.info, ties_weights=adapter.info.ties_weights or checkpoint.tied)
    return replace(adapter, replaced=replaced, added={}, info=info)


def _resolve_tied(adapter: Adapter, checkpoint: Checkpoint) -> Adapter:
    if checkpoint.tied and checkpoint.embedding_name and checkpoint.head_name:
        return resolve_tied(adapter, embedding=checkpoint.embedding_name, head=checkpoint.head_name)
    return adapter


def graft(adapter: Adapter, *, base: Checkpoint, instruct: Checkpoint) -> Adapter:
    """The adapter in the form that goes on the instruct model.

    Low-rank deltas go as they are. Fully trained tensors become their difference from the base's.
    In the difference of an embedding or a head, the rows of special tokens that plain text is not
    made with (`kept_rows`) are zero, so the instruct model's rows stay: what training on text did
    to them (weight decay; the softmax pushing down what never occurs) is no knowledge.

    Raises:
        GraftError: an embedding is to be grafted and the instruct folder has no tokenizer.
        AdapterError: a tensor does not fit, or a tied pair was trained apart.
    """
    if not adapter.replaced:
        return adapter
    vocabulary = {instruct.embedding_name, instruct.head_name}
    differences = as_differences(adapter, base)
    if not vocabulary & set(differences.added):
        return differences
    rows = list(kept_rows(base.folder, instruct.folder))
    added: dict[str, Tensor] = {}
    for name, value in differences.added.items():
        if name in vocabulary and rows:
            value = value.clone()
            value[torch.tensor(rows)] = 0.0
        added[name] = value
    return replace(differences, added=added)


def kept_rows(base: Path, instruct: Path) -> tuple[int, ...]:
    """Token ids whose embedding rows stay the instruct model's.

    All special tokens of the instruct tokenizer, except those that the base's own text is made
    with: its bos, eos and unk, which continual pre-training does train.

    Raises:
        GraftError: the instruct folder has no tokenizer to tell.
    """
    specials = special_tokens(instruct)
    if not specials and not (instruct / "tokenizer.json").is_file():
        raise GraftError(
            "the adapter trained embeddings, and without a tokenizer nothing tells which rows are "
            "chat tokens",
            where=str(instruct),
            fix="put tokenizer.json into the folder",
        )
    used = text_tokens(base)
    return tuple(sorted(number for token, number in specials.items() if token not in used))
