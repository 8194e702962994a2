"""lm-eval's settings of generation: what of them greedy decoding can do."""

from __future__ import annotations

from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from kit.errors import RecipeError

LONGEST = 256
"""Tokens of a reply where a task does not say, as in lm-eval's HFLM."""
_HARMLESS = {"until", "max_gen_toks", "do_sample", "num_beams"}
_HARMLESS |= {"temperature", "top_p", "top_k", "min_p"}
"""Settings of generation that are known here, or change nothing without sampling."""


def longest_reply(settings: dict[str, Any]) -> int:
    """Tokens that a reply may have."""
    return int(normalize_gen_kwargs(settings, LONGEST)["max_gen_toks"])


def stops_of(settings: dict[str, Any], *, eos: str) -> tuple[str, ...]:
    """Texts that end a reply; EOS is one of them."""
    until = list(normalize_gen_kwargs(settings)["until"])
    return tuple(handle_stop_sequences(until, eos=eos))


def check_greedy(settings: dict[str, Any]) -> None:
    """Refuse settings of generation that are not greedy decoding.

    Raises:
        RecipeError: they sample, search with beams, or say something unknown.
    """
    plain = dict(normalize_gen_kwargs(settings))
    problem = "sampling" if plain.get("do_sample") else ""
    strange = sorted(set(plain) - _HARMLESS)
    if plain.get("num_beams", 1) != 1 or strange:
        problem = problem or f"{', '.join(strange) or 'num_beams'}"
    if problem:
        raise RecipeError(
            f"only greedy decoding is done here, and the task asks for {problem}",
            where=f"generation settings {settings}",
            fix="set do_sample to false and leave the others out, or use lm-eval's own HFLM",
        )
