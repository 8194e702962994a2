"""What a training is told, and what it tells: small frozen groups that a notebook can write."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """The adapter that is trained; the words are PEFT's."""

    rank: int = 32
    alpha: float = 16.0
    rslora: bool = True
    dropout: float = 0.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate moves."""

    learning_rate: float = 1e-4
    warmup_share: float = 0.05
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def factor(self, step: int, *, num_steps: int) -> float:
        """The rate of one update as a share of the peak; above 0 from the first to the last.

        A warm-up that starts at 0 would make the first update do nothing.

        Args:
            step: 0 for the first update.
            num_steps: all updates.
        """
        warmup = math.ceil(self.warmup_share * num_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(num_steps - warmup, 1)
        if self.shape == "constant":
            return 1.0
        if self.shape == "linear":
            return 1.0 - done
        return 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """How many blocks go through the model at once, and how many make an update."""

    micro_batch_size: int = 1
    tokens_per_step: int = 16_384
    activation_checkpointing: bool = False

    def accumulation(self, seq_len: int) -> int:
        """Forward passes per update: the number that comes nearest to `tokens_per_step`."""
        return max(1, round(self.tokens_per_step / (seq_len * self.micro_batch_size)))


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What one training did."""

    loss_tokens: int
    """Tokens that bore loss."""
    num_steps: int
    first_loss: float
    """Nats per token, mean of the first update."""
    last_loss: float
    """Nats per token, over the tokens of the last tenth of the updates."""
    seconds: float
    tokens_per_second: float
    """Loss-bearing tokens by wall clock, set-up left out."""
    peak_bytes: int
    """CUDA: the most reserved by the allocator. CPU: the most resident in this process so far."""
    trainable_parameters: int

    def to_dict(self) -> dict[str, Any]:
        """For `training.json`."""
        return asdict(self)
