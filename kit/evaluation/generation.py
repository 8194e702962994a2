"""Greedy decoding of a batch, rows leaving it as they end.

Shape letters: B rows still in the batch, T columns so far, V vocabulary.

    column         0  1  2  3  4 | 5  6  7
    long prompt    p  p  p  p  p | a  b  END
    short prompt   .  .  p  p  p | a  END          . = padding, hidden by the mask
    its position   0  0  0  1  2 | 3  4            as if the row stood alone

Padding stands on the left, so that every row's next token comes in the same column; the mask hides
it and positions start at each row's first real token, so a row's reply is what it would be alone,
up to the rounding of another batch shape. transformers' own `generate` is not used: it takes
temperature and repetition penalty from a checkpoint's generation config, and goes on computing
rows that have ended until the longest one is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Generation:
    """One reply."""

    ids: tuple[int, ...]
    """Every generated token, the one that ended the reply included."""
    text: str
    """The reply without special tokens."""
    stopped: bool
    """Whether it ended by itself; False when the limit cut it off."""
    error: str = ""
    """Why there is no reply; empty when there is one."""


@dataclass
class Row:
    """One row while it is being decoded."""

    limit: int
    """At most so many new tokens."""
    ids: list[int] = field(default_factory=list)
    stopped: bool = False
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether no token is to follow."""
        return self.stopped or bool(self.error) or len(self.ids) >= self.limit

    def take(self, token: int, *, is_finite: bool, stop_ids: AbstractSet[int]) -> None:
        """Add the next token, or note that there was none."""
        if not is_finite:
            self.error = f"the logits of token {len(self.ids) + 1} of the reply are not finite"
            return
        self.ids.append(token)
        self.stopped = token in stop_ids


@torch.no_grad()
def decode_greedily(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    limits: Sequence[int],
    stop_ids: AbstractSet[int],
) -> list[Row]:
    """Decode the most probable continuation of every prompt.

    Args:
        model: a causal LM in eval mode.
        prompts: token ids, none empty.
        limits: for each prompt, at most so many new tokens (1 or more).
        stop_ids: a row ends with the first of these.
    """
    from transformers import DynamicCache

    ids_BT, mask_BT = _left_padded(prompts, model.device)
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    rows = [Row(limit) for limit in limits]
    alive = rows
    while True:
        logits_BV = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        # max carries NaN along, so one pass both chooses and checks.
        best_B, next_B = logits_BV.max(dim=-1)
        chosen = zip(alive, next_B.tolist(), best_B.isfinite().tolist(), strict=True)
        for row, token, is_finite in chosen:
            row.take(token, is_finite=is_finite, stop_ids=stop_ids)
        places = [place for place, row in enumerate(alive) if not row.ended]
        if not places:
            return rows
        if len(places) < len(alive):
            # Costs one copy of the cache, which every step's concatenation costs anyway. Beam
            # search's reordering takes any rows, and all kinds of cache layer have it.
            keep = cast("torch.LongTensor", torch.tensor(places, device=next_B.device))
            cache.reorder_cache(keep)
            next_B, mask_BT, positions_BT = next_B[keep], mask_BT[keep], positions_BT[keep]
            alive = [alive[place] for place in places]
        ids_BT = next_B[:, None]
        mask_BT = torch.nn.functional.pad(mask_BT, (0, 1), value=1)
        positions_BT = positions_BT[:, -1:] + 1


def _left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, (batch, longest prompt)."""
    width = max(map(len, prompts))
    # Any id serves as padding: the mask hides it. 0 exists in every vocabulary.
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
