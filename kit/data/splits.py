"""Which documents are learned and which are kept to measure with; none is both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from kit.data.rows import iso_date
from kit.data.sources import Document
from kit.errors import DataError
from kit.units import show_count


@dataclass(frozen=True)
class Split:
    """Training and held-out documents, each in the order they came in."""

    train: tuple[Document, ...]
    heldout: tuple[Document, ...]
    duplicates: int
    """Documents taken out of training because their text is a held-out one."""
    how: str
    """The rule, in words."""

    def lines(self) -> list[str]:
        """The split, to be printed."""
        counts = f"{show_count(len(self.train))} to learn, {show_count(len(self.heldout))} held out"
        removed = f"; {self.duplicates} more left out: same text as a held-out document"
        return [f"{counts} ({self.how}){removed if self.duplicates else ''}"]


def split_documents(
    documents: Sequence[Document],
    *,
    every: int | None = None,
    from_date: str | None = None,
    share: float | None = None,
    heldout_documents: Sequence[Document] | None = None,
    seed: int = 0,
) -> Split:
    """Split documents in exactly one of four ways.

    A document whose text, blanks aside, is that of a held-out one is not trained on: else the
    measurement would read back what was learned by heart.

    Args:
        documents: in order (of date, where there are dates).
        every: every n-th document is held out: the n-th, the 2n-th, ...
        from_date: documents of this ISO date and later are held out.
        share: this share is held out, drawn with `seed`; at least one document.
        heldout_documents: these are held out; `documents` are for training.
        seed: of the draw.

    Raises:
        DataError: not exactly one way is named, or one side has no document.
    """
    _require_one_way(
        every=every, from_date=from_date, share=share, heldout_documents=heldout_documents
    )
    if heldout_documents is not None:
        kept, heldout, how = list(documents), list(heldout_documents), "from sources of their own"
    else:
        chosen, how = _chosen(documents, every=every, from_date=from_date, share=share, seed=seed)
        heldout = [d for d, out in zip(documents, chosen, strict=True) if out]
        kept = [d for d, out in zip(documents, chosen, strict=True) if not out]
    taken = {_fingerprint(document.text) for document in heldout}
    train = [document for document in kept if _fingerprint(document.text) not in taken]
    split = Split(tuple(train), tuple(heldout), len(kept) - len(train), how)
    if not split.train or not split.heldout:
        side = "hold out" if not split.heldout else "learn"
        raise DataError(
            f"the split leaves no document to {side}",
            where=f"{how}, of {len(documents)} documents",
            fix="hold out another share, or read more documents",
        )
    return split


def _require_one_way(**ways: object) -> None:
    named = [name for name, value in ways.items() if value is not None]
    if len(named) != 1:
        raise DataError(
            f"documents are held out in exactly one way, not {len(named)}",
            where=", ".join(named) or "no way is named",
            fix=f"name one of {', '.join(ways)}",
        )


def _chosen(
    documents: Sequence[Document],
    *,
    every: int | None,
    from_date: str | None,
    share: float | None,
    seed: int,
) -> tuple[list[bool], str]:
    """For each document, whether it is held out; and the rule in words."""
    count = len(documents)
    if every is not None:
        if every < 2:
            raise DataError(
                "every must be 2 or more, else nothing is left to learn",
                where=f"every {every}",
                fix="hold out every 10th document, say",
            )
        return [(i + 1) % every == 0 for i in range(count)], f"one document in {every}"
    if from_date is not None:
        start = iso_date(from_date, where="held-out from_date")
        undated = next((d for d in documents if d.date is None), None)
        if undated is not None:
            raise DataError(
                "documents are to be held out by date, but this one has none",
                where=undated.id,
                fix="name the field with date_field, or hold out a share",
            )
        return [str(d.date) >= start for d in documents], f"from {start} on"
    if share is None or not 0.0 < share < 1.0:
        raise DataError(
            "the share to hold out must be above 0 and below 1",
            where=f"share {share}",
            fix="hold out 0.1, say",
        )
    drawn = np.random.default_rng(seed).permutation(count)[: max(1, round(share * count))]
    chosen = np.zeros(count, dtype=bool)
    chosen[drawn] = True
    return chosen.tolist(), f"a random {share:.3g} of the documents, seed {seed}"


def _fingerprint(text: str) -> bytes:
    """Equal for texts that differ in blanks and line breaks alone."""
    return blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
