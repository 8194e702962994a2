"""The token account of a corpus: double-entry, so that it can be proved.

One side is counted from the documents before packing, the other from the blocks after it. `prove`
recounts the second side cell by cell and rebuilds every document from its pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from kit.data.packing import Blocks
from kit.data.tokens import TokenIds
from kit.errors import TrainingError
from kit.units import show_bytes, show_count


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What became of every token of a corpus."""

    documents: int
    text_characters: int
    text_bytes: int
    """UTF-8 bytes of the texts."""
    text_tokens: int
    """Tokens of the texts alone."""
    bos_tokens: int
    """One per document, or 0 where the model has no BOS."""
    eos_tokens: int
    """One per document."""
    blocks: int
    seq_len: int
    padding_tokens: int
    """Places of blocks that hold no document's token."""
    dropped_tokens: int
    """Tokens that stand in no block: always 0, and proved to be."""
    pieces: int
    """A document that stands in one block is one piece."""
    split_documents: int
    """Documents of more than one piece."""
    loss_tokens: int
    """Tokens that bear loss in one pass: all but the first of each piece, and no padding."""
    tokens_sha256: str
    """Hash of all tokens, BOS and EOS included, in order of documents, as int32 little endian."""

    @property
    def tokens(self) -> int:
        """Tokens of the corpus, BOS and EOS included."""
        return self.text_tokens + self.bos_tokens + self.eos_tokens

    @property
    def padding_share(self) -> float:
        """Share of the blocks' places that is padding."""
        return self.padding_tokens / (self.blocks * self.seq_len)

    def lines(self) -> list[str]:
        """The account, to be printed."""
        bos = f" + {self.bos_tokens:,} BOS" if self.bos_tokens else ""
        return [
            f"documents: {self.documents:,}, {show_count(self.text_characters)} characters, "
            f"{show_bytes(self.text_bytes)}",
            f"tokens: {self.text_tokens:,} of text{bos} + {self.eos_tokens:,} EOS "
            f"= {self.tokens:,}, each in exactly one block; {self.dropped_tokens} dropped",
            f"blocks: {self.blocks:,} of {self.seq_len:,} tokens, "
            f"{self.padding_tokens:,} padding ({self.padding_share:.2%})",
            f"bearing loss: {self.loss_tokens:,} tokens, all but the first of each of "
            f"{self.pieces:,} pieces; {self.split_documents:,} documents span several",
        ]

    def as_json(self) -> dict[str, Any]:
        """Every field, ready for JSON."""
        return asdict(self)


def account(
    blocks: Blocks,
    *,
    token_lists: Sequence[Sequence[int]] | Sequence[TokenIds],
    texts: Sequence[str],
) -> Ledger:
    """Draw up the account of a packed corpus.

    Args:
        blocks: what `pack` returned.
        token_lists: what it was given.
        texts: the texts of the same documents.
    """
    lengths = [len(ids) for ids in token_lists]
    digest = sha256()
    bos = [] if blocks.bos_id is None else [blocks.bos_id]
    for ids in token_lists:
        for part in (bos, ids, [blocks.eos_id]):
            digest.update(np.asarray(part, dtype="<i4").tobytes())
    tokens = sum(lengths) + len(lengths) * (1 + len(bos))
    placed = int(blocks.spans_P["length"].sum(dtype=np.int64))
    per_document = np.bincount(blocks.spans_P["document"], minlength=len(lengths))
    return Ledger(
        documents=len(lengths),
        text_characters=sum(len(text) for text in texts),
        text_bytes=sum(len(text.encode()) for text in texts),
        text_tokens=sum(lengths),
        bos_tokens=len(lengths) * len(bos),
        eos_tokens=len(lengths),
        blocks=blocks.num_blocks,
        seq_len=blocks.seq_len,
        padding_tokens=blocks.num_blocks * blocks.seq_len - placed,
        dropped_tokens=tokens - placed,
        pieces=len(blocks.spans_P),
        split_documents=int((per_document > 1).sum()),
        loss_tokens=int(blocks.loss_tokens().sum()),
        tokens_sha256=digest.hexdigest(),
    )


def prove(ledger: Ledger, blocks: Blocks) -> None:
    """Recount the blocks and hold them against the ledger.

    Proved: blocks are filled from the left without overlap; the rest is padding and nothing but
    padding; the pieces of each document follow on each other from its first token to its last;
    the EOS stands at each document's end and nowhere else; rebuilt from the blocks, the documents
    have the hash they had before packing.

    Raises:
        TrainingError: something does not add up; names what.
    """
    spans = blocks.spans_P
    _hold("blocks", blocks.num_blocks, ledger.blocks)
    _hold("block length", blocks.seq_len, ledger.seq_len)
    _hold("pieces", len(spans), ledger.pieces)
    _hold("dropped tokens", 0, ledger.dropped_tokens)
    _hold("blocks with text", len(np.unique(spans["block"])), ledger.blocks)
    _prove_run(spans, group="block", start="column", what="blocks filled without gap or overlap")
    order = np.lexsort((spans["offset"], spans["document"]))
    _prove_run(
        spans[order], group="document", start="offset", what="documents that are gapless in order"
    )
    _hold("documents", len(np.unique(spans["document"])), ledger.documents)
    several = np.unique(spans["document"], return_counts=True)[1] > 1
    _hold("split documents", int(several.sum()), ledger.split_documents)
    _prove_cells(ledger, blocks)
    _prove_documents(ledger, blocks, order)


def _hold(what: str, found: int | str, expected: int | str) -> None:
    if found != expected:
        raise TrainingError(
            f"the token blocks do not add up: {what} {found}, but the ledger says {expected}",
            fix="delete the block store and pack the corpus again",
        )


def _prove_run(spans: npt.NDArray[np.void], *, group: str, start: str, what: str) -> None:
    """Each span starts where the one before it in its group ended, the first at 0."""
    ends = spans[start].astype(np.int64) + spans["length"]
    expected = np.zeros(len(spans), dtype=np.int64)
    same = spans[group][1:] == spans[group][:-1]
    expected[1:][same] = ends[:-1][same]
    right = (spans[start] == expected) & (spans["length"] > 0)
    _hold(what, int(right.sum()), len(spans))


def _prove_cells(ledger: Ledger, blocks: Blocks) -> None:
    """Recount padding, EOS and loss from the ids, some blocks at a time."""
    spans = blocks.spans_P
    used_B = np.zeros(blocks.num_blocks, dtype=np.int64)
    np.add.at(used_B, spans["block"], spans["length"])
    padding = eos = 0
    for first in range(0, blocks.num_blocks, 1024):
        ids_BT = np.asarray(blocks.ids_BT[first : first + 1024])
        is_text_BT = np.arange(blocks.seq_len) < used_B[first : first + 1024, None]
        padding += int((~is_text_BT & (ids_BT == blocks.pad_id)).sum())
        eos += int((ids_BT == blocks.eos_id).sum())
    _hold("padding tokens", padding, ledger.padding_tokens)
    _hold("EOS tokens", eos, ledger.eos_tokens)
    _hold("tokens", int(used_B.sum()), ledger.tokens)
    _hold("loss tokens", sum(int(n) for n in blocks.loss_tokens()), ledger.loss_tokens)


def _prove_documents(ledger: Ledger, blocks: Blocks, order: npt.NDArray[np.intp]) -> None:
    """Rebuild the documents from their pieces; the EOS must be the last token of each."""
    digest, bos, ends = sha256(), 0, 0
    rows = blocks.spans_P[order].tolist()
    for index, (block, column, document, offset, length) in enumerate(rows):
        piece = blocks.ids_BT[block, column : column + length]
        digest.update(piece.astype("<i4", copy=False).tobytes())
        bos += offset == 0 and piece[0] == blocks.bos_id
        is_last = index + 1 == len(rows) or rows[index + 1][2] != document
        ends += is_last and piece[-1] == blocks.eos_id
    _hold("documents that end in the EOS", int(ends), ledger.eos_tokens)
    _hold("documents that begin with the BOS", int(bos), ledger.bos_tokens)
    _hold("tokens", digest.hexdigest(), ledger.tokens_sha256)
