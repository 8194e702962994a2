"""Rows that are decoded side by side: they come and go, and their keys and values stay in place.

Shape letters: B rows of a pass, Q tokens of a row in a pass, S slots, C columns, K key heads,
D numbers of a head, V vocabulary.

    slot 0   p p p p p a b .     a row begins in column 0 and is as long as it is: its next token
    slot 1   p p p a . . . .     is written where it ends, and sees what stands before it
    slot 2   p p p p - - - -     a row that has left, until another one is written over it

So nothing is padded on the left or shifted, whatever comes and goes, and a row's position ids are
its columns. transformers' DynamicCache would concatenate, which copies every key at every step. A
prompt that begins as one that is still held gets a copy of these columns, and only the rest of it
is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from kit.hardware import PASS_TOKENS
from kit.models.logprobs import projector

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK = 256
"""Columns by which the buffers grow."""
_ROUND = 16
"""Columns that a pass looks at are a multiple of this: few different shapes, aligned masks."""
_WORTH = 16
"""Tokens of a common beginning that are worth copying: the rest needs a mask, the whole none."""


@dataclass(frozen=True)
class _Pass:
    """Where one forward pass writes and reads."""

    rows: slice
    """Slots."""
    width: int
    """Columns that it reads; 0: only its own tokens."""
    rows_B1: torch.Tensor | None = None
    columns_BQ: torch.Tensor | None = None
    """Where each token is written; None: from column 0 on."""


class _SlotLayer(DynamicLayer):
    """Keys and values of one layer, (slots, key heads, columns, numbers of a head)."""

    now: _Pass

    def __init__(self, slots: int, columns: int) -> None:
        super().__init__()
        self.slots, self.columns = slots, columns

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            # Zeros and not whatever memory holds: a hidden column must not be NaN.
            new.new_zeros(self.slots, new.shape[1], self.columns, new.shape[3])
            for new in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a pass's keys and values; return all that it reads."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        now, columns = self.now, self.now.columns_BQ
        if columns is None:
            self.keys[now.rows, :, : key_states.shape[2]] = key_states
            self.values[now.rows, :, : value_states.shape[2]] = value_states
            return key_states, value_states
        # Not scatter_: on the CPU that copies a whole buffer of 16 bits.
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            held[now.rows_B1, :, columns] = new.transpose(1, 2)
        return self.keys[now.rows, :, : now.width], self.values[now.rows, :, : now.width]

    def grow(self, columns: int) -> None:
        self.columns = columns
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], columns, old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    # What transformers asks when it builds the mask of a pass that reads its own tokens alone.
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0


class Slots:
    """Rows that a model is decoding side by side, in slots 0, 1, ... without a gap.

    Args:
        model: a causal LM in eval mode with keys and values in every layer.
        count: rows at most.
    """

    def __init__(self, model: PreTrainedModel, count: int) -> None:
        self.count, self.device = count, model.device
        self.lengths: list[int] = []
        """Of the rows, in tokens."""
        self._decoder, self._project = model.get_decoder(), projector(model)
        config = model.config.get_text_config()
        self._layers = [_SlotLayer(count, _CHUNK) for _ in range(config.num_hidden_layers)]
        self._cache = Cache(layers=list(self._layers))
        self._columns = _CHUNK
        self._held_SC = np.full((count, _CHUNK), -1, dtype=np.int64)
        """Prompts whose keys are still in a slot, whether its row is there or has left."""
        self._pass_tokens = PASS_TOKENS["cuda" if self.device.type == "cuda" else "cpu"]
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        if kinds == {"full_attention"} or not getattr(config, "use_sliding_window", True):
            window = None
        self._window: int | None = window
        self._mixed = len(kinds) > 1
        self._additive = config._attn_implementation == "eager"
        self._dtype = model.dtype

    def fill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Add as many of some prompts, from the first on, as one pass does well.

        Args:
            prompts: token ids, 1 or more each; at least one prompt, and a free slot.

        Returns:
            Logits after each added prompt, (rows, vocabulary).
        """
        first = len(self.lengths)
        arrays, donors, starts = self._choose(prompts[: self.count - first])
        rows = slice(first, first + len(arrays))
        self._reserve(max(map(len, arrays)))
        if any(starts):
            # Indexing copies before anything is written over.
            shared = max(starts)
            for layer in self._layers:
                for held in (layer.keys, layer.values):
                    if held is not None:
                        held[rows, :, :shared] = held[donors, :, :shared]
        logits_BV = self._forward(
            [ids[start:] for ids, start in zip(arrays, starts, strict=True)], starts, first=first
        )
        self._held_SC[rows] = -1
        for slot, ids in enumerate(arrays, start=first):
            self._held_SC[slot, : len(ids)] = ids
        self.lengths += [len(ids) for ids in arrays]
        return logits_BV

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add a token to every row; the logits after it, (rows, vocabulary)."""
        assert len(tokens) == len(self.lengths)
        logits_BV = self._forward([np.asarray([token]) for token in tokens], self.lengths, first=0)
        self.lengths = [length + 1 for length in self.lengths]
        return logits_BV

    def drop(self, slot: int, *, wipe: bool) -> None:
        """Remove a row; the last one moves into its slot.

        Args:
            slot: of the row.
            wipe: leave nothing of it: its keys may be NaN, which no mask would hide.
        """
        last = len(self.lengths) - 1
        length = self.lengths[last]
        for layer in self._layers:
            for held in (layer.keys, layer.values):
                if held is None:
                    continue
                if wipe:
                    held[slot] = 0
                if slot != last:
                    held[slot, :, :length] = held[last, :, :length]
        if wipe:
            self._held_SC[slot] = -1
        if slot != last:
            self._held_SC[slot] = self._held_SC[last]
            self.lengths[slot] = length
        self.lengths.pop()

    def _choose(
        self, prompts: Sequence[Sequence[int]]
    ) -> tuple[list[np.ndarray], list[int], list[int]]:
        """Prompts of the next pass, slots they can copy from, and how many columns.

        One pass has prompts that copy, or prompts that do not and need no mask; and none that
        could copy from the pass's first one.
        """
        arrays: list[np.ndarray] = []
        donors: list[int] = []
        starts: list[int] = []
        longest = 0
        for prompt in prompts:
            ids = np.asarray(prompt, dtype=np.int64)
            donor, start = self._donor(ids)
            if arrays:
                widest = max(longest, len(ids) - start)
                mates = _common(arrays[0], ids) - start >= _WORTH
                if mates or (start > 0) != (starts[0] > 0):
                    break
                if widest * (len(arrays) + 1) > self._pass_tokens:
                    break
            longest = max(longest, len(ids) - start)
            arrays.append(ids)
            donors.append(donor)
            starts.append(start)
        return arrays, donors, starts

    def _donor(self, ids: np.ndarray) -> tuple[int, int]:
        """The slot that shares the longest beginning with a prompt, and its length."""
        # The last token is left: something has to be computed.
        width = min(len(ids) - 1, self._columns)
        if width < _WORTH:
            return 0, 0
        differs = self._held_SC[:, :width] != ids[:width]
        lengths = np.where(differs.any(axis=1), differs.argmax(axis=1), width)
        slot = int(lengths.argmax())
        return (slot, int(lengths[slot])) if lengths[slot] >= _WORTH else (0, 0)

    def _reserve(self, columns: int) -> None:
        if columns <= self._columns:
            return
        self._columns = -(-columns // _CHUNK) * _CHUNK
        for layer in self._layers:
            layer.grow(self._columns)
        more = self._columns - self._held_SC.shape[1]
        self._held_SC = np.pad(self._held_SC, ((0, 0), (0, more)), constant_values=-1)

    def _forward(
        self, rows: Sequence[np.ndarray], starts: Sequence[int], *, first: int
    ) -> torch.Tensor:
        """Logits after the last token of each row, (B, V).

        A short row is filled up with its own last token: what comes after a token is hidden from
        it, and no row gets another one's NaN.
        """
        lengths = np.array([len(row) for row in rows])
        places_BQ = np.minimum(np.arange(lengths.max())[None, :], lengths[:, None] - 1)
        ids_BQ = np.stack([row[place] for row, place in zip(rows, places_BQ, strict=True)])
        starts_B1 = np.array(starts)[:, None]
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids_BQ).to(self.device),
            "position_ids": torch.from_numpy(starts_B1 + places_BQ).to(self.device),
        }
        count = slice(first, first + len(rows))
        if starts_B1.any():
            columns_BQ = torch.from_numpy(starts_B1 + np.arange(lengths.max())).to(self.device)
            width = int(starts_B1.max() + lengths.max())
            width = -(-width // _ROUND) * _ROUND
            self._reserve(width)
            rows_B1 = torch.arange(first, first + len(rows), device=self.device)[:, None]
            now = _Pass(count, width, rows_B1, columns_BQ)
            inputs["attention_mask"] = self._masks(columns_BQ, width)
        else:
            now = _Pass(count, 0)
        for layer in self._layers:
            layer.now = now
        hidden_BQH = self._decoder(
            **inputs, past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        last_B = torch.from_numpy(lengths - 1).to(self.device)
        return self._project(hidden_BQH[torch.arange(len(rows), device=self.device), last_B])

    def _masks(self, columns_BQ: torch.Tensor, width: int) -> Any:
        """(B, 1, Q, C) by kind of layer where there are several; a sum for eager attention."""
        column_C = torch.arange(width, device=self.device)
        own_B1Q1 = columns_BQ[:, None, :, None]
        sees = column_C <= own_B1Q1
        if self._window is None:
            return self._as_taken(sees)
        near = self._as_taken(sees & (column_C > own_B1Q1 - self._window))
        if not self._mixed:
            return near
        return {"full_attention": self._as_taken(sees), "sliding_attention": near}

    def _as_taken(self, sees: torch.Tensor) -> torch.Tensor:
        if not self._additive:
            return sees
        zero = torch.zeros((), dtype=self._dtype, device=self.device)
        return torch.where(sees, zero, torch.finfo(self._dtype).min)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length
