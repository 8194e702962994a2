"""Greedy decoding: a row leaves as it ends, and the next prompt takes its place.

    slot 0   prompt 1 a b c END | prompt 5 a b c d e f ...
    slot 1   prompt 2 a b c d e f g h i j k l m END | ...     no step computes a row that has ended
    slot 2   prompt 3 a END | prompt 4 a b c d e f END | ...

Prompts are read in passes of their own (kit.evaluation.cache). A row's reply is what it would be
alone, up to the rounding of another batch shape.

transformers' own `generate` is not used: it takes temperature and repetition penalty from a
checkpoint's generation config, and goes on computing rows that have ended until the longest one is
done. Nor is its continuous batching: its paged cache is sized from free memory and made for CUDA,
it has no stop strings, and it generates in a thread of its own, where a caller's hooks and errors
are out of reach.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import torch

from kit.evaluation.cache import Slots
from kit.evaluation.stops import Stops as Stops
from kit.models.logprobs import final_hidden, projector
from kit.progress import Advance, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_TOLERANCE = {torch.bfloat16: 0.5, torch.float16: 0.1}
"""Nats that rounding may change in one token; a wrong mask changes more."""
_PATIENCE = 0.25
"""A pass for prompts is made once as many row-steps as this part of the slots were left empty."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One prompt."""

    prompt: tuple[int, ...]
    """Token ids, 1 or more."""
    limit: int
    """At most so many new tokens (1 or more)."""


@dataclass(frozen=True)
class Generation:
    """One reply."""

    ids: tuple[int, ...]
    """Every generated token, the one that ended the reply included."""
    text: str
    """The reply without special tokens, and without what ended it unless that is kept."""
    stopped: bool
    """Whether it ended by itself; False when the limit cut it off."""
    error: str = ""
    """Why there is no reply; empty when there is one."""


@dataclass
class Row:
    """One row while it is being decoded."""

    ask: Ask
    ids: list[int] = field(default_factory=list)
    stopped: bool = False
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether no token is to follow."""
        return self.stopped or bool(self.error) or len(self.ids) >= self.ask.limit

    @property
    def tokens(self) -> tuple[int, ...]:
        """The prompt and the reply so far."""
        return (*self.ask.prompt, *self.ids)

    def take(self, token: int, *, is_finite: bool, stops: Stops) -> None:
        """Add the next token, or note that there was none."""
        if not is_finite:
            self.error = f"the logits of token {len(self.ids) + 1} of the reply are not finite"
            return
        self.ids.append(token)
        self.stopped = stops.end(self.ids)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    asks: Sequence[Ask],
    *,
    stops: Stops,
    slots: int,
    advance: Advance = silent,
) -> list[Generation]:
    """Answer every prompt greedily, longest prompts first.

    Args:
        model: a causal LM in eval mode.
        asks: the prompts.
        stops: what ends a reply.
        slots: replies that are written side by side; halved where memory does not suffice.
        advance: told of every prompt that is done.
    """
    rows = [Row(ask) for ask in asks]
    decode = decode_greedily if rows and refilling_problem(model) else decode_refilling
    left = rows
    while left:
        try:
            decode(model, left, stops=stops, slots=slots, advance=advance)
        except torch.OutOfMemoryError:
            if slots == 1:
                raise
            slots = max(1, min(slots, len(left)) // 2)
            log.warning("out of memory: at most %d replies side by side from here", slots)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        left = [row for row in rows if not row.ended]
    return [
        Generation(
            ids=tuple(row.ids), text=stops.text(row.ids), stopped=row.stopped, error=row.error
        )
        for row in rows
    ]


def decode_refilling(
    model: PreTrainedModel, rows: Sequence[Row], *, stops: Stops, slots: int, advance: Advance
) -> None:
    """Decode rows to their ends, as many as there are slots side by side.

    Where memory does not suffice, the rows that have not ended keep what they have so far.
    """
    waiting = sorted(rows, key=lambda row: -len(row.tokens))[::-1]  # the longest is popped first
    live: list[Row] = []
    held = Slots(model, min(slots, len(rows)))
    idle = 0
    while waiting or live:
        is_due = not live or idle >= _PATIENCE * held.count
        if waiting and len(live) < held.count and is_due:
            prompts = [row.tokens for row in waiting[: -held.count - 1 : -1]]
            logits_BV = held.fill(prompts)
            new = [waiting.pop() for _ in range(len(logits_BV))]
            live += new
            _take(logits_BV, new, stops)
        else:
            idle = 0 if len(live) == held.count else idle + held.count - len(live)
            _take(held.step([row.ids[-1] for row in live]), live, stops)
        ended = [slot for slot, row in enumerate(live) if row.ended]
        # From the end on, so that no row that has ended is moved.
        for slot in reversed(ended):
            held.drop(slot, wipe=bool(live[slot].error))
            last = live.pop()
            if slot < len(live):
                live[slot] = last
        if ended:
            advance(len(ended))


def _take(logits_BV: torch.Tensor, rows: Sequence[Row], stops: Stops) -> None:
    # max carries NaN along, so one pass both chooses and checks.
    best_B, next_B = logits_BV.max(dim=-1)
    for row, token, is_finite in zip(
        rows, next_B.tolist(), best_B.isfinite().tolist(), strict=True
    ):
        row.take(token, is_finite=is_finite, stops=stops)


def decode_greedily(
    model: PreTrainedModel, rows: Sequence[Row], *, stops: Stops, slots: int, advance: Advance
) -> None:
    """Decode rows to their ends in batches that rows leave and none joins.

    For models that keep something else than keys and values: transformers' own cache does it.
    """
    left = sorted(rows, key=lambda row: -len(row.tokens))
    while left:
        part, left = left[:slots], left[slots:]
        _decode_batch(model, part, stops=stops, advance=advance)


def _decode_batch(
    model: PreTrainedModel, rows: Sequence[Row], *, stops: Stops, advance: Advance
) -> None:
    """Padding on the left, hidden by the mask; positions start at a row's first token."""
    from transformers import DynamicCache

    ids_BT, mask_BT = _left_padded([row.tokens for row in rows], model.device)
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    alive = list(rows)
    while True:
        logits_BV = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        _take(logits_BV, alive, stops)
        places = [place for place, row in enumerate(alive) if not row.ended]
        if len(places) < len(alive):
            advance(len(alive) - len(places))
        if not places:
            return
        next_B = torch.tensor([alive[place].ids[-1] for place in places], device=ids_BT.device)
        if len(places) < len(alive):
            # Costs one copy of the cache, which every step's concatenation costs anyway. Beam
            # search's reordering takes any rows, and all kinds of cache layer have it.
            keep = cast("torch.LongTensor", torch.tensor(places, device=ids_BT.device))
            cache.reorder_cache(keep)
            mask_BT, positions_BT = mask_BT[keep], positions_BT[keep]
            alive = [alive[place] for place in places]
        ids_BT = next_B[:, None]
        mask_BT = torch.nn.functional.pad(mask_BT, (0, 1), value=1)
        positions_BT = positions_BT[:, -1:] + 1


def _left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, (batch, longest prompt)."""
    width = max(map(len, prompts))
    # Any id serves as padding: the mask hides it. 0 exists in every vocabulary.
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


_problems: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def refilling_problem(model: PreTrainedModel) -> str:
    """Why the rows of a model cannot come and go; empty where they can.

    What its configuration shows is looked at first. Then made-up rows of different lengths are
    decoded by one token and must agree with whole passes: that is the proof for whatever the
    model's code does with masks, positions and caches. Done and logged once for a model.

    Args:
        model: a causal LM in eval mode.
    """
    if model not in _problems:
        _problems[model] = _find_problem(model)
        if _problems[model]:
            log.info("replies are written in plain batches: %s", _problems[model])
    return _problems[model]


@torch.no_grad()
def _find_problem(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    unknown = set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS
    if unknown:
        return f"layers of the kind {', '.join(sorted(unknown))} keep no keys and values"
    if getattr(model, "_is_stateful", False):
        return "the model keeps a state, and no keys and values"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"{config._attn_implementation} attention takes no mask of rows' own lengths"
    ids = [(37 * n * n + 11 * n + 5) % config.vocab_size for n in range(60)]
    prompts = [ids[:24], ids[30:35], ids[:20] + ids[40:49]]
    try:
        held = Slots(model, len(prompts))
        while len(held.lengths) < len(prompts):
            held.fill(prompts[len(held.lengths) :])
        found = held.step(ids[-len(prompts) :]).float().log_softmax(-1)
        project = projector(model)
        for row, (prompt, last) in enumerate(zip(prompts, ids[-len(prompts) :], strict=True)):
            whole = torch.tensor([[*prompt, last]], device=model.device)
            wanted = project(final_hidden(model, whole)[:, -1]).float().log_softmax(-1)
            best = int(wanted.argmax())
            gap = float((found[row, best] - wanted[0, best]).abs().nan_to_num())
            if gap > _TOLERANCE.get(model.dtype, 1e-3):
                return f"made-up rows differ by {gap:.2g} nats from whole passes"
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        # Other people's model code, given masks and a cache that it may not know.
        reason = (str(error).strip().splitlines() or [""])[0]
        return f"its code takes no rows of different lengths ({type(error).__name__}: {reason})"
    return ""
