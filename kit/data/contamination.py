"""Does the training text hold the questions? Long word sequences that both have, after GPT-3.

Texts are compared as words in small letters without punctuation; an item that shares `NGRAM`
words in a row with the training text counts as seen (arXiv 2005.14165, appendix C). Shorter items
are compared whole where they have `SHORTEST` words; even shorter ones would match by chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

NGRAM = 13
SHORTEST = 8
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
"""A run of letters and digits; kana and ideographs, which stand without blanks, one by one."""


def overlaps(training: Iterable[str], items: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Find the items that the training text holds in part.

    Only the items' word sequences are kept in memory; the training text streams through.

    Args:
        training: its documents.
        items: the texts of each task's items.

    Returns:
        Numbers of the items of each task that share a sequence, in order.
    """
    owners: dict[int, dict[tuple[str, ...], set[tuple[str, int]]]] = {}
    for task, texts in items.items():
        for number, text in enumerate(texts):
            words = _words(text)
            length = min(len(words), NGRAM)
            if length >= SHORTEST:
                for ngram in _ngrams(words, length):
                    owners.setdefault(length, {}).setdefault(ngram, set()).add((task, number))
    seen: set[tuple[str, int]] = set()
    for document in training:
        words = _words(document)
        for length, known in owners.items():
            for ngram in _ngrams(words, length):
                if ngram in known:
                    seen |= known[ngram]
    return {task: sorted(n for name, n in seen if name == task) for task in items}


def checkable(text: str) -> bool:
    """Whether a text has words enough to be looked for."""
    return len(_words(text)) >= SHORTEST


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)
