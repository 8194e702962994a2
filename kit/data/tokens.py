"""Text to token ids, the same for a plan without torch and for the run.

The tokenizer is either one of `transformers` or the `tokenizers.Tokenizer` that a plan reads from
tokenizer.json. Neither may parse special tokens in a document's text: a web page about language
models that quotes "<|endoftext|>" must not end there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kit.data.sources import Document

TokenIds = npt.NDArray[np.int32]


def tokenize_documents(
    tokenizer: Any,
    documents: Sequence[Document],
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[TokenIds]:
    """Token ids of each document's text: no BOS, no EOS, nothing cut off.

    Args:
        tokenizer: a transformers tokenizer or a `tokenizers.Tokenizer`.
        documents: their texts are tokenised.
        batch_size: documents per call; they are tokenised in parallel.
        progress: told the number of documents done after each call.

    Returns:
        One int32 array per document.
    """
    ids: list[TokenIds] = []
    for start in range(0, len(documents), batch_size):
        texts = [document.text for document in documents[start : start + batch_size]]
        ids += tokenize_texts(tokenizer, texts)
        if progress is not None:
            progress(len(ids))
    return ids


def tokenize_texts(tokenizer: Any, texts: Sequence[str]) -> list[TokenIds]:
    """Token ids of texts, as `tokenize_documents` makes them."""
    return [np.asarray(row, dtype=np.int32) for row in _encoder(tokenizer)(list(texts))]


def document_bos_id(tokenizer: Any) -> int | None:
    """The id that the tokenizer puts before a text, or None where it puts none.

    Models whose tokenizer does so (Llama 3, Gemma) have read every document behind that token,
    and are off without it. Found by trying: a `bos_token` that is named is not always added
    (SmolLM2 names one that it never writes).
    """
    if _is_plain(tokenizer):
        ids = tokenizer.encode("a", add_special_tokens=True).ids
        bare = tokenizer.encode("a", add_special_tokens=False).ids
    else:
        ids = tokenizer("a", add_special_tokens=True)["input_ids"]
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    if len(ids) > len(bare) and ids[1 : 1 + len(bare)] == bare:
        return int(ids[0])
    return None


def _is_plain(tokenizer: Any) -> bool:
    """Whether it is a `tokenizers.Tokenizer`; those of transformers can be called."""
    return not callable(tokenizer)


def _encoder(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    if _is_plain(tokenizer):
        # A copy: tokenizer.json may hold settings that cut or pad, and these are the caller's.
        plain = type(tokenizer).from_str(tokenizer.to_str())
        plain.no_truncation()
        plain.no_padding()
        plain.encode_special_tokens = True
        return lambda texts: [
            encoding.ids for encoding in plain.encode_batch(texts, add_special_tokens=False)
        ]

    def encode(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            verbose=False,  # else a warning for every text that is longer than the context
        )["input_ids"]
        return ids

    return encode
