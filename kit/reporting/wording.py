"""Numbers and names as every part of the report writes them; all of it plain text."""

from __future__ import annotations

import math
import re

from kit.runs.records import TaskInfo

MINUS = "\u2212"
ARROWS = {"higher": "\u2191", "lower": "\u2193"}


def show_value(value: float, info: TaskInfo) -> str:
    """`62.5 %`, `1.234`."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:.1f} %" if info.unit == "share" else f"{value:.3f}"


def show_difference(value: float, info: TaskInfo) -> str:
    """`+3.2` percentage points, `-0.051` bits per byte, with a true minus."""
    text = f"{100 * value:+.1f}" if info.unit == "share" else f"{value:+.3f}"
    if float(text) == 0:
        text = text[1:]
    return text.replace("-", MINUS)


def show_bounds(low: float, high: float, info: TaskInfo, *, signed: bool = False) -> str:
    """`[51.2, 72.9]`, signed for a difference."""
    if math.isnan(low) or math.isnan(high):
        return "[no interval]"
    if signed:
        return f"[{show_difference(low, info)}, {show_difference(high, info)}]"
    factor, digits = (100, 1) if info.unit == "share" else (1, 3)
    return f"[{factor * low:.{digits}f}, {factor * high:.{digits}f}]"


def escape_markdown(text: str) -> str:
    """Text that stands in Markdown, also in a table cell, as itself."""
    text = clean_text(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", text)


def clean_text(text: str) -> str:
    """One line, and nothing in it that moves a cursor or cannot be written."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else " " for c in text)
