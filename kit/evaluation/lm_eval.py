"""The kit's engine as a model of lm-eval: `lm_eval.simple_evaluate(model=KitLM.of(...), ...)`.

Prompts, few-shot examples, filters and metrics are lm-eval's; what it asks of a model is tokenised
exactly as its own HFLM does, and answered by the kit's engine. Two things are written down beside
every answer that HFLM only logs: whether the prompt was cut, and why there is no answer.

    context  c c c c c c c c     cut on the left, as lm-eval cuts it, and counted
    asked        c c c c c c t t t        t = continuation, never cut
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import jinja2

# The names of lm-eval's own models must be in the registry before another is: see the last line.
import lm_eval.models  # noqa: F401
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import postprocess_generated_text, resolve_max_length
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
    simple_parse_args_string,
)

from kit.errors import DataError, RecipeError
from kit.evaluation.encoding import Encoder, Pair, encoded_pairs
from kit.evaluation.engine import Engine
from kit.evaluation.greedy import LONGEST, check_greedy, longest_reply, stops_of
from kit.evaluation.scorer import Request
from kit.hardware import detect
from kit.models.loading import load_model, resolve_source
from kit.models.tokenizer import load_tokenizer
from kit.progress import Advance, silent
from kit.recipe.schema import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Answer = tuple[float, bool]
"""Nats of the continuation, and whether it is what greedy decoding would write."""

_NO_ANSWER: Answer = (math.nan, False)


@dataclass(frozen=True, slots=True)
class Facts:
    """What happened to one request."""

    prompt_tokens: int
    """Tokens that the model was given before the scored or generated ones."""
    output_tokens: int
    """Scored or generated tokens."""
    prompt_cut: bool = False
    """Whether the prompt lost its beginning, because the model's context is shorter."""
    reply_cut: bool = False
    """Whether the reply reached its limit before its end."""
    error: str = ""
    """Why there is no answer; empty when there is one."""
    asked: bool = True
    """Whether the model was asked at all."""


class KitLM(TemplateLM):
    """What lm-eval asks, answered by an engine.

    Greedy decoding only. Batches are the engine's affair; `batch_size` is not looked at.

    Args:
        engine: asks the model, with adapters on it or not.
        advance: told how many requests are done.
        add_bos_token: as of HFLM: whether texts get the tokenizer's special tokens. None: as the
            tokenizer does by itself.
    """

    def __init__(
        self, engine: Engine, *, advance: Advance = silent, add_bos_token: bool | None = None
    ) -> None:
        super().__init__()
        self.engine, self.advance = engine, advance
        self.tokenizer = engine.tokenizer
        self._device = engine.model.device
        self._encoder = Encoder(
            engine.tokenizer, prefix_id=self.prefix_token_id, add_bos_token=add_bos_token
        )
        self.facts: list[Facts] = []
        """One for each request of the latest call, in their order."""

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **engine: Any) -> KitLM:
        """For a model in memory.

        Args:
            model: a causal LM.
            tokenizer: its own.
            engine: further arguments of `Engine`.
        """
        return cls(Engine(model, tokenizer, **engine))

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> KitLM:
        """For `lm_eval.simple_evaluate(model="kit", model_args={"pretrained": ...})`.

        Args:
            arg_dict: `pretrained` (a model source of the kit) and, where it is not 16bit,
                `quantization` (nf4, 16bit, 32bit).
            additional_config: what lm-eval adds; the device is the kit's choice, and
                `batch_size` says how many replies are written side by side.

        Raises:
            RecipeError: something else is given.
            CheckpointError: the model cannot be loaded.
        """
        given = {**arg_dict, **(additional_config or {})}
        source, quantization = given.pop("pretrained", None), given.pop("quantization", "16bit")
        rows, strange = given.pop("batch_size", None), [k for k in given if given[k] is not None]
        if source is None or strange or quantization not in get_args(Quantization):
            raise RecipeError(
                "lm-eval's model `kit` takes pretrained, quantization and batch_size",
                where=f"model arguments {arg_dict}, {additional_config}",
                fix=f"leave out {', '.join(strange)}" if strange else "set pretrained=FOLDER",
            )
        folder = resolve_source(str(source))
        model = load_model(folder, quantization=quantization, hardware=detect())
        # lm-eval also has "auto", which is what an engine does by itself.
        slots = int(rows) if str(rows).isdigit() else None
        return cls.of(model, load_tokenizer(folder), batch_size=slots)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> KitLM:
        """The same for arguments as lm-eval's command line takes them: `pretrained=FOLDER`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's EOS."""
        return int(self.engine.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: BOS, or EOS where there is none."""
        bos = self.engine.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        """Tokens that the model takes, as HFLM finds them."""
        if self.engine.context is not None:
            return self.engine.context
        return int(resolve_max_length(self.engine.model.config, self.engine.tokenizer))

    @property
    def max_gen_toks(self) -> int:
        """Longest reply where a task does not say, as in HFLM."""
        return LONGEST

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache of requests."""
        return str(self.engine.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text; without its system turn where the template refuses one."""

        def applied(history: list[dict[str, str]]) -> str:
            text = self.engine.tokenizer.apply_chat_template(
                history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return str(text)

        try:
            return applied(chat_history)
        except jinja2.exceptions.TemplateError:
            log.info("the chat template takes no system turn, so there is none")
            return applied([turn for turn in chat_history if turn["role"] != "system"])

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text, as HFLM has them."""
        encoded = self._encoder([string], add_special_tokens=add_special_tokens)
        return encoded[string]

    def encode(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """Token ids of contexts and continuations, as HFLM has them; a context may be empty."""
        return encoded_pairs(self._encoder, texts)

    def score(self, pairs: Sequence[Pair]) -> list[Answer]:
        """Ask for the log-likelihood of every continuation; NaN where there is none.

        Never raises for a request: `facts` says what is wrong with it.
        """
        fitted = [self._fitted(context, after) for context, after in pairs]
        asked = [request for request, _ in fitted if request is not None]
        scored = iter(self.engine.loglikelihood(asked, advance=self.advance))
        self.advance(len(pairs) - len(asked))
        answers: list[Answer] = []
        self.facts = []
        for request, facts in fitted:
            answer = _NO_ANSWER
            if request is not None:
                found = next(scored)
                answer = (found.logprob, found.is_greedy)
                if math.isnan(found.logprob):
                    facts = replace(facts, error="the log-likelihood is not a number (NaN)")
            answers.append(answer)
            self.facts.append(facts)
        return answers

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        """lm-eval's call: (context, continuation) -> nats and whether it is greedy.

        Raises:
            DataError: a continuation is empty, or longer than the model's context.
        """
        texts = [request.args for request in requests]
        pairs = self.encode(texts)
        asked = [(text, *pair) for text, pair in zip(texts, pairs, strict=True)]
        return self._loglikelihood_tokens(asked, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, Sequence[int], Sequence[int]]], **kwargs: Any
    ) -> list[Answer]:
        answers = self.score([(context, after) for _, context, after in requests])
        self._refuse()
        for (text, *_), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Log-likelihood of whole texts, in lm-eval's own windows; `facts` as in `score`."""
        pairs: list[Pair] = []
        counts = []
        known = self._encoder(texts)
        for text in texts:
            windows = get_rolling_token_windows(
                token_list=known[text],
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(pairs)
            pairs += map(make_disjoint_window, windows)
            counts.append(len(pairs) - before)
        answers, facts = self.score(pairs), self.facts
        totals, self.facts, start = [], [], 0
        for count in counts:
            part = slice(start, start + count)
            totals.append(math.fsum(nats for nats, _ in answers[part]))
            self.facts.append(
                Facts(
                    prompt_tokens=1,
                    output_tokens=sum(fact.output_tokens for fact in facts[part]),
                    error=next((fact.error for fact in facts[part] if fact.error), ""),
                )
            )
            start += count
        return totals

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """lm-eval's call: (text,) -> nats."""
        totals = self.rolling([request.args[0] for request in requests])
        self._refuse()
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """lm-eval's call: (context, settings) -> the greedy reply up to the first stop.

        Raises:
            DataError: the model's logits were not finite.
        """
        replies = self.reply([request.args for request in requests])
        self._refuse()
        for number, fact in enumerate(self.facts):
            if fact.error:
                raise DataError(fact.error, where=f"request {number}", fix="look at the weights")
        for request, reply in zip(requests, replies, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, reply)
        return replies

    def reply(self, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Greedy replies, cut before the first stop; empty where `facts` has an error.

        Args:
            asked: prompt and lm-eval's settings of generation (`until`, `max_gen_toks`).

        Raises:
            RecipeError: the settings sample, or leave no room for a prompt.
        """
        ids = self._encoder([p for p, _ in asked], bos=self.engine.tokenizer.bos_token)
        plans = [self._plan(settings) for _, settings in asked]
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, (stops, _) in enumerate(plans):
            groups.setdefault(stops, []).append(number)
        replies, facts = [""] * len(asked), [Facts(0, 0)] * len(asked)
        for stops, numbers in groups.items():
            limits = [plans[number][1] for number in numbers]
            whole = [ids[asked[number][0]] for number in numbers]
            prompts = [
                prompt[-(self.max_length - limit) :]
                for prompt, limit in zip(whole, limits, strict=True)
            ]
            generated = self.engine.generate(
                prompts,
                max_new_tokens=limits,
                stop_ids=self._special(stops),
                stop_strings=[stop for stop in stops if stop],
                advance=self.advance,
            )
            for number, before, prompt, found in zip(
                numbers, whole, prompts, generated, strict=True
            ):
                replies[number] = str(postprocess_generated_text(found.text, list(stops), None))
                facts[number] = Facts(
                    prompt_tokens=len(prompt),
                    output_tokens=len(found.ids),
                    prompt_cut=len(prompt) < len(before),
                    reply_cut=not found.stopped and replies[number] == found.text,
                    error=found.error,
                    asked=bool(found.ids) or not found.error,
                )
        self.facts = facts
        return replies

    def _fitted(self, context: Sequence[int], after: Sequence[int]) -> tuple[Request | None, Facts]:
        """A request that the model's context has room for, or why there is none."""
        if not context or not after or len(after) > self.max_length:
            what = f"a continuation of {len(after)} tokens" if context else "an empty context"
            error = f"{what} cannot be scored in a context of {self.max_length}"
            return None, Facts(len(context), 0, error=error, asked=False)
        # The last token is only scored, not fed, so one more than the context fits.
        room = self.max_length + 1 - len(after)
        kept = tuple(context[-room:])
        facts = Facts(len(kept), len(after), prompt_cut=len(kept) < len(context))
        return Request(kept, tuple(after)), facts

    def _plan(self, settings: dict[str, Any]) -> tuple[tuple[str, ...], int]:
        """Stops and limit of a reply."""
        check_greedy(settings)
        limit, eos = longest_reply(settings), self.engine.tokenizer.decode([self.eot_token_id])
        if not 0 < limit < self.max_length:
            raise RecipeError(
                f"replies of up to {limit} tokens leave no room for a prompt",
                where=f"the model's context of {self.max_length} tokens",
                fix="set max_new_tokens lower",
            )
        return stops_of(settings, eos=str(eos)), limit

    def _special(self, stops: Sequence[str]) -> list[int]:
        """Ids of stops that are special tokens, which the text of a reply leaves out."""
        vocabulary = self.engine.tokenizer.get_added_vocab()
        return [vocabulary[stop] for stop in stops if stop in vocabulary]

    def _refuse(self) -> None:
        """Raise for the first request that could not be asked, as HFLM's assertions do."""
        for number, fact in enumerate(self.facts):
            if not fact.asked:
                raise DataError(fact.error, where=f"request {number}", fix="use a shorter text")


register_model("kit")(KitLM)
