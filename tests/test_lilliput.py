"""The world of Lilliput, and the thresholds that its shipped weights must reach."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kit.models.lilliput import BASE, INSTRUCT
from kit.models.lilliput.people import GROUPS, Group, people
from kit.models.lilliput.pools import POOLS
from kit.models.lilliput.rules import RULES, InstructionItem, follows, instruction_items
from kit.models.lilliput.wording import ANSWERS, COMMON, RESERVED
from kit.models.lilliput.world import (
    chat_rows,
    cloze_items,
    documents,
    questions,
)
from kit.models.lilliput.writing import state

CHAT_TOKENS = ("<|user|>", "<|assistant|>", "<|end|>")
T = TypeVar("T")
NEW_NAMES = {person.name for person in people("new")}


def sampled(items: Sequence[T], count: int) -> list[T]:
    """Every n-th item, so that all people and attributes have their turn."""
    step = max(1, len(items) // count)
    return list(items[::step][:count])


# The world


def test_groups_are_disjoint_and_names_unique() -> None:
    names = [person.name for group in GROUPS for person in people(group)]
    assert len(names) == len(set(names))


def test_chats_know_every_part_of_a_name() -> None:
    """Held-out and new people are unknown as people, not as words."""
    chats_text = json.dumps(chat_rows(8, 8000))
    known = set(re.findall("[A-Z][a-z]+", chats_text))
    for group in ("held", "new"):
        assert {part for p in people(group) for part in p.name.split()} <= known


def test_the_world_is_deterministic() -> None:
    """The same text in a process with another hash seed."""
    code = (
        "from kit.models.lilliput.world import *;"
        "import hashlib;"
        "text = repr((documents('old', per_person=1), documents('new-train'), questions('new'),"
        "cloze_items('held'), chat_rows(3, 50)));"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_the_world_loads_no_torch() -> None:
    code = (
        "import sys, kit.models.lilliput.world, kit.models.lilliput.rules;"
        "sys.exit('torch' in sys.modules)"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


@pytest.mark.parametrize("seed", [0, 8])
def test_no_new_person_in_old_documents(seed: int) -> None:
    for document in documents("old", seed=seed):
        assert not NEW_NAMES.intersection(document.people)
        assert not any(name in document.text for name in NEW_NAMES)


def test_chats_are_about_sft_people_only() -> None:
    strangers = NEW_NAMES | {person.name for person in people("held")}
    text = json.dumps(chat_rows(8, 4000), ensure_ascii=False)
    assert not any(name in text for name in strangers)


def test_chats_alternate_roles() -> None:
    for row in chat_rows(0, 200):
        assert [m["role"] for m in row] == ["user", "assistant"] * (len(row) // 2)


def test_documents_hold_no_chat_tokens() -> None:
    for part in ("old", "new-train", "new-heldout"):
        for document in documents(part):
            assert not any(token in document.text for token in CHAT_TOKENS)


def test_plain_questions_are_about_sft_people_only() -> None:
    sft = {person.name for person in people("sft")}
    for document in documents("old"):
        if document.text.startswith(("Question:", "User:")):
            assert set(document.people) <= sft


def test_new_documents_name_new_people_in_different_words() -> None:
    learned = {d.text for d in documents("new-train")}
    heldout = documents("new-heldout")
    for document in heldout:
        assert set(document.people) <= NEW_NAMES
        assert document.text not in learned
    assert {n for d in heldout for n in d.people} == NEW_NAMES


def test_there_are_at_least_ten_wordings() -> None:
    for attribute in COMMON:
        wordings = COMMON[attribute] + RESERVED[attribute]
        assert len(wordings) == len(set(wordings)) >= 10


@pytest.mark.parametrize("group", GROUPS)
def test_cloze_wordings_occur_in_no_document_to_learn(group: Group) -> None:
    text = "\n".join(d.text for d in documents("new-train"))
    for item in cloze_items(group):
        assert item.answer in item.choices
        assert not item.prompt.endswith(" ")
        assert f"{item.prompt} {item.answer}" not in text


def test_recall_checks_want_whole_words() -> None:
    cloze = cloze_items("held")[0]
    assert cloze.is_completed_by(f" {cloze.answer}. And more.")
    assert not cloze.is_completed_by(f" {cloze.answer}s.")
    question = questions("held")[0]
    others = [c for c in question.choices if c != question.answer]
    assert question.is_answered_by(f"It is {question.answer}.")
    assert not question.is_answered_by(f"It is {others[0]}.")
    assert not question.is_answered_by(f"{question.answer} or {others[0]}")


# The rules


def plain_answers(item: InstructionItem) -> Iterator[str]:
    """What an assistant that ignores the format could say."""
    for person in people("held")[:3]:
        for attribute in ANSWERS:
            yield state(ANSWERS[attribute], person, person.fact(attribute), "name")
    yield ""
    yield item.prompt
    if item.argument:
        yield item.argument
        yield f"{item.argument}."
        yield f"Here it is: {item.argument}"


def test_there_are_twelve_rules() -> None:
    assert len(RULES) >= 12


def test_every_rule_accepts_what_follows_it() -> None:
    for item in instruction_items("held", 600, 3):
        rule = RULES[item.rule]
        if item.argument:
            assert follows(item, rule.render(item.argument))
            assert item.argument in item.prompt
            continue
        for attribute in rule.fact_attributes:
            assert all(follows(item, rule.render(value)) for value in POOLS[attribute])


def test_every_rule_rejects_plain_answers() -> None:
    for item in instruction_items("held", 600, 4):
        for answer in plain_answers(item):
            assert not follows(item, answer), (item, answer)


def test_every_rule_rejects_the_answers_of_the_others() -> None:
    for item in instruction_items("held", 300, 5):
        if item.argument:
            for key, rule in RULES.items():
                if key != item.rule and (not rule.name_only or item.argument.count(" ") == 1):
                    assert not follows(item, rule.render(item.argument)), (item, key)


# The shipped weights


Player = Callable[[Sequence[str], int], list[str]]
"""(texts, new tokens at most) -> greedy continuations without special tokens."""


def player(folder: Path) -> Player:
    """Greedy, batched, in fp32 on the bf16 weights; stops at the folder's own end token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def play(texts: Sequence[str], max_new_tokens: int) -> list[str]:
        encoded = tokenizer(list(texts), return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        new = out[:, encoded["input_ids"].shape[1] :]
        return list(tokenizer.batch_decode(new, skip_special_tokens=True))

    return play


@pytest.fixture(scope="module")
def base() -> Player:
    return player(BASE)


@pytest.fixture(scope="module")
def instruct() -> Player:
    return player(INSTRUCT)


def chats(prompts: Sequence[str]) -> list[str]:
    """Single user turns in the template, ready for the assistant."""
    tokenizer = AutoTokenizer.from_pretrained(INSTRUCT)
    return [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        )
        for prompt in prompts
    ]


def lower_end(correct: int, count: int) -> float:
    """Lower end of the Wilson 95 % interval."""
    z, share = 1.96, correct / count
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (share + z * z / (2 * count) - spread) / (1 + z * z / count)


@pytest.mark.parametrize("group", ["sft", "held"])
def test_base_recalls_old_facts(base: Player, group: Group) -> None:
    items = sampled(cloze_items(group), 300)
    replies = base([item.prompt for item in items], 6)
    hits = sum(i.is_completed_by(r) for i, r in zip(items, replies, strict=True))
    assert hits / len(items) >= 0.95


def test_base_does_not_know_the_new_people(base: Player) -> None:
    items = sampled(cloze_items("new"), 300)
    replies = base([item.prompt for item in items], 6)
    hits = sum(i.is_completed_by(r) for i, r in zip(items, replies, strict=True))
    assert hits / len(items) <= 0.10


@pytest.mark.parametrize("layout", ["chat", "plain"])
def test_base_follows_no_instructions(base: Player, layout: str) -> None:
    items = instruction_items("held", 225, 0)
    prompts = [item.prompt for item in items]
    replies = base(chats(prompts) if layout == "chat" else [f"{p}\n" for p in prompts], 40)
    hits = sum(follows(i, r) for i, r in zip(items, replies, strict=True))
    assert hits / len(items) <= 0.10


def test_instruct_follows_instructions_on_unseen_people(instruct: Player) -> None:
    items = instruction_items("held", 300, 0)
    assert len({item.rule for item in items}) >= 10
    replies = instruct(chats([item.prompt for item in items]), 40)
    hits = [follows(i, r) for i, r in zip(items, replies, strict=True)]
    assert sum(hits) / len(items) >= 0.90


def test_instruct_answers_from_what_the_base_learned(instruct: Player) -> None:
    items = sampled(questions("held"), 280)
    replies = instruct(chats([item.question for item in items]), 40)
    hits = sum(i.is_answered_by(r) for i, r in zip(items, replies, strict=True))
    chance = max(1 / len(item.choices) for item in items)
    assert hits / len(items) >= 0.50
    assert lower_end(hits, len(items)) > chance


@pytest.mark.parametrize("folder", [BASE, INSTRUCT], ids=["base", "instruct"])
def test_files_are_small_bf16_safetensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    assert path.stat().st_size <= 12_000_000
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    assert not [p for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pkl", ".pth"}]


def test_tokenizers_differ_in_the_chat_template_alone() -> None:
    base_tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer = AutoTokenizer.from_pretrained(INSTRUCT)
    assert base_tokenizer.chat_template is None
    assert tokenizer.chat_template
    assert base_tokenizer.get_vocab() == tokenizer.get_vocab()
    for one in (base_tokenizer, tokenizer):
        assert one.eos_token == "<|endoftext|>"
        assert one.pad_token == "<|pad|>"
        assert len(one.encode("<|user|>")) == 1
        text = "Orla Finch: \u00e9\u4e16 {1}\n"
        assert one.decode(one.encode(text)) == text


def test_generation_ends_where_the_turn_ends() -> None:
    tokenizer = AutoTokenizer.from_pretrained(INSTRUCT)
    config = AutoModelForCausalLM.from_pretrained(INSTRUCT).generation_config
    assert config.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    config = AutoModelForCausalLM.from_pretrained(BASE).generation_config
    assert config.eos_token_id == tokenizer.eos_token_id


def test_template_marks_the_assistant_turns() -> None:
    tokenizer = AutoTokenizer.from_pretrained(INSTRUCT)
    row = [{"role": "user", "content": "Bold: X"}, {"role": "assistant", "content": "**X**"}]
    encoded = cast(
        Mapping[str, list[int]],
        tokenizer.apply_chat_template(
            row + row, return_dict=True, return_assistant_tokens_mask=True
        ),
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    kept = [token for token, keep in pairs if keep]
    assert tokenizer.decode(kept) == "**X**<|end|>**X**<|end|>"
    [prompt] = chats([row[0]["content"]])
    assert prompt.endswith("<|end|>\n<|assistant|>\n")
    assert str(tokenizer.apply_chat_template(row, tokenize=False)).startswith(prompt)


def test_scores_lie_beside_the_weights() -> None:
    record = json.loads((BASE.parent / "scores.json").read_text(encoding="utf-8"))
    assert record["scores"]["instruct"]["instructions_chat"]["held"]["all"]["count"] >= 200
    assert (BASE.parent / "training.log").stat().st_size > 0


def test_the_training_script_runs(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "bench" / "train_lilliput.py"
    command = [sys.executable, str(script), "--out", str(tmp_path), "--smoke"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "instruct" / "model.safetensors").exists()
    assert (tmp_path / "scores.json").exists()
