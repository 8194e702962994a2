"""How well a model predicts text: bits per UTF-8 byte, comparable between tokenizers.

    bits_per_byte = sum over tokens of -log2 p(token | those before it) / UTF-8 bytes of the text

Every byte is predicted: the text is given after one start token, so its first token has a context
too. An end token after the text is not predicted, as it stands for no byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from kit.data.tokens import document_bos_id, tokenize_texts
from kit.errors import DataError
from kit.evaluation.task import Cost, error_row, prompt_hash
from kit.models.tokenizer import document_end
from kit.progress import Advance, silent
from kit.runs.records import ItemRow, Role, TaskInfo

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kit.evaluation.engine import Engine

METRIC = "bits_per_byte"


class TextDocument(Protocol):
    """A text with a name."""

    @property
    def id(self) -> str:
        """Unique among the documents of a task."""

    @property
    def text(self) -> str:
        """What is to be predicted."""


def start_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that stands before a text: what the tokenizer itself puts there, or a document's end.

    The name `bos_token` alone says little: some chat tokenizers give it to the opening of a turn,
    which never stands before plain text.
    """
    bos = document_bos_id(tokenizer)
    return document_end(tokenizer)[0] if bos is None else bos


class TextTask:
    """Bits per byte of every document.

    Args:
        name: the task's name, `new_text`.
        title: what a reader of the table sees.
        role: which of the study's questions it answers.
        documents: what is measured, in this order.
        start: id given before each text. None: `start_id` of the engine's tokenizer.

    Raises:
        DataError: no document, a name twice, an empty text, or a text that is no UTF-8.
    """

    def __init__(
        self,
        name: str,
        *,
        title: str,
        role: Role,
        documents: Sequence[TextDocument],
        start: int | None = None,
    ) -> None:
        self.info = TaskInfo(
            task=name,
            title=title,
            role=role,
            metrics=(METRIC,),
            better="lower",
            unit="bits per byte",
        )
        self.item_ids = tuple(document.id for document in documents)
        self.chunk = 64
        self._texts = [document.text for document in documents]
        self._start = start
        self._bytes = [
            _utf8_bytes(text, where=f"{name}, document {item}")
            for item, text in zip(self.item_ids, self._texts, strict=True)
        ]
        _check_names(self.item_ids, where=name)

    def item_text(self, number: int) -> str:
        """The document."""
        return self._texts[number]

    def run(
        self, engine: Engine, numbers: Sequence[int], advance: Advance = silent
    ) -> list[ItemRow]:
        """Measure the documents of these numbers."""
        first = start_id(engine.tokenizer) if self._start is None else self._start
        texts = [self._texts[number] for number in numbers]
        given = [[first, *ids.tolist()] for ids in tokenize_texts(engine.tokenizer, texts)]
        losses = engine.nll(given, advance=advance)
        return [
            self._row(self.item_ids[number], ids, nll=nll, num_bytes=self._bytes[number])
            for number, ids, nll in zip(numbers, given, losses, strict=True)
        ]

    def cost(self, engine: Engine) -> Cost:
        """Tokens of all documents."""
        return Cost(read=sum(map(len, tokenize_texts(engine.tokenizer, self._texts))))

    def _row(self, item: str, ids: list[int], *, nll: list[float], num_bytes: int) -> ItemRow:
        assert len(nll) == len(ids) - 1, f"{item}: {len(nll)} losses for {len(ids) - 1} tokens"
        if not nll:
            note = "the tokenizer makes no token of the text"
            return error_row(self.info.task, item, given=ids, note=note)
        bits = math.fsum(nll) / math.log(2)
        if not math.isfinite(bits):
            bad = sum(not math.isfinite(value) for value in nll)
            note = f"the likelihood of {bad} of {len(nll)} tokens is not finite"
            return error_row(self.info.task, item, given=ids, note=note)
        return ItemRow(
            task=self.info.task,
            item=item,
            status="scored",
            scores={METRIC: (bits, float(num_bytes))},
            prompt_hash=prompt_hash(ids),
            prompt_tokens=1,
            output_tokens=len(nll),
        )


def _utf8_bytes(text: str, *, where: str) -> int:
    try:
        count = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text cannot be written as UTF-8: {error.reason}",
            where=where,
            fix="remove the lone surrogate (\\ud800 to \\udfff) from the document",
        ) from error
    if not count:
        raise DataError("the text is empty", where=where, fix="leave the document out")
    return count


def _check_names(names: Sequence[str], *, where: str) -> None:
    if not names:
        raise DataError(
            "there is no document to measure",
            where=where,
            fix="hold more documents out, or name more sources",
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"two documents are named {twice!r}", where=where, fix="name each source only once"
        )
