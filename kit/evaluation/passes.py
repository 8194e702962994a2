"""Forward passes over packed rows: ids, positions, tree masks, and the cache of a stem.

Shape letters: B rows of a batch, P stem tokens (padded), Q row tokens (padded), H hidden.

    stem   s s s s .          rows right-padded; padding is hidden by the rows' mask
    row    a b c b' c' .      two branches a b c and a b' c': each token sees the stem, those above
                              it in its tree, and itself
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from kit.evaluation.prefixes import Ids, common

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


@dataclass
class PackedRow:
    """Inputs in one row, every token once."""

    ids: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    """Position of each token in its input."""
    edges: list[tuple[int, int, int]] = field(default_factory=list)
    """(place of the token before, -1 for the stem; first place; place after the last)."""
    places: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """Input -> places of its tokens after the stem."""


def pack(inputs: Sequence[Ids], numbers: Sequence[int], stem: int) -> PackedRow:
    """Put sorted inputs that share a stem into one row."""
    row, before = PackedRow(), -1
    for number in numbers:
        ids = inputs[number]
        shared = stem if before < 0 else max(stem, common(inputs[before], ids))
        start, new = len(row.ids), len(ids) - shared
        kept = row.places[before][: shared - stem] if before >= 0 else np.empty(0, np.int64)
        row.places[number] = np.concatenate([kept, np.arange(start, start + new)])
        if new:
            row.edges.append((int(kept[-1]) if len(kept) else -1, start, start + new))
            row.ids += ids[shared:].tolist()
            row.depth += range(shared, len(ids))
        before = number
    return row


def tree_mask(row: PackedRow, *, width: int, window: int | None) -> NDArray[np.bool_]:
    """(width, width) which tokens of the row a token sees; padding sees itself."""
    mask = np.eye(width, dtype=bool)
    for above, start, stop in row.edges:
        if above >= 0:
            mask[start:stop] = mask[above]
        mask[start:stop, start:stop] = np.tri(stop - start, dtype=bool)
    if window is not None:
        depth = np.zeros(width, dtype=np.int64)
        depth[: len(row.depth)] = row.depth
        mask &= depth[:, None] - depth[None, :] < window
    return mask


class Passes:
    """Runs rows through a model's decoder.

    Args:
        model: a causal LM in eval mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.device = model, model.device
        self.decoder = model.get_decoder()
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        if kinds == {"full_attention"} or not getattr(config, "use_sliding_window", True):
            window = None
        self.window: int | None = window
        self.mixed = len(kinds) > 1
        self.additive = config._attn_implementation == "eager"

    def plain(self, rows: Sequence[Ids]) -> torch.Tensor:
        """Hidden states of right-padded rows, (B, Q, H)."""
        hidden: torch.Tensor = self.decoder(
            input_ids=self._padded([row.tolist() for row in rows]), use_cache=False
        ).last_hidden_state
        return hidden

    def stems(self, rows: Sequence[Ids]) -> tuple[torch.Tensor, DynamicCache]:
        """Hidden states of right-padded stems (B, P, H), and their keys and values."""
        from transformers import DynamicCache

        # Without a configuration no layer forgets keys beyond its window: the masks do that.
        cache = DynamicCache()
        hidden: torch.Tensor = self.decoder(
            input_ids=self._padded([row.tolist() for row in rows]),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden, cache

    def trees(
        self,
        rows: Sequence[PackedRow],
        *,
        stems: Sequence[int] = (),
        cache: DynamicCache | None = None,
    ) -> torch.Tensor:
        """Hidden states of packed rows, (B, Q, H); a cache is as it was afterwards.

        Args:
            rows: right-padded here.
            stems: length of each row's stem.
            cache: of the stems.
        """
        width = max(1, max(len(row.ids) for row in rows))
        held = cache.get_seq_length() if cache is not None else 0
        depths = [row.depth + [0] * (width - len(row.depth)) for row in rows]
        masks: dict[str, torch.Tensor] = {}
        for kind, window in (("full_attention", None), ("sliding_attention", self.window)):
            if self.mixed or (window == self.window and not masks):
                masks[kind] = self._mask(rows, stems, width=width, held=held, window=window)
        hidden: torch.Tensor = self.decoder(
            input_ids=self._padded([row.ids for row in rows], width=width),
            position_ids=torch.tensor(depths, device=self.device),
            attention_mask=masks if self.mixed else next(iter(masks.values())),
            **({} if cache is None else {"past_key_values": cache}),
            use_cache=cache is not None,
        ).last_hidden_state
        if cache is not None:
            cache.crop(-width)
        return hidden

    def _mask(
        self,
        rows: Sequence[PackedRow],
        stems: Sequence[int],
        *,
        width: int,
        held: int,
        window: int | None,
    ) -> torch.Tensor:
        """(B, 1, Q, P + Q), True where a token sees another; for eager attention a sum."""
        mask = np.zeros((len(rows), 1, width, held + width), dtype=bool)
        for number, row in enumerate(rows):
            if held:
                seen = np.ones((len(row.ids), stems[number]), dtype=bool)
                if window is not None:
                    depth = np.asarray(row.depth)[:, None]
                    seen &= depth - np.arange(stems[number])[None, :] < window
                mask[number, 0, : len(row.ids), : stems[number]] = seen
            mask[number, 0, :, held:] = tree_mask(row, width=width, window=window)
        sees = torch.from_numpy(mask).to(self.device)
        if not self.additive:
            return sees
        dtype = self.model.dtype
        zero = torch.zeros((), dtype=dtype, device=self.device)
        return torch.where(sees, zero, torch.finfo(dtype).min)

    def _padded(self, rows: Sequence[Sequence[int]], width: int | None = None) -> torch.Tensor:
        longest = width or max(map(len, rows))
        ids: Any = [list(row) + [0] * (longest - len(row)) for row in rows]
        return torch.tensor(ids, device=self.device)
