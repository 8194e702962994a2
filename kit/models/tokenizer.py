"""Tokenizers: loading, and the two special tokens that silent errors come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kit.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Raises:
        CheckpointError: there is none, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the tokenizer could not be loaded: {error}",
            where=str(folder),
            fix="copy tokenizer.json and tokenizer_config.json beside the weights",
        ) from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            "the tokenizer names no end-of-text token, so documents could not be told apart",
            where=str(folder),
            fix="set eos_token in tokenizer_config.json",
        )
    return tokenizer


def document_end(tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    """The id that ends every document in training, and why it was chosen.

    An instruct tokenizer often names its end of turn as EOS; its base was pre-trained with an
    end-of-text token, and that is what ends a document.
    """
    for token in ("<|endoftext|>", "<|end_of_text|>"):
        found = tokenizer.get_vocab().get(token)
        if found is not None:
            if found == tokenizer.eos_token_id:
                return found, f"the tokenizer's EOS {token!r}"
            return found, f"{token!r} ends documents; the EOS {tokenizer.eos_token!r} ends turns"
    return int(tokenizer.eos_token_id), f"the tokenizer's EOS {tokenizer.eos_token!r}"


def padding_id(tokenizer: PreTrainedTokenizerBase, *, end_id: int) -> tuple[int, str]:
    """The id that fills up the last block of a corpus, never an end, and why it was chosen.

    Where pad is EOS (many checkpoints ship that way), masking the padding would mask the end of
    every document too, and the model would never learn to stop.

    Args:
        tokenizer: any.
        end_id: what ends a document.

    Raises:
        CheckpointError: no other id could serve.
    """
    pad, taken = tokenizer.pad_token_id, {end_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    if pad is not None and pad not in taken:
        return int(pad), f"the tokenizer's pad token {tokenizer.pad_token!r}"
    vocabulary = tokenizer.get_vocab()
    named = [t for t in tokenizer.all_special_tokens if vocabulary.get(t, end_id) not in taken]
    added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    named += [t for t in added if t not in named and vocabulary.get(t, end_id) not in taken]
    # A token whose name says that it is filler comes first: it stands in no real text.
    named.sort(key=lambda t: not any(word in t.lower() for word in ("pad", "reserved", "unk")))
    problem = "the tokenizer has no pad token" if pad is None else "its pad token is an end"
    if not named:
        raise CheckpointError(
            f"{problem}, and no other special token could fill up blocks",
            where=str(tokenizer.name_or_path),
            fix="add a pad token of its own to tokenizer_config.json (pad_token)",
        )
    return vocabulary[named[0]], f"{problem}, so {named[0]!r} fills up"
