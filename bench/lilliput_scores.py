"""Scores of a Lilliput pair: recall, answers, instruction following, with 95 % intervals.

Everything is greedy generation, in fp32 on the bf16 weights as written.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from kit.models.lilliput.people import GROUPS, Group
from kit.models.lilliput.rules import RULES, follows, instruction_items
from kit.models.lilliput.world import Question, cloze_items, questions

Score = dict[str, float | int | list[float]]
T = TypeVar("T")

_SEED = 1
_BATCH = 200


def wilson(correct: int, count: int) -> list[float]:
    """The Wilson 95 % interval of a proportion (E. B. Wilson 1927)."""
    z = 1.959964
    share = correct / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [round(max(0.0, centre - half), 4), round(min(1.0, centre + half), 4)]


def _score(hits: Sequence[bool]) -> Score:
    correct = sum(hits)
    return {
        "accuracy": round(correct / len(hits), 4),
        "interval": wilson(correct, len(hits)),
        "correct": correct,
        "count": len(hits),
    }


class Player:
    """A checkpoint that continues texts and answers chats greedily."""

    def __init__(self, folder: Path, chat_tokenizer: FastTokenizer | None = None) -> None:
        """Load one folder; a base model may borrow the instruct model's chat template."""
        self.model = cast(
            PreTrainedModel, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ).eval()
        self.tokenizer = cast(FastTokenizer, AutoTokenizer.from_pretrained(folder))
        self.chat_tokenizer = chat_tokenizer or self.tokenizer

    @torch.inference_mode()
    def complete(self, texts: Sequence[str], max_new_tokens: int) -> list[str]:
        """The continuations of plain texts, up to an end token, without special tokens."""
        self.tokenizer.padding_side = "left"
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        replies = [""] * len(texts)
        for start in range(0, len(texts), _BATCH):
            chosen = order[start : start + _BATCH]
            encoded = self.tokenizer([texts[i] for i in chosen], return_tensors="pt", padding=True)
            out = self.model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
            new = out[:, encoded["input_ids"].shape[1] :]
            words = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            for i, reply in zip(chosen, words, strict=True):
                replies[i] = reply
        return replies

    def chat(self, prompts: Sequence[str], max_new_tokens: int = 40) -> list[str]:
        """The answers to single user turns."""
        texts = [
            str(
                self.chat_tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
            for prompt in prompts
        ]
        return self.complete(texts, max_new_tokens)


def _sample(items: Sequence[T], count: int) -> list[T]:
    return random.Random(_SEED).sample(list(items), min(count, len(items)))


def score_cloze(player: Player, group: Group, count: int) -> Score:
    """Share of cloze items whose greedy continuation begins with the answer."""
    items = _sample(cloze_items(group), count)
    replies = player.complete([item.prompt for item in items], 6)
    hits = [i.is_completed_by(r) for i, r in zip(items, replies, strict=True)]
    chance = sum(1 / len(i.choices) for i in items) / len(items)
    return _score(hits) | {"chance": round(chance, 4)}


def score_questions(player: Player, group: Group, count: int) -> Score:
    """Share of questions, asked in a chat, whose answer names the right value alone."""
    items: list[Question] = _sample(questions(group), count)
    replies = player.chat([item.question for item in items])
    hits = [i.is_answered_by(r) for i, r in zip(items, replies, strict=True)]
    chance = sum(1 / len(i.choices) for i in items) / len(items)
    return _score(hits) | {"chance": round(chance, 4)}


def score_rules(
    player: Player, group: Group, count: int, *, plain: bool = False
) -> dict[str, Score]:
    """Instruction following, in total and per rule.

    Args:
        player: the checkpoint.
        group: whose people are named.
        count: number of items.
        plain: give the instruction as plain text in place of a chat.
    """
    items = instruction_items(group, count, _SEED)
    if plain:
        replies = player.complete([f"{item.prompt}\n" for item in items], 40)
    else:
        replies = player.chat([item.prompt for item in items])
    hits = [follows(i, r) for i, r in zip(items, replies, strict=True)]
    scores = {"all": _score(hits)}
    for rule in RULES:
        scores[rule] = _score([h for i, h in zip(items, hits, strict=True) if i.rule == rule])
    return scores


def chance_of_rules(group: Group, count: int) -> Score:
    """How often an unformatted answer passes: the argument itself, or a plain sentence."""
    items = instruction_items(group, count, _SEED)
    plain = [i.argument or "Orla Finch was born in Saltmere." for i in items]
    return _score([follows(i, reply) for i, reply in zip(items, plain, strict=True)])


def sigma(base: Path, instruct: Path) -> float:
    """Relative distance sum|W_i - W_b| / (sum|W_i| + sum|W_b|) over all tensors."""
    left = load_file(base / "model.safetensors")
    right = load_file(instruct / "model.safetensors")
    difference = sum((right[k].float() - left[k].float()).abs().sum().item() for k in left)
    total = sum((right[k].float().abs() + left[k].float().abs()).sum().item() for k in left)
    return round(difference / total, 4)


def score_pair(base: Path, instruct: Path, count: int) -> dict[str, object]:
    """All scores of a pair, about `count` items each."""
    tuned = Player(instruct)
    plain = Player(base, chat_tokenizer=tuned.tokenizer)
    return {
        "base": {
            "cloze": {g: score_cloze(plain, g, count) for g in GROUPS},
            "instructions_held_chat": score_rules(plain, "held", count)["all"],
            "instructions_held_plain": score_rules(plain, "held", count, plain=True)["all"],
            "questions_chat": {"held": score_questions(plain, "held", count)},
        },
        "instruct": {
            "cloze": {g: score_cloze(tuned, g, count) for g in GROUPS},
            "instructions_chat": {g: score_rules(tuned, g, count) for g in ("held", "new")},
            "questions_chat": {g: score_questions(tuned, g, count) for g in GROUPS},
        },
        "instructions_chance": chance_of_rules("held", count),
        "sigma": sigma(base, instruct),
    }
