"""Greedy decoding: rows leave the batch as they end, and wait for no other row.

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

import logging
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch

from kit.progress import Advance, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One prompt."""

    prompt: tuple[int, ...]
    """Token ids, 1 or more."""
    limit: int
    """At most so many new tokens (1 or more)."""


@dataclass(frozen=True)
class Generation:
    """One reply."""

    ids: tuple[int, ...]
    """Every generated token, the one that ended the reply included."""
    text: str
    """The reply without special tokens, and without what ended it unless that is kept."""
    stopped: bool
    """Whether it ended by itself; False when the limit cut it off."""
    error: str = ""
    """Why there is no reply; empty when there is one."""


@dataclass(frozen=True, kw_only=True)
class Stops:
    """What ends a reply."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: AbstractSet[int]
    """Tokens that its text leaves out."""
    kept_ids: AbstractSet[int] = frozenset()
    """Tokens that its text keeps."""
    strings: Sequence[str] = ()
    """Texts that do not belong to it."""

    def text(self, ids: list[int]) -> str:
        """A reply's text, up to the first stop string."""
        shown = ids[:-1] if ids and ids[-1] in self.end_ids else ids
        text = str(self.tokenizer.decode(shown, skip_special_tokens=True))
        found = [place for stop in self.strings if (place := text.find(stop)) >= 0]
        return text[: min(found)] if found else text

    def has_string(self, ids: list[int]) -> bool:
        """Whether a stop string stands at the end of a reply under way.

        Only as many tokens are decoded as can hold one: a token has a byte at least, and the first
        ones may be torn characters or lose their blank.
        """
        if not self.strings:
            return False
        longest = max(len(stop.encode()) for stop in self.strings)
        tail = self.tokenizer.decode(ids[-(longest + 8) :], skip_special_tokens=True)
        return any(stop in tail for stop in self.strings)


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

    def take(self, token: int, *, is_finite: bool, stops: Stops) -> None:
        """Add the next token, or note that there was none."""
        if not is_finite:
            self.error = f"the logits of token {len(self.ids) + 1} of the reply are not finite"
            return
        self.ids.append(token)
        ended = token in stops.end_ids or token in stops.kept_ids
        self.stopped = ended or stops.has_string(self.ids)


def generate(
    model: PreTrainedModel,
    asks: Sequence[Ask],
    *,
    stops: Stops,
    slots: int,
    advance: Advance = silent,
) -> list[Generation]:
    """Answer every prompt greedily, longest prompts first.

    Args:
        model: a causal LM in eval mode.
        asks: the prompts.
        stops: what ends a reply.
        slots: replies that are written side by side; halved where memory does not suffice.
        advance: told of every batch of prompts that is done.
    """
    left = sorted(range(len(asks)), key=lambda n: -len(asks[n].prompt))
    replies: dict[int, Generation] = {}
    while left:
        part = left[:slots]
        try:
            rows = decode_greedily(model, [asks[n] for n in part], stops=stops)
        except torch.OutOfMemoryError:
            if slots == 1:
                raise
            slots = max(1, min(slots, len(part)) // 2)
            log.warning("out of memory: at most %d replies side by side from here", slots)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        for n, row in zip(part, rows, strict=True):
            replies[n] = Generation(
                ids=tuple(row.ids), text=stops.text(row.ids), stopped=row.stopped, error=row.error
            )
        left = left[len(part) :]
        advance(len(part))
    return [replies[n] for n in range(len(asks))]


@torch.no_grad()
def decode_greedily(model: PreTrainedModel, asks: Sequence[Ask], *, stops: Stops) -> list[Row]:
    """Decode the most probable continuation of every prompt of one batch.

    Args:
        model: a causal LM in eval mode.
        asks: the prompts.
        stops: a row ends with the first of these.
    """
    from transformers import DynamicCache

    ids_BT, mask_BT = _left_padded([ask.prompt for ask in asks], model.device)
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    rows = [Row(ask.limit) for ask in asks]
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
            row.take(token, is_finite=is_finite, stops=stops)
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
