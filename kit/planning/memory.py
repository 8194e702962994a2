"""Memory of a training, computed from the shapes; computed, not measured.

    frozen weights      NF4 with double quantisation for the linears, 16 bit for the rest
    adapter             float32 weights, gradients, two Adam moments (16 bytes per parameter), and
                        the 16-bit copy that autocast keeps (2)
    activations         what the backward pass needs of a micro-batch
    loss                logits of one chunk of tokens, never (batch, seq, vocab)
    dequantisation      the largest matrix in 16 bit, one at a time
    context             CUDA's own, the libraries' workspaces, and what the allocator loses

NF4 takes 4 bits, a byte of scale per 64 weights, and a float32 per 256 of these scales:
4 + 8/64 + 32/(64*256) = 4.127 bits per weight (arXiv 2305.14314, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from kit.hardware import PASS_TOKENS
from kit.models.shapes import ModelShape
from kit.planning.cards import Card
from kit.recipe.schema import Quantization
from kit.units import GIB, show_bytes

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
LOSS_BYTES = 12
"""Per logit of a chunk at the peak: float32 log-probabilities, their gradient, the logits'."""
FRAGMENTATION = 0.06
"""Share of the total that the caching allocator cannot use; a rule of thumb."""
CONTEXT_BYTES = {"cuda": int(0.6 * GIB), "cpu": int(0.6 * GIB)}


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a training puts on a device."""

    quantization: Quantization
    compute_bytes: int
    """Bytes per activation: 2 in 16 bit, 4 in float32."""
    rank: int
    target_modules: tuple[str, ...]
    """Names of modules, or ("all-linear",)."""
    seq_len: int
    micro_batch_size: int
    activation_checkpointing: bool
    section: Literal["train", "sft"] = "train"
    """The recipe's section that the load comes from, to name its keys in advice."""
    loss_chunk_tokens: int = 1024


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of an estimate."""

    name: str
    size_bytes: int
    how: str


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Where the memory goes."""

    parts: tuple[Part, ...]

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return sum(part.size_bytes for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an estimate fits a card, and what would make it fit."""

    card: str
    usable_bytes: int
    needed_bytes: int
    change: str
    """The cheapest change that makes it fit; empty where it fits already."""

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the card's memory."""
        return self.needed_bytes <= self.usable_bytes

    def line(self) -> str:
        """`fits RTX 3060: 9.1 GiB of 11.7 GiB`."""
        sizes = f"{show_bytes(self.needed_bytes)} of {show_bytes(self.usable_bytes)}"
        if self.fits:
            return f"fits {self.card}: {sizes} (computed, not measured)"
        return f"does not fit {self.card}: {sizes} (computed); {self.change}"


def estimate_training(shape: ModelShape, load: Load, *, device: str = "cuda") -> MemoryEstimate:
    """Peak memory of one micro-batch with the optimizer's state in place.

    Args:
        shape: the model.
        load: what is trained on it.
        device: `cuda` or `cpu`.
    """
    tokens = load.seq_len * load.micro_batch_size
    targets = load.target_modules if load.target_modules != ("all-linear",) else "all-linear"
    names = targets if isinstance(targets, str) else list(targets)
    adapter = shape.adapter_parameters(load.rank, names)
    per_parameter = 16 + (2 if load.compute_bytes == 2 else 0)
    chunk = min(load.loss_chunk_tokens, tokens)
    parts = [
        *_weights(shape, load.quantization, load.compute_bytes),
        Part(
            name="adapter",
            size_bytes=adapter * per_parameter,
            how=f"{adapter:,} parameters x {per_parameter} bytes: weights, gradients, Adam",
        ),
        Part(
            name="activations",
            size_bytes=_activation_bytes(shape, load, device),
            how=f"{tokens:,} tokens"
            + (", layer inputs alone" if load.activation_checkpointing else ", all layers"),
        ),
        Part(
            name="loss",
            size_bytes=chunk * shape.vocab * LOSS_BYTES,
            how=f"logits of {chunk:,} tokens over {shape.vocab:,} words",
        ),
    ]
    if load.quantization == "nf4":
        largest = max(linear.parameters for linear in shape.linears)
        parts.append(
            Part(
                name="dequantisation",
                size_bytes=largest * load.compute_bytes,
                how="the largest matrix, one at a time",
            )
        )
    return _with_overhead(parts, device)


def estimate_measuring(
    shape: ModelShape,
    *,
    quantization: Quantization,
    compute_bytes: int,
    batch_size: int,
    row_tokens: int,
    device: str = "cuda",
) -> MemoryEstimate:
    """Peak memory while texts are scored or replies are generated; no gradients.

    Args:
        shape: the model.
        quantization: how the weights are held; `16bit` for a dequantised copy to decode with.
        compute_bytes: bytes per activation.
        batch_size: replies that are written side by side.
        row_tokens: tokens per row, prompt and reply together.
        device: `cuda` or `cpu`.
    """
    tokens = batch_size * row_tokens
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim
    live = 3 * shape.intermediate + 4 * shape.hidden + 3 * shape.heads * shape.head_dim
    parts = [
        *_weights(shape, quantization, compute_bytes),
        Part(
            name="keys and values",
            size_bytes=tokens * per_token * compute_bytes,
            how=f"{batch_size} rows of {row_tokens:,} tokens",
        ),
        Part(
            name="activations",
            size_bytes=min(tokens, PASS_TOKENS[device]) * live * compute_bytes,
            how="one layer at a time",
        ),
        Part(
            name="logits",
            size_bytes=min(1024, tokens) * shape.vocab * 8,
            how="of one chunk",
        ),
    ]
    return _with_overhead(parts, device)


def judge(shape: ModelShape, load: Load, card: Card) -> Verdict:
    """Whether a training fits a card, else the cheapest change that makes it fit.

    Changes are tried in the order of their price: smaller micro-batches cost some speed, NF4 a
    little accuracy, checkpointing a third of the speed, shorter blocks and lower ranks change the
    experiment. Where no single change is enough they are added up in that order.
    """
    needed = estimate_training(shape, load, device=card.device).total_bytes
    change = ""
    if needed > card.usable_bytes:
        change = _cheapest(shape, load, card)
    return Verdict(
        card=card.name, usable_bytes=card.usable_bytes, needed_bytes=needed, change=change
    )


def _cheapest(shape: ModelShape, load: Load, card: Card) -> str:
    def fits(changed: Load) -> bool:
        need = estimate_training(shape, changed, device=card.device).total_bytes
        return need <= card.usable_bytes

    for words, changed in _changes(load):
        if fits(changed):
            return f"it fits with {words}"
    words_all: list[str] = []
    while True:
        step = next(iter(_changes(load)), None)
        if step is None:
            return "no setting makes it fit; take a smaller model or a larger card"
        words, load = step
        key = words.split("=")[0]
        words_all = [w for w in words_all if w.split("=")[0] != key] + [words]
        if fits(load):
            return f"it fits with {' and '.join(words_all)}"


def _changes(load: Load) -> Iterator[tuple[str, Load]]:
    """Single changes that save memory, cheapest first."""
    size = load.micro_batch_size
    while size > 1:
        size //= 2
        yield f"{load.section}.micro_batch_size={size}", replace(load, micro_batch_size=size)
    if load.quantization != "nf4":
        yield "models.quantization=nf4", replace(load, quantization="nf4")
    if not load.activation_checkpointing:
        words = "train.activation_checkpointing=true"
        yield words, replace(load, activation_checkpointing=True)
    length, key = load.seq_len, "train.seq_len" if load.section == "train" else "sft.max_length"
    while length >= 512:
        length //= 2
        yield f"{key}={length}", replace(load, seq_len=length)
    rank = load.rank
    while rank >= 16:
        rank //= 2
        yield f"lora.rank={rank}", replace(load, rank=rank)


def _weights(shape: ModelShape, quantization: Quantization, compute_bytes: int) -> list[Part]:
    others = shape.embedding_parameters + shape.vector_parameters
    if quantization == "nf4":
        linear = int(shape.linear_parameters * NF4_BITS / 8)
        return [
            Part(name="frozen linears", size_bytes=linear, how=f"NF4, {NF4_BITS:.3f} bits each"),
            Part(
                name="embeddings, norms",
                size_bytes=others * compute_bytes,
                how=f"{8 * compute_bytes} bit",
            ),
        ]
    width = 4 if quantization == "32bit" else 2
    total = (shape.linear_parameters + others) * width
    return [Part(name="frozen weights", size_bytes=total, how=f"{8 * width} bit")]


def saved_bytes(shape: ModelShape, load: Load, *, device: str = "cuda") -> int:
    """What the forward pass keeps for the backward pass, without checkpointing.

    Per token and layer, in elements of the compute dtype unless said: the adapters' inputs (2
    hidden, attention output, MLP product), gate, up and the activated gate (3 intermediate), q,
    repeated k and v, and the attention's output (4 wide), the low-rank products, and the norms'
    inputs in float32 (2 hidden x 4 bytes). PEFT copies the input of each adapter that is not on a
    4-bit layer under CUDA's autocast (3 hidden more). Each layer keeps the block-diagonal mask as
    the bias that the kernel makes of it.
    """
    c = load.compute_bytes
    wide = shape.heads * shape.head_dim
    copies = 0 if load.quantization == "nf4" and device == "cuda" else 3
    inside = 4 * shape.intermediate + (2 + copies) * shape.hidden + 5 * wide
    layer = (inside + load.rank * len(shape.linears)) * c + 2 * shape.hidden * 4
    tokens = load.seq_len * load.micro_batch_size
    mask = load.micro_batch_size * load.seq_len**2 * c
    return shape.layers * (tokens * layer + mask) + tokens * shape.hidden * 4


def _activation_bytes(shape: ModelShape, load: Load, device: str) -> int:
    """The most that is alive in a micro-batch: what is saved, and one layer's gradients."""
    c, wide = load.compute_bytes, shape.heads * shape.head_dim
    tokens = load.seq_len * load.micro_batch_size
    saved = saved_bytes(shape, load, device=device)
    if load.activation_checkpointing:
        # inputs of all layers, and one layer that is computed again
        saved = saved // shape.layers + tokens * shape.layers * shape.hidden * c
    gradients = tokens * (3 * shape.intermediate + 2 * shape.hidden + 3 * wide) * c
    return saved + gradients


def _with_overhead(parts: list[Part], device: str) -> MemoryEstimate:
    context = CONTEXT_BYTES["cuda" if device == "cuda" else "cpu"]
    lost = int(FRAGMENTATION * sum(part.size_bytes for part in parts)) if device == "cuda" else 0
    overhead = Part(
        name="context",
        size_bytes=context + lost,
        how="libraries, workspaces, fragmentation: assumed",
    )
    return MemoryEstimate(parts=(*parts, overhead))
