"""The world of Lilliput, and the thresholds that its shipped weights must reach."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest

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


def test_name_parts_are_shared_between_groups() -> None:
    """Held-out people are unknown as people, not as words."""
    known = {part for person in people("sft") for part in person.name.split()}
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
