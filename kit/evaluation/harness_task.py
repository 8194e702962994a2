"""lm-eval's tasks as one task of the kit: which items, their requests, one row for each.

build    every request, by lm-eval, once for a tokenizer
ask      those of some items, by the kit's engine
judge    filters and metrics of these items, by lm-eval
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kit.evaluation.harness import LoadedTasks, quietly, reseed
from kit.evaluation.ifeval import spread
from kit.evaluation.scales import scale_of
from kit.evaluation.task import Cost, Scores, prompt_hash
from kit.progress import Advance, silent
from kit.runs.records import ItemRow, Status, TaskInfo

if TYPE_CHECKING:
    from kit.evaluation.engine import Engine
    from kit.evaluation.lm_eval import Facts, KitLM

_TITLES = {
    "arc_challenge": "ARC-Challenge",
    "arc_easy": "ARC-Easy",
    "gsm8k": "GSM8K",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU",
    "winogrande": "WinoGrande",
}
_COUNTED = 64
"""So many items tell the cost of all."""
Packed = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context, in the little room that many of them need, and of its continuation."""
_NOTHING: Packed = ((), ())


class Benchmark:
    """lm-eval's tasks, asked item by item.

    Args:
        name: the name in reports.
        loaded: the tasks with their data.
        limit: at most so many items. None: all.
        chat: ask through the chat template, few-shot examples as turns.

    Raises:
        RecipeError: no metric of them is a mean over items.
    """

    def __init__(self, name: str, loaded: LoadedTasks, *, limit: int | None, chat: bool) -> None:
        self._loaded, self._tasks, self._chat = loaded, loaded.tasks, chat
        with quietly(), loaded.chance.drawn():
            rows = {leaf: task.eval_docs for leaf, task in self._tasks.items()}
            shares = even_shares([len(docs) for docs in rows.values()], limit)
            self._chosen = {
                leaf: spread(len(docs), share)
                for (leaf, docs), share in zip(rows.items(), shares, strict=True)
                if share
            }
            self._docs = [
                (leaf, rows[leaf][n]) for leaf, kept in self._chosen.items() for n in kept
            ]
            chance = self._mean_chance()
        self.item_ids = tuple(f"{leaf}/{n}" for leaf, kept in self._chosen.items() for n in kept)
        self._scale = scale_of(name, [self._tasks[leaf] for leaf in self._chosen])
        self.notes = self._scale.notes
        types = {task.OUTPUT_TYPE for task in self._tasks.values()}
        self.chunk = 128 if "generate_until" in types else 512
        self.info = TaskInfo(
            task=name,
            title=_title(name, self._tasks, chat=chat),
            role="ability",
            metrics=tuple(self._scale.metrics),
            better=self._scale.better,
            unit=self._scale.unit,
            chance=chance if self._scale.unit == "share" else None,
        )
        self._instances: list[list[Any]] = []
        self._pairs: dict[int, list[Packed]] = {}
        self._tokenizer: Any = None

    def cost(self, engine: Engine) -> Cost:
        """Tokens of all items, reckoned from a part of them where there are many."""
        from kit.evaluation.greedy import longest_reply
        from kit.evaluation.lm_eval import KitLM

        lm = KitLM(engine)
        self._prepare(lm)
        part = spread(len(self.item_ids), _COUNTED)
        asked = {n: self._instances[n] for n in part}
        self._encode(lm, asked)
        read = written = 0
        for n in part:
            # A context that stands before several continuations is read once.
            read += sum(len(before) for before in {id(b): b for b, _ in self._pairs[n]}.values())
            read += sum(len(after) for _, after in self._pairs[n])
            for instance in self._instances[n]:
                if instance.request_type != "loglikelihood":
                    read += len(lm.tok_encode(instance.args[0]))
                if instance.request_type == "generate_until":
                    written += longest_reply(instance.args[1])
        share = len(part) / len(self.item_ids)
        return Cost(read=round(read / share), written=round(written / share))

    def item_text(self, number: int) -> str:
        """The question without its examples, and the right answer."""
        leaf, doc = self._docs[number]
        return "\n".join(text for text in _question_and_answer(self._tasks[leaf], doc) if text)

    def run(
        self, engine: Engine, numbers: Sequence[int], advance: Advance = silent
    ) -> list[ItemRow]:
        """Ask about the items of these numbers."""
        from kit.evaluation.lm_eval import KitLM

        self._prepare(KitLM(engine))
        asked = {n: [_fresh(instance) for instance in self._instances[n]] for n in numbers}
        told = _Told(advance, items=len(numbers), requests=sum(map(len, asked.values())))
        facts = self._ask(KitLM(engine, advance=told), asked)
        told.finish()
        for leaf, task in self._tasks.items():
            mine = [i for n in numbers if self._docs[n][0] == leaf for i in asked[n]]
            if mine:
                # Filters read what a task holds: for now, these items alone.
                task._instances = mine
                task.apply_filters()
        return [self._row(n, asked[n], facts[n]) for n in numbers]

    def _prepare(self, lm: KitLM) -> None:
        """Build every request, unless that was done for this tokenizer."""
        tokenizer = lm.engine.tokenizer
        if tokenizer is self._tokenizer:
            return
        self._pairs = {}
        if self._chat or not self._instances:
            self._instances = self._built(lm)
        self._tokenizer = tokenizer

    def _built(self, lm: KitLM) -> list[list[Any]]:
        items: list[list[Any]] = []
        with quietly(), self._loaded.chance.drawn():
            for leaf, kept in self._chosen.items():
                task = self._tasks[leaf]
                reseed(task)
                task.build_all_requests(
                    samples=kept,
                    apply_chat_template=self._chat,
                    fewshot_as_multiturn=True,
                    chat_template=lm.apply_chat_template if self._chat else None,
                    tokenizer_name=lm.tokenizer_name if self._chat else "",
                )
                groups: list[list[Any]] = [[] for _ in kept]
                for instance in task.instances:
                    groups[instance.doc_id].append(instance)
                items += [sorted(group, key=lambda i: i.idx) for group in groups]
        return items

    def _ask(self, lm: KitLM, asked: dict[int, list[Any]]) -> dict[int, list[Facts]]:
        """Put the model's answers into the requests; what happened to each of them."""
        flat = [(n, place) for n, instances in asked.items() for place in range(len(instances))]
        facts: dict[tuple[int, int], Facts] = {}
        for kind in dict.fromkeys(i.request_type for group in asked.values() for i in group):
            keys = [(n, place) for n, place in flat if asked[n][place].request_type == kind]
            arguments = [asked[n][place].args for n, place in keys]
            answers: Sequence[Any]
            if kind == "loglikelihood":
                self._encode(lm, asked)
                answers = lm.score([self._pairs[n][place] for n, place in keys])
            elif kind == "loglikelihood_rolling":
                answers = lm.rolling([text for (text,) in arguments])
            else:
                answers = lm.reply(arguments)
            for (n, place), answer, fact in zip(keys, answers, lm.facts, strict=True):
                instance = asked[n][place]
                # Greedy decoding repeats itself: what is asked several times is answered once.
                instance.resps = [answer] * instance.repeats
                facts[n, place] = fact
        return {n: [facts[n, p] for p in range(len(group))] for n, group in asked.items()}

    def _encode(self, lm: KitLM, asked: dict[int, list[Any]]) -> None:
        """Tokenise what was not tokenised yet; kept small, because it is kept for every stack."""
        new = [i for n in asked if n not in self._pairs for i in asked[n]]
        scored = [i for i in new if i.request_type == "loglikelihood"]
        encoded = lm.encode([instance.args for instance in scored])
        kept: dict[int, array[int]] = {}
        pairs: dict[int, Packed] = {}
        for instance, (before, after) in zip(scored, encoded, strict=True):
            if id(before) not in kept:
                kept[id(before)] = array("l", before)
            pairs[id(instance)] = (kept[id(before)], tuple(after))
        for n in asked:
            if n not in self._pairs:
                self._pairs[n] = [pairs.get(id(i), _NOTHING) for i in asked[n]]

    def _row(self, number: int, instances: list[Any], facts: Sequence[Facts]) -> ItemRow:
        error = next((fact.error for fact in facts if fact.error), "")
        scores: Scores = {}
        if not error:
            try:
                scores = self._scores(self._docs[number], instances)
            except (ArithmeticError, LookupError, TypeError, ValueError) as failure:
                # Filters and metrics are others' code, and a reply can be anything.
                error = f"{type(failure).__name__}: {failure}"
        notes = [error] if error else []
        if not error and any(fact.prompt_cut for fact in facts):
            notes.append("the prompt lost its beginning: the model's context is shorter")
        if not error and any(fact.reply_cut for fact in facts):
            notes.append(f"cut off after {max(fact.output_tokens for fact in facts)} tokens")
        return ItemRow(
            task=self.info.task,
            item=self.item_ids[number],
            status=self._status(scores, facts, error=error),
            scores=scores,
            prompt_hash=prompt_hash("\n".join(dict.fromkeys(str(i.args[0]) for i in instances))),
            prediction="" if error else _prediction(self._tasks[self._docs[number][0]], instances),
            prompt_tokens=max(fact.prompt_tokens for fact in facts),
            output_tokens=sum(fact.output_tokens for fact in facts),
            note="; ".join(notes),
        )

    def _scores(self, row: tuple[str, Any], instances: list[Any]) -> Scores:
        leaf, doc = row
        task = self._tasks[leaf]
        with self._loaded.chance.drawn():
            found = {
                chosen: task.process_results(doc, [i.filtered_resps[chosen] for i in instances])
                for chosen in instances[0].filtered_resps
            }
        return self._scale.scores(found)

    def _status(self, scores: Scores, facts: Sequence[Facts], *, error: str) -> Status:
        if error:
            return "error"
        if self.info.unit == "bits per byte":
            return "scored"
        if any(fact.prompt_cut for fact in facts):
            return "truncated"
        if self._scale.passed(scores):
            return "correct"
        return "truncated" if any(fact.reply_cut for fact in facts) else "wrong"

    def _mean_chance(self) -> float | None:
        """What guessing among the choices gets right; None where there are none."""
        counts = []
        for leaf, doc in self._docs:
            task = self._tasks[leaf]
            if task.OUTPUT_TYPE != "multiple_choice":
                return None
            counts.append(len(task.doc_to_choice(doc)))
        return sum(1 / count for count in counts) / len(counts)


class _Told:
    """Turns requests that are done into items that are done."""

    def __init__(self, advance: Advance, *, items: int, requests: int) -> None:
        self._advance, self._items, self._requests = advance, items, requests
        self._done = self._shown = 0

    def __call__(self, done: int, note: str = "") -> None:
        self._done += done
        self._show(min(self._items, self._done * self._items // self._requests))

    def finish(self) -> None:
        """Whatever was told, all items are done."""
        self._show(self._items)

    def _show(self, items: int) -> None:
        if items > self._shown:
            self._advance(items - self._shown)
            self._shown = items


def even_shares(sizes: Sequence[int], limit: int | None) -> list[int]:
    """How many things of each group, at most `limit` in all, as evenly as the groups allow.

    What a small group cannot give is taken from the larger ones; a remainder goes to groups
    spread over all.
    """
    if limit is None or limit >= sum(sizes):
        return list(sizes)
    shares, left = [0] * len(sizes), limit
    while left:
        open_groups = [n for n, size in enumerate(sizes) if shares[n] < size]
        each = left // len(open_groups)
        if not each:
            open_groups = [open_groups[n] for n in spread(len(open_groups), left)]
            each = 1
        for n in open_groups:
            given = min(each, sizes[n] - shares[n])
            shares[n] += given
            left -= given
    return shares


def _fresh(instance: Any) -> Any:
    return replace(instance, resps=[], filtered_resps={})


def _title(name: str, tasks: dict[str, Any], *, chat: bool) -> str:
    shots = {task.get_config("num_fewshot") or 0 for task in tasks.values()}
    parts = [_TITLES.get(name, name)]
    parts += [f"{min(shots)}-shot"] if len(shots) == 1 else []
    return ", ".join([*parts, "chat"] if chat else parts)


def _question_and_answer(task: Any, doc: Any) -> tuple[str, str]:
    question, answer = task.doc_to_text(doc), task.doc_to_target(doc)
    choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else []
    if isinstance(question, int):
        # The choices are whole beginnings, and all go on in the same way.
        return f"{choices[question]} {answer}", ""
    answers = answer if isinstance(answer, list) else [answer]
    right = [choices[a] if isinstance(a, int) and 0 <= a < len(choices) else a for a in answers]
    return str(question), "\n".join(map(str, right))


def _prediction(task: Any, instances: list[Any]) -> str:
    """The reply, or the choice with the highest likelihood."""
    if instances[0].request_type == "generate_until":
        return str(instances[0].resps[0])
    if task.OUTPUT_TYPE != "multiple_choice":
        return ""
    choices = task.doc_to_choice(instances[0].doc)
    nats = [instance.resps[0][0] for instance in instances[: len(choices)]]
    return str(choices[nats.index(max(nats))])
