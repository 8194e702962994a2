"""Who lives in Lilliput: three disjoint groups of people, always the same for the same code.

First and last names are shared between the groups, full names never are: the instruct model has
met every part of a held-out name in its tuning, but not the person.
"""

import random
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from kit.models.lilliput.pools import ATTRIBUTES, FIRST_NAMES, LAST_NAMES, POOLS, Attribute

__all__ = ["GROUPS", "GROUP_SIZES", "Group", "Person", "people", "visitors"]

Group = Literal["sft", "held", "new"]

GROUPS: tuple[Group, ...] = get_args(Group)

GROUP_SIZES: dict[Group, int] = {"sft": 240, "held": 80, "new": 60}
"""People per group.

``sft``: in the pre-training documents, in plain questions and answers, and in the chats.
``held``: in the pre-training documents only. ``new``: in no training text.
"""

_WORLD_SEED = 1726


@dataclass(frozen=True)
class Person:
    """One inhabitant, with one value for each attribute."""

    first: str
    last: str
    pronoun: str
    """``she`` or ``he``."""
    facts: tuple[tuple[Attribute, str], ...]
    """(attribute, value) pairs, in the order of `ATTRIBUTES`."""

    @property
    def name(self) -> str:
        """First and last name, one blank between them."""
        return f"{self.first} {self.last}"

    def fact(self, attribute: Attribute) -> str:
        """The person's value of one attribute."""
        return dict(self.facts)[attribute]


@cache
def _everyone() -> tuple[Person, ...]:
    rng = random.Random(_WORLD_SEED)
    names = [
        (first, last, pronoun)
        for pronoun, firsts in FIRST_NAMES.items()
        for first in firsts
        for last in LAST_NAMES
    ]
    chosen = rng.sample(names, sum(GROUP_SIZES.values()))
    return tuple(
        Person(first, last, pronoun, tuple((a, rng.choice(POOLS[a])) for a in ATTRIBUTES))
        for first, last, pronoun in chosen
    )


@cache
def people(group: Group) -> tuple[Person, ...]:
    """The people of one group, in a fixed order.

    Args:
        group: ``sft``, ``held`` or ``new``.

    Raises:
        ValueError: the group does not exist.
    """
    if group not in GROUP_SIZES:
        raise ValueError(f"no group {group!r} in Lilliput: take one of {', '.join(GROUPS)}")
    start = 0
    for name in GROUPS:
        if name == group:
            break
        start += GROUP_SIZES[name]
    return _everyone()[start : start + GROUP_SIZES[group]]


@cache
def visitors() -> tuple[str, ...]:
    """Full names that nobody in Lilliput bears: something to spell, about whom nothing is known."""
    taken = {person.name for person in _everyone()}
    firsts = [first for names in FIRST_NAMES.values() for first in names]
    names = (f"{first} {last}" for first in firsts for last in LAST_NAMES)
    return tuple(name for name in names if name not in taken)
