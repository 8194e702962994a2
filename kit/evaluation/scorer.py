"""Log-likelihoods of continuations, every common prefix computed once.

    context        c c c c c c            input of the model: all but the last token
    continuation               t t t      t is read where the token before it stands

The requests' inputs make a radix tree (`prefixes.py`), which is gone through in packed rows
(`passes.py`); logits exist only where a token is read, and serve every request that reads there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from kit.evaluation.passes import PackedRow, Passes, pack
from kit.evaluation.prefixes import Budget, Group, Ids, make_plan, plain_plan
from kit.hardware import PASS_TOKENS
from kit.models.logprobs import Project, projector
from kit.progress import Advance, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_LOGIT_ROWS = 256
"""Places whose logits exist at once."""
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_TOLERANCE = {torch.bfloat16: 0.5, torch.float16: 0.1}
"""Nats that rounding may change in three tokens; a wrong mask changes more."""


@dataclass(frozen=True, slots=True)
class Request:
    """log p(continuation | context)."""

    context: tuple[int, ...]
    """Token ids, 1 or more."""
    continuation: tuple[int, ...]
    """Token ids, 1 or more."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What the model says of one request."""

    logprob: float
    """Nats, summed over the continuation; NaN where the model's logits are."""
    is_greedy: bool
    """Whether every token of the continuation is the most probable one."""


def default_budget(device: str) -> Budget:
    """What a pass may hold on a kind of device."""
    if device == "cuda":
        return Budget(pass_tokens=PASS_TOKENS["cuda"], row_tokens=2048, overhead=128.0)
    return Budget(pass_tokens=PASS_TOKENS["cpu"], row_tokens=512)


@torch.no_grad()
def score(
    model: PreTrainedModel,
    requests: Sequence[Request],
    *,
    budget: Budget | None = None,
    share: bool = True,
    advance: Advance = silent,
) -> list[Scored]:
    """Score every request.

    Args:
        model: a causal LM in eval mode.
        requests: in any order; none longer than the model's context.
        budget: limits of a pass; None: the device's. Halved where memory does not suffice.
        share: compute common prefixes once; False: every input on its own, as a reference and
            for models whose caches cannot be shared.
        advance: told of every request that is done.
    """
    budget = budget or default_budget(model.device.type)
    for request in requests:
        assert request.context and request.continuation, "a request of no token"
    answers: dict[int, Scored] = {}
    while len(answers) < len(requests):
        left = [n for n in range(len(requests)) if n not in answers]
        run = _Run(model, [requests[n] for n in left], budget=budget, share=share)
        try:
            for done in run.finished():
                answers.update((left[n], run.answer(n)) for n in done)
                advance(len(done))
        except torch.OutOfMemoryError:
            if budget.pass_tokens <= 64:
                raise
            budget = replace(
                budget,
                pass_tokens=budget.pass_tokens // 2,
                row_tokens=max(64, budget.row_tokens // 2),
            )
            log.warning("out of memory: passes of at most %d tokens from here", budget.pass_tokens)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    bad = [n for n, answer in answers.items() if math.isnan(answer.logprob)] if share else []
    if bad:
        # A hidden key of NaN still gives 0 * NaN: its neighbours in the row are asked once more.
        again = score(model, [requests[n] for n in bad], budget=budget, share=False)
        answers.update(zip(bad, again, strict=True))
    return [answers[n] for n in range(len(requests))]


@dataclass
class _Tally:
    """One request while it is being read."""

    left: int
    parts: list[float] = field(default_factory=list)
    is_greedy: bool = True


class _Run:
    """One plan for some requests, gone through once."""

    def __init__(
        self, model: PreTrainedModel, requests: Sequence[Request], *, budget: Budget, share: bool
    ) -> None:
        self.requests, self.budget = requests, budget
        self.inputs, self.users = _inputs(requests)
        self.plan = make_plan(self.inputs, budget) if share else plain_plan(self.inputs)
        self.share = share
        self.passes, self.project = Passes(model), projector(model)
        self.tallies = [_Tally(len(request.continuation)) for request in requests]

    def answer(self, number: int) -> Scored:
        tally = self.tallies[number]
        assert tally.left == 0
        return Scored(math.fsum(tally.parts), tally.is_greedy)

    def finished(self) -> Iterator[list[int]]:
        """Numbers of requests, as they get done."""
        for group in self.plan.groups:
            if not group.stem:
                yield from self._alone(group)
        stems = sorted((g for g in self.plan.groups if g.stem), key=lambda g: -g.stem)
        while stems:
            count = max(1, self.budget.pass_tokens // stems[0].stem)
            yield from self._with_stems(stems[:count])
            stems = stems[count:]

    def _alone(self, group: Group) -> Iterator[list[int]]:
        if self.share:
            rows = [pack(self.inputs, numbers, 0) for numbers in group.rows]
        else:
            rows = [pack(self.inputs, [n], 0) for numbers in group.rows for n in numbers]
        rows.sort(key=lambda row: -len(row.ids))
        while rows:
            count = max(1, self.budget.pass_tokens // len(rows[0].ids))
            part, rows = rows[:count], rows[count:]
            if all(len(row.edges) == 1 for row in part):
                hidden = self.passes.plain([np.asarray(row.ids) for row in part])
            else:
                hidden = self.passes.trees(part)
            yield self._read(hidden, self._wanted(part, [0] * len(part)))

    def _with_stems(self, groups: list[Group]) -> Iterator[list[int]]:
        sources = [self.inputs[group.rows[0][0]][: group.stem] for group in groups]
        lengths = [group.stem for group in groups]
        hidden, cache = self.passes.stems(sources)
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for place, group in enumerate(groups):
            for number in (n for row in group.rows for n in row):
                for user in self.users[number]:
                    for depth, target in self._reads(user):
                        if depth < group.stem:
                            wanted.setdefault((place, depth), []).append((user, target))
        yield self._read(hidden, wanted)
        del hidden
        for turn in range(max(len(group.rows) for group in groups)):
            numbers = [group.rows[turn] if turn < len(group.rows) else [] for group in groups]
            rows = [
                pack(self.inputs, part, stem) for part, stem in zip(numbers, lengths, strict=True)
            ]
            if any(row.ids for row in rows):
                out = self.passes.trees(rows, stems=lengths, cache=cache)
                yield self._read(out, self._wanted(rows, lengths))

    def _wanted(
        self, rows: Sequence[PackedRow], stems: Sequence[int]
    ) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """(row, place) -> requests that read there, and the token they read."""
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for number, (row, stem) in enumerate(zip(rows, stems, strict=True)):
            for source, places in row.places.items():
                for user in self.users[source]:
                    for depth, target in self._reads(user):
                        if depth >= stem:
                            key = (number, int(places[depth - stem]))
                            wanted.setdefault(key, []).append((user, target))
        return wanted

    def _reads(self, user: int) -> Iterator[tuple[int, int]]:
        """Depth of the token before each token of the continuation, and that token."""
        request = self.requests[user]
        return enumerate(request.continuation, start=len(request.context) - 1)

    def _read(
        self,
        hidden_BQH: torch.Tensor,
        wanted: dict[tuple[int, int], list[tuple[int, int]]],
    ) -> list[int]:
        """Read tokens at their places; the numbers of requests that are done by it."""
        done = []
        keys = list(wanted)
        for start in range(0, len(keys), _LOGIT_ROWS):
            part = keys[start : start + _LOGIT_ROWS]
            readers = [(i, *reader) for i, key in enumerate(part) for reader in wanted[key]]
            for user, nats, is_best in _token_logprobs(hidden_BQH, part, readers, self.project):
                tally = self.tallies[user]
                tally.parts.append(nats)
                tally.is_greedy &= is_best
                tally.left -= 1
                if not tally.left:
                    done.append(user)
        return done


def _token_logprobs(
    hidden_BQH: torch.Tensor,
    places: Sequence[tuple[int, int]],
    readers: Sequence[tuple[int, int, int]],
    project: Project,
) -> Iterator[tuple[int, float, bool]]:
    """(request, nats, whether it is the most probable) of each (place, request, token)."""
    device = hidden_BQH.device
    at = torch.tensor(places, device=device)
    logits_NV = project(hidden_BQH[at[:, 0], at[:, 1]]).float()
    total_N, best_N = logits_NV.logsumexp(-1), logits_NV.argmax(-1)
    index = torch.tensor([[place, token] for place, _, token in readers], device=device)
    nats = logits_NV[index[:, 0], index[:, 1]] - total_N[index[:, 0]]
    is_best = best_N[index[:, 0]] == index[:, 1]
    users = [user for _, user, _ in readers]
    return zip(users, nats.tolist(), is_best.tolist(), strict=True)


def _inputs(requests: Sequence[Request]) -> tuple[list[Ids], list[list[int]]]:
    """The different inputs, sorted, and the requests that have each."""
    users: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        users.setdefault((*request.context, *request.continuation[:-1]), []).append(number)
    ordered = sorted(users)
    return [np.asarray(ids, dtype=np.int64) for ids in ordered], [users[ids] for ids in ordered]


def sharing_problem(model: PreTrainedModel) -> str:
    """Why common prefixes cannot be shared on a model; empty where they can.

    What its configuration shows is looked at first. Then some made-up requests are scored both
    ways, and must agree: that is the proof for whatever the model's code does with masks,
    positions and caches.

    Args:
        model: a causal LM in eval mode, without adapters.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - _KNOWN_LAYERS:
        return (
            f"layers of the kind {', '.join(sorted(kinds - _KNOWN_LAYERS))} keep no keys to share"
        )
    attention = config._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"{attention} attention takes no mask of a tree"
    requests = _made_up(config.vocab_size)
    budget = Budget(pass_tokens=64, row_tokens=24, overhead=0.0)
    try:
        both = [score(model, requests, budget=budget, share=share) for share in (True, False)]
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        # Other people's model code, given masks and caches that it may not know.
        reason = (str(error).strip().splitlines() or [""])[0]
        return f"its code takes no mask of a tree ({type(error).__name__}: {reason})"
    gap = max(abs(a.logprob - b.logprob) for a, b in zip(*both, strict=True))
    allowed = _TOLERANCE.get(model.dtype, 1e-3)
    if not gap <= allowed:
        return f"made-up requests differ by {gap:.2g} nats from the plain way"
    return ""


def _made_up(vocabulary: int) -> list[Request]:
    """A header, three questions, and choices of one and of several tokens."""
    ids = [(37 * n * n + 11 * n + 5) % vocabulary for n in range(90)]
    header, requests = ids[:20], []
    for question in range(3):
        context = tuple(header + ids[20 + 7 * question : 20 + 7 * question + 5 + question])
        start = 50 + 9 * question
        requests += [Request(context, (ids[start + n],)) for n in range(3)]
        requests += [Request(context, tuple(ids[start + n : start + n + 3])) for n in range(3)]
    return requests
