"""Merge a stack, and measure what the merged model does differently from the one that was trained.

An adapter that was trained on NF4 weights has learned to make up for some of their rounding. Merged
into the 16-bit checkpoint it meets other weights, so the two are compared on some text before
anybody relies on the merged one.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kit.adapters.attach import mounted
from kit.adapters.merge import MergeReport, merge
from kit.adapters.stack import Stack
from kit.data.sources import read_documents
from kit.data.tokens import document_bos_id, tokenize_texts
from kit.hardware import detect
from kit.models.loading import load_model
from kit.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WINDOWS, _WINDOW_TOKENS = 8, 128


@dataclass(frozen=True, kw_only=True)
class MergeGap:
    """How far the merged 16-bit model is from 4-bit weights with the adapter beside them."""

    max_logit_difference: float
    perplexity_4bit: float
    """Of the 4-bit checkpoint with the stack mounted."""
    perplexity_merged: float
    tokens: int
    """Predicted tokens of general text (Python's help topics)."""


def merge_and_compare(
    stack: Stack,
    *,
    checkpoint: Path,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[MergeReport, MergeGap]:
    """Merge into the 16-bit checkpoint, and compare with 4-bit + adapter.

    Args:
        stack: one or more weighted adapters.
        checkpoint: folder of the stack's checkpoint.
        out: folder for the merged one.
        progress: called with (tensors written, tensors in all).

    Raises:
        KitError: as `kit.adapters.merge.merge`.
    """
    report = merge(stack, checkpoint=checkpoint, out=out, progress=progress)
    return report, merge_gap(stack, checkpoint=checkpoint, merged=out)


def merge_gap(stack: Stack, *, checkpoint: Path, merged: Path) -> MergeGap:
    """Logits and perplexity of both on the same text."""
    hardware = detect()
    ids_BT = _text(checkpoint)
    model = load_model(checkpoint, quantization="nf4", hardware=hardware)
    with mounted(model, stack.combined({stack.checkpoint: checkpoint})):
        four_bit_BTV = _logits(model, ids_BT)
    del model
    gc.collect()
    merged_BTV = _logits(load_model(merged, quantization="16bit", hardware=hardware), ids_BT)
    return MergeGap(
        max_logit_difference=float((four_bit_BTV - merged_BTV).abs().max()),
        perplexity_4bit=_perplexity(four_bit_BTV, ids_BT),
        perplexity_merged=_perplexity(merged_BTV, ids_BT),
        tokens=ids_BT.shape[0] * (ids_BT.shape[1] - 1),
    )


def _text(checkpoint: Path) -> torch.Tensor:
    """(windows, window tokens) of general text that every machine has."""
    texts = [document.text for document in read_documents(["pydoc:topics"]).documents]
    tokenizer = load_tokenizer(checkpoint)
    bos = document_bos_id(tokenizer)
    first = [] if bos is None else [bos]
    rows = [[*first, *row.tolist()] for row in tokenize_texts(tokenizer, texts)]
    long = [row[:_WINDOW_TOKENS] for row in rows if len(row) >= _WINDOW_TOKENS]
    return torch.tensor(long[:_WINDOWS])


@torch.no_grad()
def _logits(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    rows = [model(input_ids=row[None].to(model.device)).logits.float().cpu() for row in ids_BT]
    return torch.cat(rows)


def _perplexity(logits_BTV: torch.Tensor, ids_BT: torch.Tensor) -> float:
    nll = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()
    )
    return math.exp(float(nll))
