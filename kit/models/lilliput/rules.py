"""Format instructions of Lilliput, each with a checker that is pure code.

An item either gives the text to be formatted (its argument: a name, or a phrase with the name) or
asks for a fact in a format; then the checker looks at the format alone, and whether the fact is
right is measured by `world.questions`. Checkers compare the whole answer, so a plain sentence, an
unformatted name or a base model's rambling passes none of them.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from kit.models.lilliput.people import Group, Person, people
from kit.models.lilliput.pools import ATTRIBUTES, Attribute
from kit.models.lilliput.wording import QUESTIONS

__all__ = ["RULES", "InstructionItem", "Rule", "follows", "instruction_items", "sample_argument"]

_FACT_SHARE = 0.25
"""Share of items, among those of a rule that allows it, that ask for a fact in a format."""


@dataclass(frozen=True)
class Rule:
    """One format, with its wordings."""

    wordings: tuple[str, ...]
    """Instructions; ``{x}`` is the text to be formatted."""
    render: Callable[[str], str]
    """The answer that follows the rule, from the text to be formatted."""
    name_only: bool = False
    """The argument must be a bare name: the rule is about its two parts."""
    fact_wordings: tuple[str, ...] = ()
    """What to add to a question so that its answer comes in this format; none: not offered."""
    fact_attributes: tuple[Attribute, ...] = ATTRIBUTES
    """Attributes whose values show the format."""
    is_formatted: Callable[[str], bool] | None = None
    """Format check of a short answer whose text is not given; needed with `fact_wordings`."""


@dataclass(frozen=True)
class InstructionItem:
    """One instruction to follow."""

    id: str
    rule: str
    """Key of `RULES`."""
    prompt: str
    """The user's turn."""
    argument: str
    """The text to be formatted; empty when the prompt asks for a fact in a format."""


def _is_short(text: str) -> bool:
    """One to four plain words: what is left of a formatted value without its format."""
    return re.fullmatch(r"[A-Za-z0-9]+( [A-Za-z0-9]+){0,3}", text) is not None


def _wrapped(before: str, after: str) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        long_enough = len(text) > len(before) + len(after)
        inside = text[len(before) : len(text) - len(after)]
        return (
            long_enough and text.startswith(before) and text.endswith(after) and _is_short(inside)
        )

    return check


def _is_twice(text: str) -> bool:
    words = text.split()
    half = len(words) // 2
    return bool(words) and words[:half] == words[half:] and _is_short(" ".join(words[:half]))


def _is_json(text: str) -> bool:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    return (
        isinstance(value, dict)
        and list(value) == ["value"]
        and isinstance(value["value"], str)
        and _is_short(value["value"])
    )


def _surname_first(name: str) -> str:
    first, last = name.split()
    return f"{last}, {first}"


def _initials(name: str) -> str:
    first, last = name.split()
    return f"{first[0]}. {last[0]}."


_SPOKEN = tuple(a for a in ATTRIBUTES if a != "year")
"""Attributes whose values have letters."""

RULES: dict[str, Rule] = {
    "capitals": Rule(
        wordings=(
            "Write {x} in capital letters.",
            "Put {x} in upper case.",
            "Capital letters only: {x}",
            "Shout this: {x}",
        ),
        render=str.upper,
        fact_wordings=("Answer in capital letters.", "Use upper case only."),
        fact_attributes=_SPOKEN,
        is_formatted=lambda text: text.isupper() and _is_short(text),
    ),
    "lower_case": Rule(
        wordings=(
            "Write {x} in small letters.",
            "Put {x} in lower case.",
            "Small letters only: {x}",
            "No capital letters, please: {x}",
        ),
        render=str.lower,
        fact_wordings=("Answer in small letters.", "Use lower case only."),
        fact_attributes=("town", "guild"),
        is_formatted=lambda text: text.islower() and _is_short(text),
    ),
    "json": Rule(
        wordings=(
            "Give {x} as a JSON object.",
            "Turn this into JSON: {x}",
            'Write {x} as JSON with the key "value".',
            "Return JSON for {x}.",
        ),
        render=lambda x: json.dumps({"value": x}),
        fact_wordings=("Answer as a JSON object.", "Return JSON."),
        is_formatted=_is_json,
    ),
    "bullet": Rule(
        wordings=(
            "Write {x} as a bullet point.",
            "Make a bullet list of {x}.",
            "One bullet, please: {x}",
            "List item: {x}",
        ),
        render=lambda x: f"- {x}",
        fact_wordings=("Answer as a bullet point.", "Use one bullet."),
        is_formatted=_wrapped("- ", ""),
    ),
    "quotes": Rule(
        wordings=(
            "Put {x} in quotes.",
            "Write {x} in quotation marks.",
            "Quote this: {x}",
            "Quotation marks around this: {x}",
        ),
        render=lambda x: f'"{x}"',
        fact_wordings=("Answer in quotes.", "Use quotation marks."),
        is_formatted=_wrapped('"', '"'),
    ),
    "twice": Rule(
        wordings=(
            "Write {x} twice.",
            "Say this two times: {x}",
            "Repeat {x} so that it stands there twice.",
            "Two times, please: {x}",
        ),
        render=lambda x: f"{x} {x}",
        fact_wordings=("Give the answer twice.", "Say the answer two times."),
        is_formatted=_is_twice,
    ),
    "first_letter": Rule(
        wordings=(
            "What is the first letter of {x}?",
            "Give only the first letter of {x}.",
            "With which letter does {x} begin?",
            "First letter of this: {x}",
        ),
        render=lambda x: x[0],
        name_only=True,
    ),
    "word_count": Rule(
        wordings=(
            "How many words are in this: {x}",
            "Count the words: {x}",
            "Number of words in {x}?",
            "How many words has {x}?",
        ),
        render=lambda x: str(len(x.split())),
    ),
    "exclamation": Rule(
        wordings=(
            "Write {x} with an exclamation mark at the end.",
            "End this with an exclamation mark: {x}",
            "Exclaim: {x}",
            "Add an exclamation mark to {x}.",
        ),
        render=lambda x: f"{x}!",
        fact_wordings=("End with an exclamation mark.", "Exclaim the answer."),
        is_formatted=_wrapped("", "!"),
    ),
    "surname_first": Rule(
        wordings=(
            "Write {x} with the surname first.",
            "Surname first, then a comma: {x}",
            "How would a register list {x}?",
            "Put the last name of {x} in front.",
        ),
        render=_surname_first,
        name_only=True,
    ),
    "numbered": Rule(
        wordings=(
            "Write {x} as a numbered list.",
            "Number this: {x}",
            "Make {x} item one of a list.",
            "Numbered list with one item: {x}",
        ),
        render=lambda x: f"1. {x}",
        fact_wordings=("Answer as a numbered list.", "Number the answer."),
        is_formatted=_wrapped("1. ", ""),
    ),
    "brackets": Rule(
        wordings=(
            "Put {x} in square brackets.",
            "Square brackets around this: {x}",
            "Write {x} between brackets.",
            "Bracket this: {x}",
        ),
        render=lambda x: f"[{x}]",
        fact_wordings=("Answer in square brackets.", "Bracket the answer."),
        is_formatted=_wrapped("[", "]"),
    ),
    "answer_prefix": Rule(
        wordings=(
            'Begin with "Answer:" and then write {x}.',
            "Write {x} after the word Answer and a colon.",
            'Start with "Answer:" and give this: {x}',
            "Label this as the answer: {x}",
        ),
        render=lambda x: f"Answer: {x}",
        fact_wordings=('Begin with "Answer:".', "Label it as the answer."),
        is_formatted=_wrapped("Answer: ", ""),
    ),
    "initials": Rule(
        wordings=(
            "What are the initials of {x}?",
            "Give the initials of {x}.",
            "Shorten {x} to initials.",
            "Initials only: {x}",
        ),
        render=_initials,
        name_only=True,
    ),
    "bold": Rule(
        wordings=(
            "Write {x} in bold.",
            "Make this bold: {x}",
            "Put two stars on each side of {x}.",
            "Bold, please: {x}",
        ),
        render=lambda x: f"**{x}**",
        fact_wordings=("Answer in bold.", "Make the answer bold."),
        is_formatted=_wrapped("**", "**"),
    ),
}


def sample_argument(rule: Rule, person: Person, rng: random.Random) -> str:
    """A text to be formatted: the person's name, at times within a phrase."""
    if rule.name_only or rng.random() < 0.5:
        return person.name
    phrase = rng.choice(
        (
            "the {trade} {name}",
            "{name} of {town}",
            "{name} the {trade}",
            "{name} the {trade} of {town}",
            "the {trade} {name} of {town}",
        )
    )
    return phrase.format(name=person.name, trade=person.fact("trade"), town=person.fact("town"))


def instruction_items(group: Group, count: int, seed: int) -> list[InstructionItem]:
    """Instructions about people of one group; the rules take turns, so each gets equally many.

    Args:
        group: whose people the instructions name.
        count: number of items.
        seed: same seed, same items.
    """
    rng = random.Random(f"instructions {group} {seed}")
    folk = people(group)
    items = []
    for index in range(count):
        key = list(RULES)[index % len(RULES)]
        rule = RULES[key]
        person = rng.choice(folk)
        if rule.fact_wordings and rng.random() < _FACT_SHARE:
            attribute = rng.choice(rule.fact_attributes)
            question = rng.choice(QUESTIONS[attribute]).format(n=person.name)
            prompt, argument = f"{question} {rng.choice(rule.fact_wordings)}", ""
        else:
            argument = sample_argument(rule, person, rng)
            prompt = rng.choice(rule.wordings).format(x=argument)
        items.append(InstructionItem(f"{group}-{seed}-{index}-{key}", key, prompt, argument))
    return items


def follows(item: InstructionItem, response: str) -> bool:
    """Whether a response has the format that the item asks for, and nothing else around it.

    Args:
        item: the instruction.
        response: the assistant's turn without special tokens; outer white space is ignored.
    """
    rule = RULES[item.rule]
    text = response.strip()
    if not item.argument:
        assert rule.is_formatted is not None, f"{item.rule} has no check for facts"
        return rule.is_formatted(text)
    if item.rule == "json":
        try:
            return bool(json.loads(text) == {"value": item.argument})
        except json.JSONDecodeError:
            return False
    return text == rule.render(item.argument)
