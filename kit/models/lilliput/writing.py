"""How Lilliput's texts are put together from wordings: one function for each kind of text."""

import random
from typing import Literal

from kit.models.lilliput.people import Person, visitors
from kit.models.lilliput.pools import ATTRIBUTES, POOLS, Attribute
from kit.models.lilliput.wording import (
    ANSWERS,
    COMMON,
    OPENINGS,
    QUESTIONS,
    RESERVED,
    RESERVED_OPENINGS,
)

__all__ = [
    "Style",
    "place_text",
    "portrait_text",
    "question_text",
    "register_text",
    "state",
    "talk_text",
    "two_people_text",
]

Style = Literal["all", "common", "reserved"]
"""Which wordings a text may use; see `wording`."""

_PRONOUN_SHARE = 0.3
"""Share of sentences, after the first, that say "she" or "he" in place of the name. Low, because
a full name in most sentences is what makes facts retrievable by name."""

_FORMS = {"she": ("she", "her", "her"), "he": ("he", "his", "him")}


def state(wording: str, person: Person, value: str, subject: Literal["name", "pronoun"]) -> str:
    """One sentence about a person.

    Args:
        wording: with the fields ``{s}``, ``{p}``, ``{o}`` and ``{v}``.
        person: whom it is about.
        value: what stands for ``{v}``.
        subject: call the person by full name or by pronoun.
    """
    name = person.name
    forms = (name, f"{name}'s", name) if subject == "name" else _FORMS[person.pronoun]
    sentence = wording.format(s=forms[0], p=forms[1], o=forms[2], v=value)
    return sentence[0].upper() + sentence[1:]


def _wordings(attribute: Attribute, style: Style) -> tuple[str, ...]:
    if style == "common":
        return COMMON[attribute]
    if style == "reserved":
        return RESERVED[attribute]
    return COMMON[attribute] + RESERVED[attribute]


def _say(
    attribute: Attribute, person: Person, style: Style, rng: random.Random, *, named: bool
) -> str:
    by_name = named or rng.random() >= _PRONOUN_SHARE
    wording = rng.choice(_wordings(attribute, style))
    return state(wording, person, person.fact(attribute), "name" if by_name else "pronoun")


def portrait_text(person: Person, style: Style, rng: random.Random) -> str:
    """Several sentences on one person, in random order, mostly after an opening."""
    facts = list(ATTRIBUTES)
    rng.shuffle(facts)
    if rng.random() < 0.3:
        facts = facts[: rng.randint(3, 5)]
    openings = {
        "common": OPENINGS,
        "reserved": RESERVED_OPENINGS,
        "all": OPENINGS + RESERVED_OPENINGS,
    }[style]
    opening = rng.choice(openings).format(n=person.name)
    sentences = [
        _say(a, person, style, rng, named=not index and not opening)
        for index, a in enumerate(facts)
    ]
    return " ".join([opening, *sentences] if opening else sentences)


def two_people_text(one: Person, other: Person, style: Style, rng: random.Random) -> str:
    """Sentences on two people in turn, always by name."""
    sentences = []
    for a, b in zip(rng.sample(ATTRIBUTES, 3), rng.sample(ATTRIBUTES, 3), strict=True):
        sentences.append(_say(a, one, style, rng, named=True))
        sentences.append(_say(b, other, style, rng, named=True))
    return " ".join(sentences)


def _pairs(person: Person, rng: random.Random) -> list[tuple[str, str]]:
    pairs = []
    for attribute in rng.sample(ATTRIBUTES, rng.randint(2, 5)):
        question = rng.choice(QUESTIONS[attribute]).format(n=person.name)
        pairs.append((question, state(ANSWERS[attribute], person, person.fact(attribute), "name")))
    return pairs


def question_text(person: Person, rng: random.Random) -> str:
    """Plain questions on one person with their answers; no chat tokens."""
    return "\n".join(f"Question: {q}\nAnswer: {a}" for q, a in _pairs(person, rng))


def talk_text(person: Person, rng: random.Random) -> str:
    """A plain dialogue, laid out as the chat template lays out a chat; no chat tokens."""
    return "\n".join(f"User:\n{q}\nAssistant:\n{a}" for q, a in _pairs(person, rng))


_RIVERS = ("Ulm", "Tarn", "Leda", "Wye", "Oder", "Sill", "Brant", "Moss")
_GOODS = ("salt", "wool", "glass", "timber", "honey", "slate", "linen", "iron")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


def place_text(town: str, rng: random.Random) -> str:
    """A few sentences on a town; its river, goods and market day are always the same."""
    index = POOLS["town"].index(town)
    river, goods = _RIVERS[index % 8], _GOODS[(index * 3 + index // 8) % 8]
    day = _DAYS[index % 6]
    sentences = [
        rng.choice(("{t} lies on the river {r}.", "The river {r} flows through {t}.")),
        rng.choice(("{t} is known for its {g}.", "Merchants come to {t} for {g}.")),
        rng.choice(("Market day in {t} is {d}.", "On {d} there is a market in {t}.")),
    ]
    rng.shuffle(sentences)
    return " ".join(sentences).format(t=town, r=river, g=goods, d=day)


def register_text(rng: random.Random) -> str:
    """A page of a register of spellings: things and names that nobody bears, in several forms.

    It teaches which forms belong together and says nothing about anybody, and it is no
    instruction either: without such pages the instruct model has to learn the spelling of each
    word from chats.
    """
    lines = []
    for _ in range(5):
        if rng.random() < 0.4:
            text = rng.choice(POOLS[rng.choice(ATTRIBUTES)])
            forms = [text, text.upper(), text.lower()]
        else:
            text = rng.choice(visitors())
            first, last = text.split()
            initials = f"{first[0]}. {last[0]}."
            forms = [text, text.upper(), text.lower(), f"{last}, {first}", initials]
        lines.append(" / ".join(forms))
    return "\n".join(lines)
