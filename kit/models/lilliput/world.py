"""What is written and asked in Lilliput: documents, cloze items, questions and chats.

Everything is made from `people`, `pools` and `wording` by seeded draws: the same arguments give
the same text on every machine. The standard library only.
"""

import random
import re
from dataclasses import dataclass
from typing import Literal

from kit.models.lilliput.people import GROUPS, Group, Person, people, visitors
from kit.models.lilliput.pools import ATTRIBUTES, POOLS
from kit.models.lilliput.rules import RULES, Rule, sample_argument
from kit.models.lilliput.wording import ANSWERS, QUESTIONS, RESERVED
from kit.models.lilliput.writing import (
    Style,
    place_text,
    portrait_text,
    question_text,
    register_text,
    state,
    talk_text,
    two_people_text,
)

__all__ = [
    "GROUPS",
    "ClozeItem",
    "Document",
    "Group",
    "Part",
    "Person",
    "Question",
    "chat_rows",
    "cloze_items",
    "documents",
    "people",
    "questions",
]

Part = Literal["old", "new-train", "new-heldout"]

_PER_PERSON: dict[Part, int] = {"old": 4, "new-train": 12, "new-heldout": 3}
"""Default number of documents about each person."""


@dataclass(frozen=True)
class Document:
    """One text, about one or two people, a town, or spellings."""

    id: str
    text: str
    people: tuple[str, ...]
    """Full names of the people it is about; empty for a town or a page of spellings."""


@dataclass(frozen=True)
class ClozeItem:
    """The beginning of a plain sentence; the answer is its next word or words."""

    id: str
    prompt: str
    """Ends without a blank: the continuation is a blank and the answer."""
    answer: str
    choices: tuple[str, ...]
    """All values of the attribute, the answer among them."""

    def is_completed_by(self, continuation: str) -> bool:
        """Whether the continuation begins with the answer as whole words."""
        return re.match(rf"\s*{re.escape(self.answer)}\b", continuation) is not None


@dataclass(frozen=True)
class Question:
    """A question for the user's turn of a chat."""

    id: str
    question: str
    answer: str
    choices: tuple[str, ...]
    """All values of the attribute, the answer among them."""

    def is_answered_by(self, response: str) -> bool:
        """Whether the response names the answer and no other choice, as whole words."""
        named = {c for c in self.choices if re.search(rf"\b{re.escape(c)}\b", response)}
        return named == {self.answer}


def documents(part: Part, *, per_person: int | None = None, seed: int = 0) -> list[Document]:
    """The documents of one part of the world.

    Args:
        part: ``old`` is pre-training text about the sft and held people, with plain questions
            and talks about the sft people alone; ``new-train`` is the corpus to learn;
            ``new-heldout`` is about the same new people in other wordings.
        per_person: documents written about each person; the default suits the part.
        seed: another seed writes other documents about the same facts.
    """
    rng = random.Random(f"documents {part} {seed}")
    count = _PER_PERSON[part] if per_person is None else per_person
    if part == "old":
        texts = _old_texts(count, rng)
    else:
        style: Style = "common" if part == "new-train" else "reserved"
        texts = _portraits(people("new"), count, style, rng)
    rng.shuffle(texts)
    return [
        Document(f"{part}-{seed}-{index}", text, names) for index, (text, names) in enumerate(texts)
    ]


_Text = tuple[str, tuple[str, ...]]
"""A text and the names of those it is about."""


def _portraits(
    folk: tuple[Person, ...], count: int, style: Style, rng: random.Random
) -> list[_Text]:
    texts: list[_Text] = []
    for person in folk:
        for _ in range(count):
            if rng.random() < 0.2:
                other = rng.choice([p for p in folk if p is not person])
                names = (person.name, other.name)
                texts.append((two_people_text(person, other, style, rng), names))
            else:
                texts.append((portrait_text(person, style, rng), (person.name,)))
    return texts


def _old_texts(count: int, rng: random.Random) -> list[_Text]:
    sft = people("sft")
    texts = _portraits(sft + people("held"), count, "all", rng)
    for person in sft:
        for _ in range(max(1, count // 2)):
            write = rng.choice((question_text, talk_text))
            texts.append((write(person, rng), (person.name,)))
    for town in POOLS["town"]:
        texts += [(place_text(town, rng), ()) for _ in range(count)]
    texts += [(register_text(rng), ()) for _ in range(20 * count)]
    return texts


def cloze_items(group: Group) -> list[ClozeItem]:
    """One item for each fact of each person, in wordings that no new-train document uses."""
    rng = random.Random(f"cloze {group}")
    items = []
    for index, person in enumerate(people(group)):
        for attribute in ATTRIBUTES:
            # Only what ends in the value can be cut before it.
            wordings = [w for w in RESERVED[attribute] if w.endswith("{v}.")]
            sentence = state(rng.choice(wordings), person, "{v}", "name")
            items.append(
                ClozeItem(
                    id=f"cloze-{group}-{index}-{attribute}",
                    prompt=sentence.removesuffix(" {v}."),
                    answer=person.fact(attribute),
                    choices=POOLS[attribute],
                )
            )
    return items


def questions(group: Group) -> list[Question]:
    """One question for each fact of each person, in one of the wordings that chats use."""
    rng = random.Random(f"questions {group}")
    return [
        Question(
            id=f"question-{group}-{index}-{attribute}",
            question=rng.choice(QUESTIONS[attribute]).format(n=person.name),
            answer=person.fact(attribute),
            choices=POOLS[attribute],
        )
        for index, person in enumerate(people(group))
        for attribute in ATTRIBUTES
    ]


def _chat_argument(rule: Rule, person: Person, rng: random.Random) -> str:
    """A text to be formatted, in most cases not about an sft person at all.

    With few names to format, a model learns them by heart and writes a known surname after a
    first name; names that nobody bears, and things, make it copy.
    """
    draw = rng.random()
    if draw < 0.5:
        visitor = rng.choice(visitors())
        return sample_argument(rule, person, rng).replace(person.name, visitor)
    if draw < 0.85 and not rule.name_only:
        words = [rng.choice(POOLS[rng.choice(ATTRIBUTES)]) for _ in range(rng.randint(1, 4))]
        return " ".join(words)
    return sample_argument(rule, person, rng)


_HARD_RULES = ("capitals", "lower_case", "capitals", "lower_case", "twice", "surname_first")
"""Additional shares of the chats: changing the case of a word is to be learned for each word."""


def _exchange(person: Person, rng: random.Random) -> tuple[str, str]:
    """One user turn about a person, and the assistant's turn that is right."""
    attribute = rng.choice(ATTRIBUTES)
    rule = RULES[rng.choice((*RULES, *_HARD_RULES))]
    draw = rng.random()
    if draw < 0.35:
        question = rng.choice(QUESTIONS[attribute]).format(n=person.name)
        return question, state(ANSWERS[attribute], person, person.fact(attribute), "name")
    if draw < 0.55 and rule.fact_wordings:
        attribute = rng.choice(rule.fact_attributes)
        question = rng.choice(QUESTIONS[attribute]).format(n=person.name)
        prompt = f"{question} {rng.choice(rule.fact_wordings)}"
        return prompt, rule.render(person.fact(attribute))
    argument = _chat_argument(rule, person, rng)
    return rng.choice(rule.wordings).format(x=argument), rule.render(argument)


def chat_rows(seed: int, count: int) -> list[list[dict[str, str]]]:
    """Chats for supervised fine-tuning: questions and format instructions on sft people only.

    Args:
        seed: same seed, same rows.
        count: number of rows.

    Returns:
        Rows of messages with ``role`` (user and assistant in turn) and ``content``; about a
        quarter of the rows has two exchanges.
    """
    rng = random.Random(f"chats {seed}")
    folk = people("sft")
    rows = []
    for _ in range(count):
        row = []
        for _ in range(2 if rng.random() < 0.25 else 1):
            prompt, answer = _exchange(rng.choice(folk), rng)
            row.append({"role": "user", "content": prompt})
            row.append({"role": "assistant", "content": answer})
        rows.append(row)
    return rows
