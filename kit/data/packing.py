"""Documents to blocks of one length, without joining, cutting off or repeating anything.

    documents    [a a a E]  [b b b b b b b b b b E]  [c c E]        E: the end-of-text token
    seq_len 6    | b b b b b b |   | b b b b E . |   | a a a E . . |     . padding
    positions      0 1 2 3 4 5       0 1 2 3 4 0       0 1 2 3 0 1

- One EOS after each document and nowhere else, one BOS before it where the model wants one.
- A document that fits a block stays whole; a longer one continues in another block.
- Position ids restart at every piece: with `use_cache=False` and no attention mask, that is what
  keeps attention within the document. The first token of a piece has no context and no loss.

Pieces are placed by best-fit decreasing: longest first, each into the fullest block that has room.
Where that leaves more than `MOST_PADDING` (documents of just over half a block do), the emptiest
blocks are taken apart and poured into the largest gaps of the others, which cuts a document at
each gap: the price is one token without loss per cut and less context behind it, so the largest
gaps are filled first and no piece gets shorter than a 64th of a block.

Shape letters: B blocks, T seq_len, P pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kit.data.tokens import TokenIds
from kit.errors import DataError

MOST_PADDING = 0.02
"""Share of padding above which documents that would fit a block are cut to fill gaps."""

SPAN = np.dtype(
    [("block", "<i4"), ("column", "<i4"), ("document", "<i4"), ("offset", "<i8"), ("length", "<i4")]
)
"""A piece: where it stands, and which tokens of which document it holds."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Packed documents, in memory or memory-mapped."""

    ids_BT: TokenIds
    """Token ids, int32."""
    spans_P: npt.NDArray[np.void]
    """Every piece (dtype SPAN), in order of block and column, without gaps before or between."""
    eos_id: int
    pad_id: int
    bos_id: int | None

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return int(self.ids_BT.shape[0])

    @property
    def seq_len(self) -> int:
        """Tokens per block, padding included."""
        return int(self.ids_BT.shape[1])

    def spans(self, block: int) -> npt.NDArray[np.void]:
        """The pieces of one block, in order."""
        return self.spans_P[self._firsts[block] : self._firsts[block + 1]]

    @cached_property
    def _firsts(self) -> npt.NDArray[np.intp]:
        """The first piece of each block, and the end of the last one; (blocks + 1,)."""
        return np.searchsorted(self.spans_P["block"], np.arange(self.num_blocks + 1))

    def positions(self, block: int) -> TokenIds:
        """Position ids of one block, (seq_len,); padding counts as one more piece."""
        lengths = self.spans(block)["length"].tolist()
        lengths.append(self.seq_len - sum(lengths))
        return np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])

    def documents(self, block: int) -> TokenIds:
        """Index of the document of each token of one block, -1 for padding; (seq_len,)."""
        spans = self.spans(block)
        index = np.full(self.seq_len, -1, dtype=np.int32)
        named = np.repeat(spans["document"], spans["length"])
        index[: len(named)] = named
        return index

    def loss_mask(self, block: int) -> npt.NDArray[np.bool_]:
        """Which tokens of one block bear loss: text behind the first token of its piece."""
        mask: npt.NDArray[np.bool_] = (self.positions(block) > 0) & (self.documents(block) >= 0)
        return mask

    def loss_tokens(self) -> npt.NDArray[np.int64]:
        """Number of tokens that bear loss in each block, (blocks,)."""
        per_block = np.zeros(self.num_blocks, dtype=np.int64)
        np.add.at(per_block, self.spans_P["block"], self.spans_P["length"].astype(np.int64) - 1)
        return per_block


class _Piece(NamedTuple):
    length: int
    document: int
    offset: int


def pack(
    token_lists: Sequence[Sequence[int]] | Sequence[TokenIds],
    *,
    seq_len: int,
    eos_id: int,
    pad_id: int,
    bos_id: int | None = None,
    seed: int = 0,
) -> Blocks:
    """Pack documents into blocks; nothing is dropped.

    Args:
        token_lists: token ids of each document, without BOS and EOS.
        seq_len: tokens per block.
        eos_id: appended to each document.
        pad_id: fills up blocks; bears no loss and is never the EOS.
        bos_id: put before each document; None where the model has none.
        seed: of the order of the blocks.

    Raises:
        DataError: pad or BOS is the EOS, a document holds the EOS, or there is no document.
    """
    _check_arguments(len(token_lists), seq_len=seq_len, eos_id=eos_id, others=(pad_id, bos_id))
    lengths_D = np.array([len(ids) for ids in token_lists], dtype=np.int64)
    stream = _flat(token_lists, int(lengths_D.sum()))
    starts_D = np.cumsum(lengths_D) - lengths_D
    _refuse_eos(stream, starts_D, eos_id)

    least = max(2, seq_len // 64)
    extra = 1 if bos_id is None else 2
    pieces = [
        piece
        for document, length in enumerate(lengths_D.tolist())
        for piece in _pieces(document, length + extra, seq_len=seq_len, least=least)
    ]
    plan = _fill_gaps(_best_fit(pieces, seq_len), seq_len=seq_len, least=least)
    order = np.random.default_rng(seed).permutation(len(plan))
    spans_P = _spans([plan[i] for i in order.tolist()])
    ids_BT = np.full((len(plan), seq_len), pad_id, dtype=np.int32)
    for block, column, document, offset, length in spans_P.tolist():
        start = int(starts_D[document])
        text = stream[start : start + int(lengths_D[document])]
        row = ids_BT[block, column : column + length]
        _copy(text, row, offset=offset, bos_id=bos_id, eos_id=eos_id)
    return Blocks(ids_BT=ids_BT, spans_P=spans_P, eos_id=eos_id, pad_id=pad_id, bos_id=bos_id)


def _check_arguments(
    documents: int, *, seq_len: int, eos_id: int, others: tuple[int | None, ...]
) -> None:
    if eos_id in others:
        raise DataError(
            "padding or BOS must not be the EOS: the ends of documents could not be told apart",
            where=f"eos_id {eos_id}, pad_id {others[0]}, bos_id {others[1]}",
            fix="pad with another special token; leave a BOS that is the EOS out",
        )
    if seq_len < 2 or not documents:
        raise DataError(
            "blocks need at least 2 tokens and 1 document",
            where=f"seq_len {seq_len}, {documents} documents",
            fix="set seq_len to 512 or more, and check the sources",
        )


def _flat(token_lists: Sequence[Sequence[int]] | Sequence[TokenIds], total: int) -> TokenIds:
    if isinstance(token_lists[0], np.ndarray):
        return np.concatenate(token_lists).astype(np.int32, copy=False)
    return np.fromiter(chain.from_iterable(token_lists), dtype=np.int32, count=total)


def _refuse_eos(stream: TokenIds, starts_D: npt.NDArray[np.int64], eos_id: int) -> None:
    found = np.flatnonzero(stream == eos_id)
    if not len(found):
        return
    document = int(np.searchsorted(starts_D, found[0], side="right")) - 1
    raise DataError(
        f"the EOS (id {eos_id}) stands inside a document, which would end there",
        where=f"document {document}, token {int(found[0] - starts_D[document])}",
        fix="tokenise without parsing special tokens in the text (tokenize_documents does)",
    )


def _pieces(document: int, length: int, *, seq_len: int, least: int) -> list[_Piece]:
    """A document as pieces of at most `seq_len`.

    A rest shorter than `least` takes what it lacks from the piece before: an EOS alone in its
    piece would have no context and bear no loss.
    """
    full, rest = divmod(length, seq_len)
    sizes = [seq_len] * full + ([rest] if rest else [])
    if full and 0 < rest < least:
        sizes[-2:] = [seq_len - (least - rest), least]
    offset, pieces = 0, []
    for size in sizes:
        pieces.append(_Piece(size, document, offset))
        offset += size
    return pieces


def _best_fit(pieces: Iterable[_Piece], seq_len: int) -> list[list[_Piece]]:
    """Best-fit decreasing, in time n log n for the sort and n * seq_len / 64 for the search."""
    blocks: list[list[_Piece]] = []
    with_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    rooms = 0  # bit r is set where a block has r free places: the best fit is the lowest bit left
    for piece in sorted(pieces, key=lambda p: -p.length):
        fitting = rooms >> piece.length
        if fitting:
            room = piece.length + (fitting & -fitting).bit_length() - 1
            block = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, block = seq_len, len(blocks)
            blocks.append([])
        blocks[block].append(piece)
        room -= piece.length
        if room:
            with_room[room].append(block)
            rooms |= 1 << room
    return blocks


def _fill_gaps(blocks: list[list[_Piece]], *, seq_len: int, least: int) -> list[list[_Piece]]:
    """Take blocks apart to fill the gaps of others, until little enough is padding."""
    while True:
        tokens = sum(piece.length for block in blocks for piece in block)
        # Fewest blocks that hold the tokens, or that leave MOST_PADDING, whichever is more.
        needed = max(-(-tokens // seq_len), int(tokens / (1 - MOST_PADDING) / seq_len))
        surplus = len(blocks) - needed
        if surplus <= 0:
            return blocks
        fuller = _pour(blocks, surplus, seq_len=seq_len, least=least)
        if len(fuller) >= len(blocks):
            return blocks
        blocks = fuller


def _pour(
    blocks: list[list[_Piece]], surplus: int, *, seq_len: int, least: int
) -> list[list[_Piece]]:
    """Pour the pieces of the `surplus` emptiest blocks into the largest gaps of the others."""
    by_fill = sorted(blocks, key=lambda block: sum(piece.length for piece in block))
    kept = [list(block) for block in by_fill[surplus:]]
    rooms = [seq_len - sum(piece.length for piece in block) for block in kept]
    loose = sorted(chain.from_iterable(by_fill[:surplus]), key=lambda p: p.length)
    unplaced, gap = [], 0
    while loose and gap < len(kept):
        piece, room = loose.pop(), rooms[gap]
        take = _cut(piece.length, room, least)
        if not take:
            loose.append(piece)
            gap += 1  # the largest gap left: too small for a cut, so it stays padding
            continue
        kept[gap].append(_Piece(take, piece.document, piece.offset))
        rooms[gap] -= take
        if take < piece.length:
            rest = _Piece(piece.length - take, piece.document, piece.offset + take)
            loose.append(rest)
            gap += 1
    unplaced += loose
    return kept + _best_fit(unplaced, seq_len)


def _cut(length: int, room: int, least: int) -> int:
    """How much of a piece to put into a gap: all, or a part that leaves neither part too short."""
    if length <= room:
        return length
    part = min(room, length - least)
    return part if part >= least else 0


def _spans(plan: list[list[_Piece]]) -> npt.NDArray[np.void]:
    rows = []
    for block, pieces in enumerate(plan):
        column = 0
        for piece in pieces:
            rows.append((block, column, piece.document, piece.offset, piece.length))
            column += piece.length
    return np.array(rows, dtype=SPAN)


def _copy(text: TokenIds, row: TokenIds, *, offset: int, bos_id: int | None, eos_id: int) -> None:
    """Write one piece of (BOS) text EOS, from `offset` on, into its place in a block."""
    filled = 0
    if bos_id is not None and offset == 0:
        row[0] = bos_id
        filled = 1
    elif bos_id is not None:
        offset -= 1  # the BOS is no token of the text
    part = text[offset : offset + len(row) - filled]
    row[filled : filled + len(part)] = part
    if filled + len(part) < len(row):
        row[-1] = eos_id
