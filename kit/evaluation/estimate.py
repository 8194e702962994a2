"""How long a measurement will take: the tokens of its tasks at the speed that the model shows.

    seconds  =  tokens read / tokens read per second  +  tokens written / tokens written per second

Replies are counted at their full length, so what is said before is an upper bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kit.evaluation.engine import Engine
from kit.evaluation.task import Cost, Task
from kit.units import show_seconds

T = TypeVar("T")

_READ_TOKENS = 512
_WRITTEN_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one loaded model does per second on this machine."""

    read: float
    """Tokens scored or read as a prompt."""
    written: float
    """Tokens of replies, all that are written side by side together."""

    def seconds(self, cost: Cost) -> float:
        """Time for so much work."""
        return cost.read / self.read + cost.written / self.written


def measure_speed(engine: Engine) -> Speed:
    """Time a short text and some short replies; takes about as long as a few hundred tokens."""
    length = min(_READ_TOKENS, engine.max_length)
    vocabulary = len(engine.tokenizer)
    text = [7 * n % vocabulary for n in range(length)]
    rows = min(engine.batch_size, 16)
    prompts = [text[n : n + 8] for n in range(rows)]
    engine.nll([text[:32]])  # the first call also loads kernels and allocates
    _, reading = _timed(lambda: engine.nll([text]))
    replies, writing = _timed(lambda: engine.generate(prompts, max_new_tokens=_WRITTEN_TOKENS))
    written = sum(len(reply.ids) for reply in replies)
    return Speed(read=length / reading, written=written / writing)


def estimate(engine: Engine, tasks: Sequence[Task]) -> dict[str, float]:
    """Seconds of each task on one stack, by the task's title."""
    speed = measure_speed(engine)
    return {task.info.title: speed.seconds(task.cost(engine)) for task in tasks}


def estimate_lines(seconds: Mapping[str, float], *, stacks: int) -> list[str]:
    """What an estimate says, for the console."""
    total = show_seconds(sum(seconds.values()) * stacks)
    each = ", ".join(f"{title} {show_seconds(value)}" for title, value in seconds.items())
    return [
        f"  estimated: {total} for {stacks} stacks, replies counted at full length",
        f"  each stack: {each}",
    ]


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = call()
    return result, max(time.perf_counter() - started, 1e-6)
