"""Texts to token ids exactly as lm-eval's HFLM makes them, every different text once.

context "Question: 2 + 2\nAnswer: "   continuation "4"
asked   "Question: 2 + 2\nAnswer:"    and " 4": blanks go over to what is scored
ids     of both texts together, cut where the ids of the context alone end
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation."""


class Encoder:
    """Tokenises many texts in one call, which a fast tokenizer does in parallel.

    Args:
        tokenizer: any.
        prefix_id: what stands before a text without a context.
        add_bos_token: whether texts get the tokenizer's special tokens. None: as it does itself.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prefix_id: int,
        add_bos_token: bool | None = None,
    ) -> None:
        self.prefix_id = prefix_id
        self._tokenizer, self._add_bos_token = tokenizer, add_bos_token
        self._prefix = str(tokenizer.decode([prefix_id]))

    def __call__(
        self,
        texts: Iterable[str],
        *,
        add_special_tokens: bool | None = None,
        bos: str | None = "",
    ) -> dict[str, list[int]]:
        """Token ids of texts.

        Args:
            texts: any, also several times the same.
            add_special_tokens: None leaves it to `add_bos_token`, and to `bos`.
            bos: a text that begins so, as chat templates write it, gets no second one. "" is the
                prefix; None looks for nothing.
        """
        start = self._prefix if bos == "" else bos
        groups: dict[bool | None, list[str]] = {}
        for text in dict.fromkeys(texts):
            special = add_special_tokens
            if special is None:
                has_start = start is not None and text.startswith(start)
                special = False if has_start else self._add_bos_token
            groups.setdefault(special, []).append(text)
        known: dict[str, list[int]] = {}
        for special, group in groups.items():
            options = {} if special is None else {"add_special_tokens": special}
            ids: list[list[int]] = self._tokenizer(group, **options)["input_ids"]
            known.update(zip(group, ids, strict=True))
        return known


def encoded_pairs(encoder: Encoder, texts: Sequence[tuple[str, str]]) -> list[Pair]:
    """Token ids of contexts and continuations.

    Args:
        encoder: the tokenizer.
        texts: context and continuation; an empty context stands for the prefix.
    """
    moved = [_blanks_moved(*pair) if pair[0] else pair for pair in texts]
    known, alone = [], []
    for (context, _), (before, after) in zip(texts, moved, strict=True):
        if context:
            known += [before, before + after]
        else:
            alone.append(after)
    ids, bare = encoder(known), encoder(alone, add_special_tokens=False)
    pairs: list[Pair] = []
    for (context, _), (before, after) in zip(texts, moved, strict=True):
        if context:
            pairs.append((ids[before], ids[before + after][len(ids[before]) :]))
        elif bare[after][:1] == [encoder.prefix_id]:
            pairs.append((bare[after][:1], bare[after][1:]))
        else:
            pairs.append(([encoder.prefix_id], bare[after]))
    return pairs


def _blanks_moved(context: str, continuation: str) -> tuple[str, str]:
    """Blanks at a context's end go over to the continuation, whose first token starts with them."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation
