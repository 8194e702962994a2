"""THE shift convention, and losses that never hold (batch, seq, vocab) logits.

Shape letters: B batch, T seq, H hidden, V vocabulary, C chunk of tokens.

Shift: labels are aligned with ids (label t is id t, or -100 where it bears no loss). The hidden
state at t - 1 predicts label t, so label 0 of a row is never used. Nothing else in the kit shifts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORE = -100
CHUNK_TOKENS = 1024
"""Tokens whose logits exist at once: 1024 x 152k float32 logits are 0.6 GiB."""

Project = Callable[[torch.Tensor], torch.Tensor]


def chunked_cross_entropy(
    hidden_BTH: torch.Tensor,
    labels_BT: torch.Tensor,
    *,
    project: Project,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[torch.Tensor, int]:
    """Sum of the next-token losses in nats, with logits for one chunk of tokens at a time.

    The backward pass computes each chunk's logits again (checkpointing), so the memory is one
    chunk's in both directions. Positions without a label are left out before projecting.

    Args:
        hidden_BTH: final hidden states, (batch, seq, hidden).
        labels_BT: ids, or -100 where no loss is borne; (batch, seq).
        project: final hidden states to logits.
        chunk_tokens: tokens per chunk.

    Returns:
        The summed loss (float32 scalar) and the number of tokens that bore it.
    """
    hidden_NH, labels_N = _bearing(hidden_BTH, labels_BT)
    total = hidden_NH.new_zeros((), dtype=torch.float32)
    for start in range(0, labels_N.numel(), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        total = total + checkpoint(
            _chunk_loss, hidden_NH[part], labels_N[part], project, use_reentrant=False
        )
    if labels_N.numel() == 0:
        total = total + 0.0 * hidden_BTH.float().sum()  # keeps the graph for an empty micro-batch
    return total, int(labels_N.numel())


def _bearing(
    hidden_BTH: torch.Tensor, labels_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states that predict a label, and these labels: (N, hidden), (N)."""
    targets_BT = labels_BT[:, 1:]
    keep_BT = targets_BT != IGNORE
    return hidden_BTH[:, :-1][keep_BT], targets_BT[keep_BT]


def _chunk_loss(hidden_CH: torch.Tensor, labels_C: torch.Tensor, project: Project) -> torch.Tensor:
    logits_CV = project(hidden_CH).float()
    return torch.nn.functional.cross_entropy(logits_CV, labels_C, reduction="sum")


def final_hidden(
    model: PreTrainedModel, ids_BT: torch.Tensor, **inputs: torch.Tensor
) -> torch.Tensor:
    """Hidden states after the last norm, (batch, seq, hidden).

    `use_cache=False` is what makes position ids that restart act as document borders: with the
    default cache, packed documents see each other.
    """
    decoder = model.get_decoder()
    hidden: torch.Tensor = decoder(input_ids=ids_BT, use_cache=False, **inputs).last_hidden_state
    return hidden


def projector(model: PreTrainedModel) -> Project:
    """The model's head, with the scaling that its own forward applies to the logits.

    Gemma caps logits with tanh, Granite and Cohere scale them; a loss on raw head outputs would be
    silently wrong for these.
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    divisor = getattr(config, "logits_scaling", None) or 1.0
    factor = (getattr(config, "logit_scale", None) or 1.0) / divisor

    def project(hidden_CH: torch.Tensor) -> torch.Tensor:
        logits_CV: torch.Tensor = head(hidden_CH)
        if factor != 1.0:
            logits_CV = logits_CV * factor
        return torch.tanh(logits_CV / cap) * cap if cap else logits_CV

    return project


@torch.no_grad()
def token_nll(
    model: PreTrainedModel,
    ids_BT: torch.Tensor,
    *,
    position_ids_BT: torch.Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> torch.Tensor:
    """Negative log-likelihood of every token given those before it, in nats; (batch, seq).

    Rows may be padded on the right: a causal model's tokens do not see what follows. Column 0 has
    no context and is 0.
    """
    inputs = {} if position_ids_BT is None else {"position_ids": position_ids_BT}
    hidden_BTH = final_hidden(model, ids_BT, **inputs)
    project = projector(model)
    hidden_NH = hidden_BTH[:, :-1].flatten(0, 1)
    targets_N = ids_BT[:, 1:].flatten()
    pieces = [
        torch.nn.functional.cross_entropy(
            project(hidden_NH[start : start + chunk_tokens]).float(),
            targets_N[start : start + chunk_tokens],
            reduction="none",
        )
        for start in range(0, targets_N.numel(), chunk_tokens)
    ]
    nll_BT = ids_BT.new_zeros(ids_BT.shape, dtype=torch.float32)
    if pieces:
        nll_BT[:, 1:] = torch.cat(pieces).view(ids_BT.shape[0], -1)
    return nll_BT
