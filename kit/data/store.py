"""Token blocks on disk: written once, read memory-mapped by every arm and every resume.

    ids.npy       (blocks, seq_len) int32
    spans.npy     (pieces,) of block, column, document, offset, length
    ledger.json   the proved account, the special ids, schema_version

The folder appears under its name when all of it is written, so one that exists is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kit.data.ledger import Ledger, account, prove
from kit.data.packing import SPAN, Blocks, pack
from kit.data.sources import Document
from kit.data.tokens import document_bos_id, tokenize_documents
from kit.errors import DataError, StorageError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BlockStore:
    """A folder of blocks with their account."""

    folder: Path
    blocks: Blocks
    """Memory-mapped: reading a block touches that block's pages alone."""
    ledger: Ledger

    @classmethod
    def open(cls, folder: Path) -> BlockStore:
        """Open a store; nothing but its account is read.

        Raises:
            DataError: it is missing, damaged, or of another version of the format.
        """
        path = folder / "ledger.json"
        try:
            about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if about["schema_version"] != SCHEMA_VERSION:
                raise _unusable(
                    f"has schema_version {about['schema_version']}, not {SCHEMA_VERSION}", folder
                )
            ledger = Ledger(**about["ledger"])
            blocks = Blocks(
                ids_BT=np.load(folder / "ids.npy", mmap_mode="r"),
                spans_P=np.load(folder / "spans.npy", mmap_mode="r"),
                **about["special_ids"],
            )
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unusable(f"cannot be read ({error})", folder) from error
        shapes = (blocks.ids_BT.shape, blocks.spans_P.shape, blocks.spans_P.dtype)
        if shapes != ((ledger.blocks, ledger.seq_len), (ledger.pieces,), SPAN):
            raise _unusable(f"is damaged: its files have {shapes}", folder)
        return cls(folder=folder, blocks=blocks, ledger=ledger)


def _unusable(why: str, folder: Path) -> DataError:
    return DataError(
        f"the block store {why}",
        where=str(folder),
        fix="delete this folder; the next run packs the corpus again",
    )


def write_blocks(folder: Path, *, blocks: Blocks, ledger: Ledger) -> BlockStore:
    """Write blocks into a new folder and open it.

    Raises:
        StorageError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise StorageError(
            "there is a folder of that name already", where=str(folder), fix="delete it first"
        )
    beside = folder.with_name(f".{folder.name}.partial")
    about = {
        "schema_version": SCHEMA_VERSION,
        "special_ids": {
            "eos_id": blocks.eos_id,
            "pad_id": blocks.pad_id,
            "bos_id": blocks.bos_id,
        },
        "ledger": ledger.as_json(),
    }
    try:
        shutil.rmtree(beside, ignore_errors=True)  # what an earlier, killed run left
        beside.mkdir(parents=True)
        np.save(beside / "ids.npy", blocks.ids_BT)
        np.save(beside / "spans.npy", blocks.spans_P)
        (beside / "ledger.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        os.replace(beside, folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise StorageError(
            f"the token blocks cannot be written: {error.strerror or error}",
            where=str(folder),
            fix="free some disk space, or choose another output folder",
        ) from error
    return BlockStore.open(folder)


def build_store(
    folder: Path,
    *,
    tokenizer: Any,
    documents: Sequence[Document],
    seq_len: int,
    pad_id: int,
    seed: int = 0,
    eos_id: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> BlockStore:
    """Documents to a proved store: tokenise, pack, account, prove, write.

    Args:
        folder: of the new store.
        tokenizer: a transformers tokenizer, or a `tokenizers.Tokenizer` with `eos_id` given.
        documents: each becomes its text's tokens and one EOS.
        seq_len: tokens per block.
        pad_id: fills up blocks.
        seed: of the order of the blocks.
        eos_id: the EOS; None takes the tokenizer's own.
        progress: told the number of documents tokenised so far.

    Raises:
        DataError: the documents cannot be packed.
        StorageError: the folder cannot be written.
    """
    token_lists = tokenize_documents(tokenizer, documents, progress=progress)
    end = int(tokenizer.eos_token_id) if eos_id is None else eos_id
    start = document_bos_id(tokenizer)
    blocks = pack(
        token_lists,
        seq_len=seq_len,
        eos_id=end,
        pad_id=pad_id,
        bos_id=None if start == end else start,  # one EOS per document, also where it is the BOS
        seed=seed,
    )
    texts = [document.text for document in documents]
    ledger = account(blocks, token_lists=token_lists, texts=texts)
    prove(ledger, blocks)
    return write_blocks(folder, blocks=blocks, ledger=ledger)
