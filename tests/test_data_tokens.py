"""Text to tokens: no special token comes out of a text, with either kind of tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import pico_tokenizer
from tokenizers import Tokenizer, processors

from kit.data.ledger import prove
from kit.data.packing import pack
from kit.data.sources import Document, read_documents
from kit.data.store import build_store
from kit.data.tokens import document_bos_id, tokenize_documents

TEXTS = [
    "plain",
    "it says <|endoftext|> and <|pad|><|user|> here",
    "\u00e9\u00df\u4e2d \U0001f600\n",
]


def documents(texts: list[str]) -> list[Document]:
    return [Document(str(i), text, None, "test") for i, text in enumerate(texts)]


def plain_tokenizer() -> Tokenizer:
    """As a plan reads it from tokenizer.json."""
    return Tokenizer.from_str(pico_tokenizer(chat=False).backend_tokenizer.to_str())


def with_bos(token: str = "<|system|>") -> Tokenizer:
    tokenizer = plain_tokenizer()
    bos = tokenizer.token_to_id(token)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, bos)]
    )
    return tokenizer


@pytest.mark.parametrize("make", [lambda: pico_tokenizer(chat=True), plain_tokenizer, with_bos])
def test_special_tokens_in_a_text_are_text(make):
    tokenizer = make()
    ids = tokenize_documents(tokenizer, documents(TEXTS))
    assert [len(row) for row in ids] == [len(text.encode()) for text in TEXTS]
    assert all(row.max() < 256 and row.dtype == np.int32 for row in ids)
    blocks = pack(ids, seq_len=32, eos_id=256, pad_id=257)
    assert (blocks.ids_BT == 256).sum() == len(TEXTS)


def test_both_kinds_of_tokenizer_agree():
    one = tokenize_documents(pico_tokenizer(chat=False), documents(TEXTS), batch_size=2)
    other = tokenize_documents(plain_tokenizer(), documents(TEXTS))
    assert [row.tolist() for row in one] == [row.tolist() for row in other]


def test_settings_that_cut_or_pad_are_not_obeyed_and_not_changed():
    tokenizer = plain_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    ids = tokenize_documents(tokenizer, documents(["a text of more than four bytes"]))
    assert len(ids[0]) == 30
    assert tokenizer.truncation["max_length"] == 4 and tokenizer.padding["length"] == 64
    assert tokenizer.encode_special_tokens is False


def test_a_text_longer_than_the_context_is_neither_cut_nor_warned_about(caplog):
    tokenizer = pico_tokenizer(chat=False)
    tokenizer.model_max_length = 10
    assert len(tokenize_documents(tokenizer, documents(["x" * 100]))[0]) == 100
    assert not caplog.records


def test_a_bos_is_found_by_what_the_tokenizer_does():
    from transformers import PreTrainedTokenizerFast

    assert document_bos_id(plain_tokenizer()) is None
    assert document_bos_id(with_bos()) == 261
    named = pico_tokenizer(chat=False)
    named.bos_token = "<|system|>"  # named, but never written
    assert document_bos_id(named) is None
    fast = PreTrainedTokenizerFast(tokenizer_object=with_bos(), eos_token="<|endoftext|>")
    assert document_bos_id(fast) == 261
    assert tokenize_documents(fast, documents(["ab"]))[0].tolist() == [64, 65]


@pytest.mark.parametrize(
    ("token", "bos"), [("<|system|>", 261), ("<|endoftext|>", None)], ids=["own", "the-eos"]
)
def test_a_bos_that_is_the_eos_is_left_out(tmp_path, token, bos):
    """OPT's is: written before each document, it would be a second EOS."""
    store = build_store(
        tmp_path / "s",
        tokenizer=with_bos(token),
        documents=documents(["one", "two"]),
        seq_len=16,
        pad_id=257,
        eos_id=256,
    )
    assert store.blocks.bos_id == bos and store.ledger.bos_tokens == (2 if bos else 0)
    assert (store.blocks.ids_BT == 256).sum() == 2


def test_progress_is_reported():
    done: list[int] = []
    tokenize_documents(plain_tokenizer(), documents(["a"] * 5), batch_size=2, progress=done.append)
    assert done == [2, 4, 5]


def test_real_text_is_packed_and_proved(real_data, tmp_path):
    read = read_documents([str(real_data / "text" / "python_peps.jsonl")], date_field="date")
    tokenizer = pico_tokenizer(chat=False)
    store = build_store(
        tmp_path / "peps",
        tokenizer=tokenizer,
        documents=read.documents[:60],
        seq_len=1024,
        pad_id=tokenizer.pad_token_id,
    )
    prove(store.ledger, store.blocks)
    assert store.ledger.text_tokens == sum(len(d.text.encode()) for d in read.documents[:60])
    assert store.ledger.padding_share < 0.02
