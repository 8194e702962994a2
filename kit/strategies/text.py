"""The text stage: what every training and measurement of a study reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kit.data.sources import Document
from kit.data.store import BlockStore, build_store
from kit.errors import DataError
from kit.progress import counted
from kit.strategies.measuring import GENERAL, HELDOUT
from kit.strategies.study import Study
from kit.units import show_count

BLOCKS = "blocks"


def write_text_stage(study: Study, folder: Path) -> str:
    """Pack the training documents, and write down what is measured; says what came out."""
    write_measured_text(study, folder)
    if study.recipe.corpus is None:
        return "nothing to learn"
    recipe, split = study.recipe, study.split
    with counted(study.progress, "tokenise") as progress:
        store = build_store(
            folder / BLOCKS,
            tokenizer=study.text_tokenizer,
            documents=split.train,
            seq_len=recipe.train.seq_len,
            pad_id=study.padding,
            eos_id=study.document_end,
            progress=lambda done: progress(done, len(split.train)),
        )
    if store.ledger.tokens < recipe.train.seq_len:
        raise DataError(
            f"the text to learn has {store.ledger.tokens} tokens, less than one block of "
            f"{recipe.train.seq_len}",
            where="corpus.sources",
            fix="give more text, or lower train.seq_len",
        )
    for line in store.ledger.lines():
        study.decide(line)
    return f"{show_count(store.ledger.loss_tokens)} tokens that can bear loss"


def write_measured_text(study: Study, folder: Path) -> None:
    """Write down the held-out and general documents."""
    evaluate, recipe, split = study.evaluate, study.recipe, study.split
    if recipe.corpus is not None:
        for line in [*study.corpus[0].lines(), *split.lines()]:
            study.decide(line)
        if evaluate.text:
            limit = evaluate.max_heldout_documents
            _write_documents(folder / HELDOUT, split.heldout[:limit])
    if evaluate.text:
        limit = recipe.general.max_documents
        _write_documents(folder / GENERAL, study.general.documents[:limit])


def open_blocks(folder: Path) -> BlockStore:
    """The blocks of a finished text stage."""
    return BlockStore.open(folder / BLOCKS)


def _write_documents(path: Path, documents: Sequence[Document]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            row = {"id": document.id, "text": document.text, "date": document.date}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
