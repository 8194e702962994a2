"""The one object that evaluation asks a model through.

    Engine.loglikelihood   context, continuation -> log p      common prefixes computed once
    Engine.generate        prompts   -> replies                rows leave the batch as they end
    Engine.nll             token ids -> nats per token         long texts in windows

All work through their rows longest first (what does not fit in memory fails at once), return in
the order of what was asked, and give what a batch of one would give, up to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from kit.errors import RecipeError
from kit.evaluation.generation import Ask, Generation, Stops, generate
from kit.evaluation.scorer import Request, Scored, default_budget, score, sharing_problem
from kit.hardware import SLOTS
from kit.models.chat import end_of_turn_ids
from kit.models.logprobs import token_nll
from kit.models.tokenizer import document_end
from kit.progress import Advance, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Engine:
    """Asks one model, with the instruct model's tokenizer, and changes neither.

    The model may carry mounted adapters, and may be trained further afterwards: it is put into
    eval mode for each call and back after it.

    Args:
        model: a causal LM.
        tokenizer: the instruct model's, for every arm.
        batch_size: replies that are written side by side; None: as many as the device does well.
        max_length: longest piece of text that `nll` scores at once, in tokens; lowered to the
            model's own context where that is shorter.

    Raises:
        RecipeError: the batch size is below 1 or the length below 2.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | None = None,
        max_length: int = 1024,
    ) -> None:
        batch_size = (
            SLOTS.get(model.device.type, SLOTS["cpu"]) if batch_size is None else batch_size
        )
        if batch_size < 1 or max_length < 2:
            raise RecipeError(
                f"batch size {batch_size} and piece length {max_length} cannot be measured with",
                where="evaluate.batch_size, evaluate.seq_len",
                fix="set batch_size to 1 or more and seq_len to 2 or more",
            )
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        config = model.config.get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        """Tokens that the model was made for; None where its configuration does not say."""
        self.max_length = min(max_length, self.context or max_length)
        if self.max_length < max_length:
            log.info("text is scored in pieces of %d tokens, the model's context", self.context)
        generation_eos = getattr(model.generation_config, "eos_token_id", None)
        # A model that was trained on documents may end a reply as it would end one of them.
        ends = end_of_turn_ids(tokenizer, generation_eos) | {document_end(tokenizer)[0]}
        self.end_ids = frozenset(ends)
        """Ids that end every reply: EOS of tokenizer and generation config, end of turn or text."""
        self._budget = default_budget(model.device.type)

    @cached_property
    def newline_ids(self) -> frozenset[int]:
        """Ids of the tokens whose text has a line break, to stop a continued line at."""
        ids = range(len(self.tokenizer))
        texts = self.tokenizer.batch_decode([[i] for i in ids])
        return frozenset(i for i, text in zip(ids, texts, strict=True) if "\n" in text)

    @cached_property
    def plain_because(self) -> str:
        """Why common prefixes are not shared on this model; empty where they are.

        It is found out on the bare model: adapters are added position by position.
        """
        with self._measuring():
            return sharing_problem(self.model)

    def loglikelihood(
        self, requests: Sequence[Request], *, advance: Advance = silent
    ) -> list[Scored]:
        """Log-probability of each continuation given its context, and whether it is greedy.

        Args:
            requests: none longer than the model's context.
            advance: told of every request that is done.
        """
        share = not self.plain_because
        with self._measuring():
            return score(self.model, requests, budget=self._budget, share=share, advance=advance)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        stop_ids: Iterable[int] = (),
        stop_strings: Sequence[str] = (),
        advance: Advance = silent,
    ) -> list[Generation]:
        """Answer every prompt greedily.

        A reply ends with one of `end_ids`, which its text leaves out, of `stop_ids`, which its text
        keeps, or before one of `stop_strings`. It is cut off after `max_new_tokens`, or sooner
        where the context ends.

        Args:
            prompts: token ids.
            max_new_tokens: longest reply (1 or more), of all or of each.
            stop_ids: further ids that end a reply.
            stop_strings: texts that end a reply and do not belong to it.
            advance: told of every prompt that is done.
        """
        if isinstance(max_new_tokens, int):
            max_new_tokens = [max_new_tokens] * len(prompts)
        assert all(limit >= 1 for limit in max_new_tokens), "a reply of no token is none"
        replies: dict[int, Generation] = {}
        asks: dict[int, Ask] = {}
        for index, (prompt, limit) in enumerate(zip(prompts, max_new_tokens, strict=True)):
            room = limit if self.context is None else min(limit, self.context - len(prompt))
            if prompt and room >= 1:
                asks[index] = Ask(prompt=tuple(prompt), limit=room)
                continue
            why = "leaves no room for a reply in the model's context" if prompt else "is empty"
            note = f"the prompt of {len(prompt)} tokens {why}"
            replies[index] = Generation(ids=(), text="", stopped=False, error=note)
        advance(len(replies))
        stops = Stops(
            tokenizer=self.tokenizer,
            end_ids=self.end_ids,
            kept_ids=frozenset(stop_ids),
            strings=tuple(stop_strings),
        )
        with self._measuring():
            made = generate(
                self.model, list(asks.values()), stops=stops, slots=self.batch_size, advance=advance
            )
        replies.update(zip(asks, made, strict=True))
        return [replies[index] for index in range(len(prompts))]

    def nll(
        self, texts: Sequence[Sequence[int]], *, advance: Advance = silent
    ) -> list[list[float]]:
        """Negative log-likelihood in nats of every token of a text but its first.

        A text longer than `max_length` is scored in windows of that length that overlap by half:
        every token but the very first is scored exactly once, and with at least half a window of
        context from the second window on. Values may be NaN where the model's output is.

        Args:
            texts: token ids, each text with 1 or more.
            advance: told how many texts are done, in proportion to the windows that are.

        Returns:
            For a text of n tokens n - 1 values, in order.
        """
        spans = [
            (text, *window)
            for text, ids in enumerate(texts)
            for window in windows(len(ids), self.max_length)
        ]
        scored: dict[int, list[float]] = {}
        told = 0
        with self._measuring():
            for part in self._batches([stop - a for _, a, stop, _ in spans]):
                pieces = [texts[spans[i][0]][spans[i][1] : spans[i][2]] for i in part]
                rows = token_nll(self.model, self._right_padded(pieces)).tolist()
                for i, row in zip(part, rows, strict=True):
                    _, start, stop, first = spans[i]
                    scored[i] = row[first - start : stop - start]
                done = len(scored) * len(texts) // len(spans)
                advance(done - told)
                told = done
        values: list[list[float]] = [[] for _ in texts]
        for i, (text, *_) in enumerate(spans):
            values[text] += scored[i]
        return values

    def _right_padded(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """(batch, longest); what follows a row is invisible to it, so any id may fill it up."""
        width = max(map(len, rows))
        ids = [list(row) + [0] * (width - len(row)) for row in rows]
        return torch.tensor(ids, device=self.model.device)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers in batches of so many tokens at most, longest first; ties keep order."""
        ordered = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        while ordered:
            count = max(1, self._budget.pass_tokens // lengths[ordered[0]])
            yield ordered[:count]
            ordered = ordered[count:]

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        # no_grad and not inference_mode: what a model caches in inference mode could not be
        # trained with afterwards.
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)


def windows(length: int, max_length: int) -> list[tuple[int, int, int]]:
    """(start, stop, first scored token) of each window over a text.

        length 11, max_length 6     0 1 2 3 4 5 6 7 8 9 10
        window 0, 6, 1              . s s s s s
        window 3, 9, 6                    . . . s s s
        window 6, 11, 9                         . . . s s        s = scored, . = context

    Args:
        length: tokens in the text.
        max_length: tokens in a window, 2 or more.
    """
    stride = max_length // 2
    spans, scored = [], 1
    for start in range(0, length, stride):
        stop = min(start + max_length, length)
        if scored < stop:
            spans.append((start, stop, scored))
            scored = stop
    return spans
