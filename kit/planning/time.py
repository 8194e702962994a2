"""Time of a training and of its measurements, from operation counts; an order of magnitude.

One token costs, with N weights in matrix products (head included) and A adapter parameters:

    forward     2 N + 2 A + attention
    backward    2 N + 4 A + 2 attention     frozen weights need no gradient of their own
    again       2 * vocab * hidden          the loss computes its logits twice
    again       2 N_layers + 2 A + attention      with activation checkpointing

Attention is 4 * seq_len * heads * head_dim per layer (scores and values, whole blocks). Frozen
NF4 weights are also unpacked once per pass and micro-batch, which costs memory traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

from kit.models.shapes import ModelShape
from kit.planning.cards import Card
from kit.planning.memory import Load

UNPACK_BYTES = 4.5
"""Memory traffic per NF4 weight and pass: half a byte read, 16 bits written and read again."""
STEP_SECONDS = 0.03
"""Launching one generation step of a model on a GPU: assumed."""


@dataclass(frozen=True, kw_only=True)
class TimeEstimate:
    """An order of magnitude, with what it was made from."""

    seconds: float
    how: str


def training_flops(shape: ModelShape, load: Load, *, tokens: int) -> float:
    """Operations of a training on `tokens` tokens (multiply and add count as two)."""
    names = list(load.target_modules)
    adapter = shape.adapter_parameters(
        load.rank, "all-linear" if names == ["all-linear"] else names
    )
    attention = 4 * load.seq_len * shape.heads * shape.head_dim * shape.layers
    weights, head = shape.matmul_parameters, shape.vocab * shape.hidden
    per_token = 4 * weights + 6 * adapter + 3 * attention + 2 * head
    if load.activation_checkpointing:
        per_token += 2 * shape.linear_parameters + 2 * adapter + attention
    return float(per_token) * tokens


def training_time(shape: ModelShape, load: Load, card: Card, *, tokens: int) -> TimeEstimate | None:
    """Seconds of one training; None where the card's rate is not known."""
    rate = card.rate
    if rate is None:
        return None
    flops = training_flops(shape, load, tokens=tokens)
    seconds = flops / rate
    if load.quantization == "nf4":
        passes = 3 if load.activation_checkpointing else 2
        micro_batches = tokens / (load.seq_len * load.micro_batch_size)
        traffic = micro_batches * passes * UNPACK_BYTES * shape.linear_parameters
        seconds += traffic / card.bandwidth
    how = f"{flops:.2g} operations at {rate / 1e12:.3g} TFLOP/s ({card.efficiency:.0%} of peak"
    return TimeEstimate(seconds=seconds, how=f"{how}, assumed)")


def generation_time(
    shape: ModelShape, card: Card, *, rows: int, new_tokens: int, batch_size: int
) -> TimeEstimate | None:
    """Seconds to generate replies of full length with 16-bit weights; most replies end earlier.

    Every step reads all weights once for the whole batch.
    """
    if card.rate is None or rows == 0:
        return None
    steps = -(-rows // batch_size) * new_tokens
    bytes_per_step = 2 * shape.matmul_parameters
    work = 2 * shape.matmul_parameters * batch_size / card.rate
    overhead = STEP_SECONDS if card.device == "cuda" else 0.0
    step = overhead + max(bytes_per_step / (0.6 * card.bandwidth), work)
    return TimeEstimate(seconds=steps * step, how=f"at most {steps:,} steps of {step:.2g} s")
