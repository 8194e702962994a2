"""Questions with short answers: does the reply name one of the accepted ones?

    contains   an accepted answer stands in the reply as whole words
    exact      the reply is an accepted answer and nothing else

Both compare normalised texts, after SQuAD's evaluation (arXiv 1606.05250), as `normalise` says.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from kit.errors import DataError
from kit.evaluation.task import Verdict, reply_rows
from kit.models.chat import chat_prompt
from kit.progress import Advance, silent
from kit.runs.records import ItemRow, TaskInfo

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kit.evaluation.engine import Engine

Form = Literal["chat", "plain"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Thai, Lao, kana, ideographs, hangul: words do not stand between blanks."""


class Question(Protocol):
    """A question and what counts as its answer."""

    @property
    def id(self) -> str:
        """Unique within the set."""

    @property
    def question(self) -> str:
        """The user's turn, or the text to continue."""

    @property
    def answers(self) -> Sequence[str]:
        """Accepted answers, one or more."""

    @property
    def chance(self) -> float | None:
        """The share that guessing gets right; None where nothing says."""


class QuestionTask:
    """One set of questions, asked in one form.

    chat: the question is the user's turn. plain: the question is text that the model continues up
    to the end of the line, so it may be the beginning of a sentence.

    Args:
        name: the task's name, `questions/new-chat`.
        title: what a reader of the table sees.
        items: the questions, asked in this order.
        form: how they are asked.
        max_new_tokens: longest reply.

    Raises:
        DataError: no question, a name twice, or a question without an answer.
    """

    def __init__(
        self,
        name: str,
        *,
        title: str,
        items: Sequence[Question],
        form: Form = "chat",
        max_new_tokens: int = 32,
    ) -> None:
        self.info = TaskInfo(
            task=name,
            title=title,
            role="knowledge",
            metrics=("contains", "exact"),
            better="higher",
            chance=_mean_chance(items),
        )
        self.item_ids = tuple(item.id for item in items)
        self._items, self._form, self._max_new_tokens = list(items), form, max_new_tokens
        _check_questions(self._items, where=name)

    def run(self, engine: Engine, advance: Advance = silent) -> list[ItemRow]:
        """Ask every question once."""
        prompts = [self._prompt(engine.tokenizer, item.question) for item in self._items]
        replies = engine.generate(
            prompts,
            max_new_tokens=self._max_new_tokens,
            stop_ids=engine.newline_ids if self._form == "plain" else (),
            advance=advance,
        )
        return reply_rows(
            self.info.task, self.item_ids, prompts=prompts, replies=replies, judge=self._judge
        )

    def _prompt(self, tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
        if self._form == "chat":
            return chat_prompt(tokenizer, [{"role": "user", "content": question}])
        # A blank at the end would be a token of its own, and the usual next token starts with one.
        ids: list[int] = tokenizer(question.rstrip())["input_ids"]
        return ids

    def _judge(self, number: int, text: str) -> Verdict:
        reply = text.partition("\n")[0] if self._form == "plain" else text
        answers = self._items[number].answers
        passed = any(contains(reply, answer) for answer in answers)
        exact = any(is_exactly(reply, answer) for answer in answers)
        return Verdict(passed, {"contains": (float(passed), 1.0), "exact": (float(exact), 1.0)})


def normalise(text: str, *, keep_articles: bool = False) -> str:
    """Bring a text to the form that answers are compared in.

    Compatible characters become one (NFKC) and letters small; dashes and slashes become blanks and
    all other punctuation goes; a, an and the go; runs of white space become one blank.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(_without_punctuation(char) for char in folded)
    return " ".join((spaced if keep_articles else _ARTICLES.sub(" ", spaced)).split())


def contains(reply: str, answer: str) -> bool:
    """Whether the answer stands in the reply as whole words."""
    given, wanted = _comparable(reply, answer)
    if _UNSPACED.search(wanted):
        return wanted in given
    return bool(wanted) and f" {wanted} " in f" {given} "


def is_exactly(reply: str, answer: str) -> bool:
    """Whether the reply is the answer and nothing else."""
    given, wanted = _comparable(reply, answer)
    return bool(wanted) and given == wanted


def _comparable(reply: str, answer: str) -> tuple[str, str]:
    wanted = normalise(answer)
    if wanted:
        return normalise(reply), wanted
    # "A" can be a blood group: an answer of articles alone is compared with articles.
    return normalise(reply, keep_articles=True), normalise(answer, keep_articles=True)


def _without_punctuation(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Pd" or char == "/":
        return " "
    # Symbols of ASCII ($ + < = > ^ ` | ~) count as punctuation in SQuAD too.
    is_mark = category.startswith("P") or (char.isascii() and category.startswith("S"))
    return "" if is_mark else char


def _mean_chance(items: Sequence[Question]) -> float | None:
    known = [item.chance for item in items if item.chance is not None]
    return sum(known) / len(known) if known and len(known) == len(items) else None


def _check_questions(items: Sequence[Question], *, where: str) -> None:
    if not items:
        raise DataError("there is no question", where=where, fix="name a file with questions")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(
                f"two questions are named {item.id!r}", where=where, fix="give each its own id"
            )
        seen.add(item.id)
        if not any(normalise(answer, keep_articles=True) for answer in item.answers):
            raise DataError(
                f"question {item.id!r} has no answer with a letter or a digit",
                where=where,
                fix="give it an answer, or leave it out",
            )
