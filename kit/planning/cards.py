"""GPUs that people have, as a plan needs them: memory, matrix rate, memory bandwidth.

Rates are the makers' dense 16-bit figures with 32-bit accumulation; consumer cards reach half of
their advertised rate in that mode. Usable memory is what the driver leaves of the nominal size.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from typing import Literal

from kit.units import GIB


@dataclass(frozen=True, kw_only=True)
class Card:
    """One device."""

    name: str
    device: Literal["cuda", "cpu"]
    usable_bytes: int
    """Memory that a process can have."""
    flops: float | None
    """Peak of 16-bit matrix products per second; None: not known."""
    efficiency: float
    """Assumed share of `flops` that QLoRA training reaches."""
    bandwidth: float
    """Bytes per second between memory and chip."""
    bfloat16: bool
    """Whether it has bfloat16 units."""
    assumed: str = ""
    """What in these numbers is a guess; empty for the cards of the table."""

    @property
    def rate(self) -> float | None:
        """Matrix operations per second that a time estimate counts with."""
        return None if self.flops is None else self.flops * self.efficiency


def _gpu(name: str, gib: float, tera: float, giga: float, *, bf16: bool = True) -> Card:
    return Card(
        name=name,
        device="cuda",
        usable_bytes=int(gib * GIB),
        flops=tera * 1e12,
        efficiency=0.3,
        bandwidth=giga * 1e9,
        bfloat16=bf16,
    )


CARDS: dict[str, Card] = {
    "t4": _gpu("T4", 14.7, 65, 320, bf16=False),
    "rtx 3060": _gpu("RTX 3060", 11.7, 25.5, 360),
    "rtx 4060 ti": _gpu("RTX 4060 Ti 16 GB", 15.6, 44, 288),
    "l4": _gpu("L4", 22.0, 121, 300),
    "rtx 3090": _gpu("RTX 3090", 23.5, 71, 936),
    "rtx 4090": _gpu("RTX 4090", 23.5, 165, 1008),
    "a100 40": _gpu("A100 40 GB", 39.3, 312, 1555),
    "a100 80": _gpu("A100 80 GB", 79.0, 312, 2039),
    "h100": _gpu("H100 80 GB", 79.0, 989, 3350),
}
"""By the words that tell a card in the driver's name for it."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:GiB|GB|G)\b", re.I)


def find_card(text: str) -> Card:
    """The card that a text means.

    Args:
        text: `t4`, `RTX 3060`, the driver's name with its memory, `cpu`, `cpu 4 cores`; or just a
            size such as `24 GiB`.

    Raises:
        ValueError: the text names neither a known card nor a size.
    """
    words = re.sub(r"[-_,()]+", " ", text.lower())
    words = re.sub(r"\b(nvidia|tesla|geforce|sxm\d?|pcie)\b", " ", words)
    words = re.sub(r"\brtx(?=\d)", "rtx ", re.sub(r"(?<=\d)ti\b", " ti", words))
    words = " ".join(words.split())
    sizes = _SIZE.findall(words)
    size = float(sizes[-1]) * GIB if sizes else None
    if re.search(r"\bcpu\b", words):
        return _cpu(words, size)
    card = _of_table(words)
    if card is not None:
        # laptop and half-size versions share the name of the card in the table
        differs = size is not None and not 0.9 < size / card.usable_bytes < 1.15
        return replace(card, usable_bytes=int(0.97 * size)) if size and differs else card
    if size is None:
        known = ", ".join(card.name for card in CARDS.values())
        raise ValueError(f"{text!r} is no card that is known ({known}), and names no size")
    return Card(
        name=text.strip(),
        device="cuda",
        usable_bytes=int(0.97 * size),
        flops=None,
        efficiency=0.3,
        bandwidth=300e9,
        bfloat16=True,
        assumed="the card is not in the table: memory from its name, no rate",
    )


def local_hardware() -> str:
    """The machine at hand in words that `find_card` reads; asks nvidia-smi, not torch."""
    gpus = nvidia_gpus()
    if gpus:
        return gpus[0]
    memory = _machine_bytes()
    size = f", {memory / GIB:.0f} GiB" if memory else ""
    return f"cpu {_cores()} cores{size}"


def nvidia_gpus() -> list[str]:
    """Name and memory of every GPU that nvidia-smi lists; empty without one, or without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        name, _, mebibytes = line.rpartition(",")
        if name and mebibytes.strip().isdigit():
            found.append(f"{name.strip()}, {int(mebibytes) / 1024:.1f} GiB")
    return found


def _cpu(words: str, memory: float | None) -> Card:
    named = re.search(r"(\d+)\s*(?:cores?|threads?)", words)
    cores = int(named[1]) if named else _cores()
    return Card(
        name=f"CPU, {cores} cores",
        device="cpu",
        usable_bytes=int(memory or _machine_bytes() or 8 * GIB),
        flops=cores * 60e9,
        efficiency=0.4,
        bandwidth=20e9,
        bfloat16=_cpu_has_bf16(),
        assumed="60 GFLOP/s per core, of which 40 % are reached: a guess that may be 3 times off",
    )


def _of_table(words: str) -> Card | None:
    for key, card in CARDS.items():
        parts = key.removeprefix("rtx ").split()
        if all(re.search(rf"\b{part}(?=gb?\b|gib\b|\b)", words) for part in parts):
            return card
    return CARDS["a100 40"] if "a100" in words else None


def _cpu_has_bf16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 (Linux tells; elsewhere: no)."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return "avx512_bf16" in file.read(100_000)
    except OSError:
        return False


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _machine_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
