"""Blocks on disk, the budget, and the tensors that training sees."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from conftest import pico_model, pico_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_packing import EOS, PAD, documents_of, ledger_of, packed

from kit.data.batches import IGNORE, BlockDataset, collate
from kit.data.budget import blocks_for_budget, epoch_order
from kit.data.ledger import prove
from kit.data.sources import Document
from kit.data.store import BlockStore, build_store, write_blocks
from kit.errors import DataError, StorageError

DOCUMENTS = documents_of([30, 5, 0, 12, 7, 64, 9, 9, 15])


@pytest.fixture
def blocks():
    return packed(DOCUMENTS, seq_len=16)


@pytest.fixture
def store(tmp_path, blocks):
    return write_blocks(tmp_path / "blocks", blocks=blocks, ledger=ledger_of(blocks, DOCUMENTS))


def test_a_store_is_read_back_memory_mapped(store, blocks):
    again = BlockStore.open(store.folder)
    assert isinstance(again.blocks.ids_BT, np.memmap)
    assert np.array_equal(again.blocks.ids_BT, blocks.ids_BT)
    assert np.array_equal(again.blocks.spans_P, blocks.spans_P)
    assert again.ledger == ledger_of(blocks, DOCUMENTS)
    assert (again.blocks.eos_id, again.blocks.pad_id, again.blocks.bos_id) == (EOS, PAD, None)
    prove(again.ledger, again.blocks)
    with pytest.raises(ValueError, match="read-only"):
        again.blocks.ids_BT[0, 0] = 1


def test_only_the_finished_folder_is_left(store):
    assert sorted(os.listdir(store.folder.parent)) == ["blocks"]
    assert sorted(os.listdir(store.folder)) == ["ids.npy", "ledger.json", "spans.npy"]


def test_what_a_killed_run_left_is_replaced(tmp_path, blocks):
    (tmp_path / ".blocks.partial").mkdir()
    (tmp_path / ".blocks.partial" / "junk").write_text("x")
    write_blocks(tmp_path / "blocks", blocks=blocks, ledger=ledger_of(blocks, DOCUMENTS))
    assert sorted(os.listdir(tmp_path / "blocks")) == ["ids.npy", "ledger.json", "spans.npy"]


def test_a_store_is_never_overwritten(store, blocks):
    with pytest.raises(StorageError, match="already"):
        write_blocks(store.folder, blocks=blocks, ledger=store.ledger)


def test_a_store_that_cannot_be_written_is_a_storage_error(tmp_path, blocks):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="cannot be written"):
        write_blocks(
            tmp_path / "file" / "blocks", blocks=blocks, ledger=ledger_of(blocks, DOCUMENTS)
        )


def test_damaged_stores_are_refused(store, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        BlockStore.open(tmp_path / "nowhere")
    ledger = store.folder / "ledger.json"
    about = json.loads(ledger.read_text())
    ledger.write_text(json.dumps({**about, "schema_version": 99}))
    with pytest.raises(DataError, match="schema_version 99"):
        BlockStore.open(store.folder)
    ledger.write_text(json.dumps({**about, "ledger": {**about["ledger"], "blocks": 1}}))
    with pytest.raises(DataError, match="damaged"):
        BlockStore.open(store.folder)
    ledger.write_text(json.dumps(about))
    ids = store.folder / "ids.npy"
    ids.write_bytes(ids.read_bytes()[:-8])
    with pytest.raises(DataError, match="cannot be read"):
        BlockStore.open(store.folder)


def test_documents_to_store_in_one_call(tmp_path):
    texts = ["One day.", "A <|endoftext|> in the text ends nothing.", "x" * 50]
    documents = [Document(str(i), text, None, "s") for i, text in enumerate(texts)]
    tokenizer = pico_tokenizer(chat=False)
    done: list[int] = []
    store = build_store(
        tmp_path / "s",
        tokenizer=tokenizer,
        documents=documents,
        seq_len=32,
        pad_id=tokenizer.pad_token_id,
        progress=done.append,
    )
    assert done == [3]
    assert store.ledger.text_tokens == store.ledger.text_bytes == sum(map(len, texts))
    assert (store.blocks.ids_BT == tokenizer.eos_token_id).sum() == 3
    assert store.blocks.bos_id is None


def drawn_loss(blocks, plan) -> int:
    dataset = BlockDataset(blocks, plan=plan)
    return sum(int((dataset[i]["labels"] != IGNORE).sum()) for i in range(len(dataset)))


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 400), st.integers(0, 5)
)
@settings(max_examples=100, deadline=None)
def test_a_budget_is_met_exactly(lengths, tokens, seed):
    blocks = packed(documents_of([*lengths, 3]), seq_len=16)
    plan = blocks_for_budget(blocks, tokens=tokens, order_seed=seed)
    assert drawn_loss(blocks, plan) == tokens == plan.loss_tokens
    assert plan.last_block_loss_tokens > 0
    assert plan.epochs == pytest.approx(tokens / blocks.loss_tokens().sum())


def test_one_pass_draws_every_block_once(blocks):
    plan = blocks_for_budget(blocks, tokens=None, order_seed=3)
    assert plan.num_blocks == blocks.num_blocks and plan.epochs == 1.0
    assert drawn_loss(blocks, plan) == blocks.loss_tokens().sum()
    dataset = BlockDataset(blocks, plan=plan)
    order = [dataset.block_index(i) for i in range(len(dataset))]
    assert sorted(order) == list(range(blocks.num_blocks))


def test_passes_differ_in_order_and_are_fixed_by_the_seed(blocks):
    total = int(blocks.loss_tokens().sum())
    plan = blocks_for_budget(blocks, tokens=2 * total, order_seed=3)
    dataset = BlockDataset(blocks, plan=plan)
    n = blocks.num_blocks
    order = [dataset.block_index(i) for i in range(2 * n)]
    assert sorted(order[:n]) == sorted(order[n:]) == list(range(n))
    assert order[:n] != order[n:]
    # Jumping about, as a resumed run does, gives the same items.
    assert [dataset.block_index(i) for i in reversed(range(2 * n))] == order[::-1]
    assert order[n:] == epoch_order(n, epoch=1, order_seed=3).tolist()
    other = blocks_for_budget(blocks, tokens=2 * total, order_seed=4)
    assert [BlockDataset(blocks, plan=other).block_index(i) for i in range(n)] != order[:n]


def test_labels_stand_at_their_own_place_and_only_where_loss_is_borne(store):
    blocks = store.blocks
    dataset = BlockDataset(blocks, plan=blocks_for_budget(blocks, tokens=None, order_seed=0))
    for i in range(len(dataset)):
        item, block = dataset[i], dataset.block_index(i)
        assert {v.dtype for v in item.values()} == {torch.int64}
        assert item["input_ids"].tolist() == blocks.ids_BT[block].tolist()
        assert item["position_ids"].tolist() == blocks.positions(block).tolist()
        bears = torch.from_numpy((blocks.positions(block) > 0) & (blocks.documents(block) >= 0))
        assert torch.equal(item["labels"] != IGNORE, bears)
        assert torch.equal(item["labels"][bears], item["input_ids"][bears])
        assert (item["input_ids"][item["labels"] != IGNORE] != PAD).all()


def test_a_label_is_never_the_next_documents_first_token(blocks):
    """With the shift of kit.models.logprobs, label t is predicted from t - 1: same document."""
    dataset = BlockDataset(blocks, plan=blocks_for_budget(blocks, tokens=None, order_seed=0))
    for i in range(len(dataset)):
        document = blocks.documents(dataset.block_index(i))
        for t in np.flatnonzero(dataset[i]["labels"].numpy() != IGNORE):
            assert t > 0 and document[t] == document[t - 1]


def test_batches_have_no_attention_mask(blocks):
    dataset = BlockDataset(blocks, plan=blocks_for_budget(blocks, tokens=None, order_seed=0))
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=collate)
    batch = next(iter(loader))
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    assert {tuple(v.shape) for v in batch.values()} == {(2, 16)}


def test_packed_documents_are_scored_as_if_alone(blocks):
    """What the position ids promise, padding included, on a real forward pass."""
    from kit.models.logprobs import token_nll

    model = pico_model()
    dataset = BlockDataset(blocks, plan=blocks_for_budget(blocks, tokens=None, order_seed=0))
    for i in range(len(dataset)):
        item = dataset[i]
        together = token_nll(
            model, item["input_ids"][None], position_ids_BT=item["position_ids"][None]
        )[0]
        for span in blocks.spans(dataset.block_index(i)):
            piece = slice(int(span["column"]), int(span["column"] + span["length"]))
            alone = token_nll(model, item["input_ids"][None, piece])[0]
            torch.testing.assert_close(together[piece][1:], alone[1:], rtol=1e-4, atol=1e-4)


def test_budget_refusals(blocks):
    with pytest.raises(DataError, match="nothing to train on"):
        blocks_for_budget(blocks, tokens=0, order_seed=0)
    with pytest.raises(DataError, match="0 tokens in the corpus bear loss"):
        blocks_for_budget(packed([[], []], seq_len=8), tokens=5, order_seed=0)
    plan = blocks_for_budget(packed([[1, 2]], seq_len=8), tokens=1, order_seed=0)
    with pytest.raises(DataError, match="the plan is for 1 blocks"):
        BlockDataset(blocks, plan=plan)
    dataset = BlockDataset(packed([[1, 2]], seq_len=8), plan=plan)
    with pytest.raises(IndexError):
        dataset[1]


def test_many_passes_are_said_to_teach_little(blocks):
    total = int(blocks.loss_tokens().sum())
    few = blocks_for_budget(blocks, tokens=4 * total, order_seed=0)
    many = blocks_for_budget(blocks, tokens=5 * total, order_seed=0)
    assert len(few.lines()) == 1 and "4.00 passes" in few.lines()[0]
    assert "repeated text" in many.lines()[1]
