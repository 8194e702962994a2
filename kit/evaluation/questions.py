"""Questions with short answers: does the reply name one of the accepted ones?

    contains   an accepted answer stands in the reply as whole words
    exact      the reply is an accepted answer and nothing else
    f1         words in common, of the accepted answer that has most

All compare normalised texts, after SQuAD's evaluation (arXiv 1606.05250), as `normalise` says.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from kit.errors import DataError
from kit.evaluation.task import Cost, Verdict, reply_rows
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
            metrics=("contains", "exact", "f1"),
            better="higher",
            chance=_mean_chance(items),
        )
        self.item_ids = tuple(item.id for item in items)
        self.chunk = 128
        self._items, self._form, self._max_new_tokens = list(items), form, max_new_tokens
        _check_questions(self._items, where=name)

    def item_text(self, number: int) -> str:
        """The question and its first answer."""
        return f"{self._items[number].question} {self._items[number].answers[0]}"

    def cost(self, engine: Engine) -> Cost:
        """Tokens of all prompts, and of replies at their longest."""
        prompts = [self._prompt(engine.tokenizer, item.question) for item in self._items]
        return Cost(read=sum(map(len, prompts)), written=len(prompts) * self._max_new_tokens)

    def run(
        self, engine: Engine, numbers: Sequence[int], advance: Advance = silent
    ) -> list[ItemRow]:
        """Ask the questions of these numbers."""
        prompts = [self._prompt(engine.tokenizer, self._items[n].question) for n in numbers]
        replies = engine.generate(
            prompts,
            max_new_tokens=self._max_new_tokens,
            stop_ids=engine.newline_ids if self._form == "plain" else (),
            advance=advance,
        )
        return reply_rows(
            self.info.task,
            [self.item_ids[number] for number in numbers],
            prompts=prompts,
            replies=replies,
            judge=lambda place, text: self._judge(numbers[place], text),
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
        shared = max(token_f1(reply, answer) for answer in answers)
        return Verdict(
            passed,
            {"contains": (float(passed), 1.0), "exact": (float(exact), 1.0), "f1": (shared, 1.0)},
        )


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


def token_f1(reply: str, answer: str) -> float:
    """Harmonic mean of the shares of common words in the reply and in the answer (SQuAD's F1).

    In scripts without blanks between words, characters are compared.
    """
    given, wanted = _comparable(reply, answer)
    if _UNSPACED.search(wanted):
        given, wanted = " ".join(given.replace(" ", "")), " ".join(wanted.replace(" ", ""))
    words, right = Counter(given.split()), Counter(wanted.split())
    common = (words & right).total()
    if not common:
        return 0.0
    precision, recall = common / words.total(), common / right.total()
    return 2 * precision * recall / (precision + recall)


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
