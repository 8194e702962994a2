"""What ends a reply, and what of it belongs to its text."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Stops:
    """What ends a reply."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: AbstractSet[int]
    """Tokens that its text leaves out."""
    kept_ids: AbstractSet[int] = frozenset()
    """Tokens that its text keeps."""
    strings: Sequence[str] = ()
    """Texts that do not belong to it; empty ones end nothing."""

    @cached_property
    def _tail(self) -> int:
        """Tokens at the end of a reply that hold any stop string which the last one completes.

        A token has a byte at least. The first ones of a piece may be torn characters or lose their
        blank, hence some more.
        """
        return max((len(stop.encode()) for stop in self.strings), default=0) + 8

    def text(self, ids: Sequence[int]) -> str:
        """A reply's text, up to the first stop string."""
        shown = ids[:-1] if ids and ids[-1] in self.end_ids else ids
        text = str(self.tokenizer.decode(list(shown), skip_special_tokens=True))
        found = [place for stop in self.strings if stop and (place := text.find(stop)) >= 0]
        return text[: min(found)] if found else text

    def end(self, ids: Sequence[int]) -> bool:
        """Whether a reply under way ends with its last token."""
        if ids[-1] in self.end_ids or ids[-1] in self.kept_ids:
            return True
        if not self.strings:
            return False
        tail = self.tokenizer.decode(list(ids[-self._tail :]), skip_special_tokens=True)
        return any(stop in tail for stop in self.strings if stop)
