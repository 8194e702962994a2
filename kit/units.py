"""Sizes and spans as people write them: "20M tokens", "15.2 GiB", "1 h 40 min".

Everything inside the kit is counted in plain integers (tokens, bytes) and floats (seconds); these
functions stand at the two borders, where a recipe is read and where a line is printed.
"""

from __future__ import annotations

import re

GIB = 1024**3
_FACTORS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000, "g": 1_000_000_000}
_TOKENS = re.compile(r"^\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([kmbg]?)\s*(?:tokens?)?\s*$", re.I)


def parse_tokens(value: int | str) -> int:
    """Read a number of tokens.

    Args:
        value: an integer, or text such as `20M`, `1.5B tokens`, `300_000`.

    Raises:
        ValueError: the text is no number of tokens, or not above zero.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is no number of tokens; write 300_000 or 20M")
    if isinstance(value, int):
        count = value
    else:
        match = _TOKENS.match(value)
        if not match:
            raise ValueError(f"{value!r} is no number of tokens; write 300_000, 20M or 1.5B tokens")
        number = float(match[1].replace("_", "").replace(",", ""))
        count = round(number * _FACTORS[match[2].lower()])
    if count <= 0:
        raise ValueError(f"{value!r}: the number of tokens must be above zero")
    return count


def show_count(count: int | float) -> str:
    """`20.0M`, `133k`, `512`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(count) >= size:
            scaled = count / (1e3 if letter == "k" else size)
            return f"{scaled:.0f}{letter}" if letter == "k" else f"{scaled:.3g}{letter}"
    return f"{count:,.0f}"


def show_bytes(count: int | float) -> str:
    """`15.2 GiB`, `12.0 MiB`, `512 B`."""
    for size, name in ((GIB, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if abs(count) >= size:
            return f"{count / size:.1f} {name}"
    return f"{count:.0f} B"


def show_seconds(seconds: float) -> str:
    """`1 h 40 min`, `3 min 05 s`, `12 s`, `0.4 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
