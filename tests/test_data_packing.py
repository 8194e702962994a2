"""Each token of each document stands in exactly one block, and the ledger proves it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.data.ledger import Ledger, account, prove
from kit.data.packing import MOST_PADDING, SPAN, Blocks, pack
from kit.errors import DataError, TrainingError

EOS, PAD, BOS = 100, 101, 102


def documents_of(lengths: list[int]) -> list[list[int]]:
    """Documents whose tokens tell them apart: 0, 1, 2, ... modulo 97, from a start of their own."""
    return [[(7 * d + i) % 97 for i in range(length)] for d, length in enumerate(lengths)]


def packed(documents, *, seq_len: int, seed: int = 0, bos_id: int | None = None) -> Blocks:
    return pack(documents, seq_len=seq_len, eos_id=EOS, pad_id=PAD, bos_id=bos_id, seed=seed)


def ledger_of(blocks: Blocks, documents) -> Ledger:
    return account(blocks, token_lists=documents, texts=["x"] * len(documents))


def rows(blocks: Blocks) -> set[tuple[int, ...]]:
    return {tuple(row) for row in blocks.ids_BT.tolist()}


def recounted(blocks: Blocks, count: int) -> list[list[int]]:
    """The documents as they stand in the blocks, by a second, slow way: token by token."""
    found: list[dict[int, int]] = [{} for _ in range(count)]
    for span in blocks.spans_P:
        for i in range(span["length"]):
            place = int(span["offset"]) + i
            assert place not in found[span["document"]]
            token = blocks.ids_BT[span["block"], span["column"] + i]
            found[span["document"]][place] = int(token)
    return [[tokens[i] for i in range(len(tokens))] for tokens in found]


def test_short_documents_share_a_block_and_stay_whole():
    blocks = packed([[1, 2, 3], [4, 5, 6, 7]], seq_len=10)
    assert blocks.ids_BT.tolist() == [[4, 5, 6, 7, EOS, 1, 2, 3, EOS, PAD]]
    assert blocks.positions(0).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0]
    assert blocks.documents(0).tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0, -1]
    expected = [False, True, True, True, True, False, True, True, True, False]
    assert blocks.loss_mask(0).tolist() == expected
    assert blocks.loss_tokens().tolist() == [7]


def test_a_long_document_continues_in_another_block():
    blocks = packed([list(range(10))], seq_len=6)
    assert rows(blocks) == {(0, 1, 2, 3, 4, 5), (6, 7, 8, 9, EOS, PAD)}
    ledger = ledger_of(blocks, [list(range(10))])
    assert (ledger.pieces, ledger.split_documents, ledger.loss_tokens) == (2, 1, 9)
    assert (ledger.padding_tokens, ledger.dropped_tokens, ledger.eos_tokens) == (1, 0, 1)


def test_an_eos_is_never_alone_in_a_piece():
    """6 tokens and the EOS in blocks of 6: the EOS takes one token with it, so it is learned."""
    blocks = packed([[0, 1, 2, 3, 4, 5]], seq_len=6)
    assert rows(blocks) == {(0, 1, 2, 3, 4, PAD), (5, EOS, PAD, PAD, PAD, PAD)}


def test_a_bos_stands_before_each_document_and_not_before_each_piece():
    blocks = packed([list(range(10)), [1, 2]], seq_len=8, bos_id=BOS)
    assert rows(blocks) == {
        (BOS, 0, 1, 2, 3, 4, 5, 6),
        (7, 8, 9, EOS, BOS, 1, 2, EOS),
    }
    ledger = ledger_of(blocks, [list(range(10)), [1, 2]])
    assert (ledger.bos_tokens, ledger.eos_tokens, ledger.text_tokens) == (2, 2, 12)
    prove(ledger, blocks)


def test_an_empty_document_is_its_eos():
    blocks = packed([[], [1, 2, 3]], seq_len=6)
    assert blocks.ids_BT.tolist() == [[1, 2, 3, EOS, EOS, PAD]]
    assert blocks.positions(0).tolist() == [0, 1, 2, 3, 0, 0]
    prove(ledger_of(blocks, [[], [1, 2, 3]]), blocks)


def test_padding_is_isolated_by_position_ids():
    """Padding has positions of its own that restart, so it is one more document to attention."""
    blocks = packed([[1, 2, 3]], seq_len=8)
    assert blocks.positions(0).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


lengths = st.lists(st.integers(0, 70), min_size=1, max_size=40)


@given(lengths, st.integers(2, 33), st.sampled_from([None, BOS]), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_every_token_stands_in_exactly_one_block(lengths, seq_len, bos_id, seed):
    documents = documents_of(lengths)
    blocks = packed(documents, seq_len=seq_len, bos_id=bos_id, seed=seed)
    start = [] if bos_id is None else [bos_id]
    whole = [[*start, *ids, EOS] for ids in documents]
    assert recounted(blocks, len(documents)) == whole
    places = sum(len(ids) for ids in whole)
    is_text = np.array([blocks.documents(b) >= 0 for b in range(blocks.num_blocks)])
    assert is_text.sum() == places
    assert (blocks.ids_BT[~is_text] == PAD).all()
    assert (blocks.ids_BT == EOS).sum() == len(documents)
    prove(ledger_of(blocks, documents), blocks)


@given(lengths, st.integers(2, 33))
@settings(max_examples=100, deadline=None)
def test_positions_restart_exactly_where_a_piece_begins(lengths, seq_len):
    blocks = packed(documents_of(lengths), seq_len=seq_len)
    for block in range(blocks.num_blocks):
        position, document = blocks.positions(block), blocks.documents(block)
        starts = {int(column) for column in blocks.spans(block)["column"]}
        for column in range(1, seq_len):
            if column in starts:
                assert position[column] == 0
            elif document[column] >= 0:
                assert document[column] == document[column - 1]
                assert position[column] == position[column - 1] + 1
        assert blocks.loss_mask(block).sum() == blocks.loss_tokens()[block]


@given(st.lists(st.integers(0, 900), min_size=1, max_size=200), st.sampled_from([128, 256, 512]))
@settings(max_examples=60, deadline=None)
def test_padding_is_at_most_two_per_cent_and_one_block(lengths, seq_len):
    blocks = packed(documents_of(lengths), seq_len=seq_len)
    ledger = ledger_of(blocks, documents_of(lengths))
    prove(ledger, blocks)
    most = MOST_PADDING * ledger.blocks * seq_len + seq_len
    assert ledger.padding_tokens <= most


@pytest.mark.parametrize("length", [520, 600, 700, 341 + 30])
def test_documents_of_more_than_half_a_block_are_cut_to_fill_gaps(length):
    """The worst case of best-fit: no two of them share a block of 1024, 49 to 32 % would be pad."""
    documents = documents_of([length] * 600)
    blocks = packed(documents, seq_len=1024)
    ledger = ledger_of(blocks, documents)
    prove(ledger, blocks)
    assert ledger.padding_share < 0.025
    assert 0 < ledger.split_documents < 600
    assert blocks.spans_P["length"].min() >= 1024 // 64


def test_the_emptiest_blocks_are_the_ones_taken_apart():
    """Full blocks stay as they are; only documents that leave gaps are cut."""
    documents = documents_of([1023] * 100 + [600] * 300)
    blocks = packed(documents, seq_len=1024)
    cut = blocks.spans_P["document"][blocks.spans_P["offset"] > 0]
    assert len(cut) > 0 and cut.min() >= 100


def test_documents_that_fit_well_are_never_cut():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5.5, 1.0, size=3000).astype(int), 1000).tolist()
    documents = documents_of(lengths)
    ledger = ledger_of(packed(documents, seq_len=1024), documents)
    assert ledger.split_documents == 0
    assert ledger.padding_share < MOST_PADDING


def test_the_seed_orders_the_blocks_and_nothing_else():
    documents = documents_of(list(range(1, 60)))
    one, same, other = (packed(documents, seq_len=64, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.ids_BT, same.ids_BT)
    assert np.array_equal(one.spans_P, same.spans_P)
    assert not np.array_equal(one.ids_BT, other.ids_BT)
    assert rows(one) == rows(other)


def test_lists_and_arrays_pack_alike():
    documents = documents_of([5, 40, 9])
    arrays = [np.array(ids, dtype=np.int32) for ids in documents]
    assert np.array_equal(packed(documents, seq_len=16).ids_BT, packed(arrays, seq_len=16).ids_BT)


def test_refusals():
    with pytest.raises(DataError, match="document 1, token 2"):
        packed([[1, 2], [3, 4, EOS, 5]], seq_len=8)
    with pytest.raises(DataError, match="must not be the EOS"):
        pack([[1]], seq_len=8, eos_id=EOS, pad_id=EOS)
    with pytest.raises(DataError, match="must not be the EOS"):
        packed([[1]], seq_len=8, bos_id=EOS)
    with pytest.raises(DataError, match="0 documents"):
        packed([], seq_len=8)
    with pytest.raises(DataError, match="seq_len 1"):
        packed([[1]], seq_len=1)


@pytest.fixture
def proved():
    documents = documents_of([30, 5, 0, 12, 7, 64])
    blocks = packed(documents, seq_len=16)
    ledger = ledger_of(blocks, documents)
    prove(ledger, blocks)
    return blocks, ledger


@pytest.mark.parametrize(
    ("place", "value"), [("text", 55), ("text", EOS), ("padding", 3), ("padding", EOS)]
)
def test_the_proof_finds_one_wrong_cell(proved, place, value):
    blocks, ledger = proved
    ids = blocks.ids_BT.copy()
    index = np.array([blocks.documents(b) for b in range(blocks.num_blocks)])
    row, column = np.argwhere((index >= 0) if place == "text" else (index < 0))[0]
    assert ids[row, column] != value
    ids[row, column] = value
    with pytest.raises(TrainingError, match="do not add up"):
        prove(ledger, replace(blocks, ids_BT=ids))


@pytest.mark.parametrize("field", ["block", "column", "document", "offset", "length"])
@pytest.mark.parametrize("step", [-1, 1])
def test_the_proof_finds_one_wrong_span(proved, field, step):
    blocks, ledger = proved
    for index in range(len(blocks.spans_P)):
        spans = blocks.spans_P.copy()
        spans[field][index] += step
        if not 0 <= spans["block"][index] < blocks.num_blocks:
            continue
        with pytest.raises(TrainingError, match="do not add up"):
            prove(ledger, replace(blocks, spans_P=spans))


def test_the_proof_finds_two_documents_that_changed_places(proved):
    """Same counts everywhere; only the rebuilt text differs."""
    blocks, ledger = proved
    ids = blocks.ids_BT.copy()
    ids[:, [0, 1]] = ids[:, [1, 0]]
    with pytest.raises(TrainingError, match="tokens"):
        prove(ledger, replace(blocks, ids_BT=ids))


def by_hand(rows, spans, *, bos_id: int | None = None) -> Blocks:
    ids, pieces = np.array(rows, dtype=np.int32), np.array(spans, dtype=SPAN)
    return Blocks(ids_BT=ids, spans_P=pieces, eos_id=EOS, pad_id=PAD, bos_id=bos_id)


def test_the_proof_finds_an_eos_inside_a_document():
    blocks = by_hand([[1, EOS, 2, EOS, PAD]], [(0, 0, 0, 0, 4)])
    with pytest.raises(TrainingError, match="EOS tokens 2, but the ledger says 1"):
        prove(ledger_of(blocks, [[1, EOS, 2]]), blocks)


def test_the_proof_finds_a_border_that_moved():
    """Same ids, same order; but attention would see one document's end from the next."""
    right = by_hand([[1, 2, EOS, 3, EOS]], [(0, 0, 0, 0, 3), (0, 3, 1, 0, 2)])
    ledger = ledger_of(right, [[1, 2], [3]])
    prove(ledger, right)
    moved = by_hand([[1, 2, EOS, 3, EOS]], [(0, 0, 0, 0, 2), (0, 2, 1, 0, 3)])
    with pytest.raises(TrainingError, match="end in the EOS 1, but the ledger says 2"):
        prove(ledger, moved)


def test_the_proof_finds_a_block_of_nothing_but_padding():
    blocks = by_hand([[1, EOS], [PAD, PAD]], [(0, 0, 0, 0, 2)])
    with pytest.raises(TrainingError, match="blocks with text 1, but the ledger says 2"):
        prove(ledger_of(blocks, [[1]]), blocks)


def test_the_proof_finds_a_bos_that_is_counted_but_not_there():
    blocks = by_hand([[1, 2, EOS]], [(0, 0, 0, 0, 3)])
    ledger = replace(ledger_of(blocks, [[1, 2]]), bos_tokens=1, text_tokens=1)
    with pytest.raises(TrainingError, match="begin with the BOS 0, but the ledger says 1"):
        prove(ledger, blocks)


@pytest.mark.parametrize(
    "field",
    [
        "documents",
        "text_tokens",
        "bos_tokens",
        "eos_tokens",
        "blocks",
        "padding_tokens",
        "dropped_tokens",
        "pieces",
        "split_documents",
        "loss_tokens",
    ],
)
def test_the_proof_finds_a_wrong_account(proved, field):
    blocks, ledger = proved
    with pytest.raises(TrainingError):
        prove(replace(ledger, **{field: getattr(ledger, field) + 1}), blocks)


def test_the_account_is_printed_in_full(proved):
    _, ledger = proved
    text = "\n".join(ledger.lines())
    assert "6 EOS" in text and "BOS" not in text and "0 dropped" in text
    assert f"{ledger.padding_tokens:,} padding" in text
    assert ledger.tokens == 118 + 6
