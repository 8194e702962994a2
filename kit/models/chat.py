"""Messages to tokens, by the instruct model's own template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kit.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot chat.

    Raises:
        CheckpointError: it has no chat template.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            "the instruct model's tokenizer has no chat template, so it cannot be asked anything",
            where=str(tokenizer.name_or_path),
            fix="use the instruct checkpoint (not the base), or add its chat_template.jinja",
        )


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, ask: bool = False
) -> list[int]:
    """Token ids of a conversation.

    Args:
        tokenizer: the instruct model's.
        messages: `role` and `content` of each turn.
        ask: end with the opening of the assistant's next turn.

    Raises:
        CheckpointError: there is no chat template.
    """
    check_chat_template(tokenizer)
    encoded: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=ask, tokenize=True, return_dict=True
    )
    ids: list[int] = encoded["input_ids"]
    return ids


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a conversation, with the opening of the assistant's next turn."""
    return chat_ids(tokenizer, messages, ask=True)


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase, generation_eos: object) -> set[int]:
    """Every id that ends a reply: the tokenizer's EOS, the generation config's, the template's.

    The template's is found by looking at what it writes after an assistant's turn.

    Args:
        tokenizer: the instruct model's.
        generation_eos: `generation_config.eos_token_id`: an id, a list of ids, or None.
    """
    ids = {int(tokenizer.eos_token_id)}
    if isinstance(generation_eos, int):
        ids.add(generation_eos)
    elif isinstance(generation_eos, list | tuple):
        ids.update(int(i) for i in generation_eos)
    if tokenizer.chat_template:
        marker = "zq"
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": marker}],
            tokenize=False,
        )
        after = str(text).rpartition(marker)[2]
        tail = tokenizer(after, add_special_tokens=False)["input_ids"]
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        first_special = next((i for i in tail if i in special), None)
        if first_special is not None:
            ids.add(int(first_special))
    return ids
