"""What happens at each update: metrics on disk, progress, and a look at the gradients."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kit.adapters.attach import check_gradients
from kit.errors import TrainingError
from kit.progress import Advance


class StepRecord(TrainerCallback):
    """Writes a row per update, reports progress, and stops a training whose loss is no number.

    Args:
        metrics: the JSON-lines file.
        step_tokens: loss-bearing tokens of each update.
        advance: called with the tokens of each update.
    """

    def __init__(self, metrics: Path, *, step_tokens: list[int], advance: Advance) -> None:
        self.metrics, self.step_tokens, self.advance = metrics, step_tokens, advance
        self.losses: list[float] = []
        self.started = 0.0
        self.rate = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.monotonic()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.rate = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        loss, step = float(logs["loss"]), state.global_step
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at update {step}",
                where=str(self.metrics.parent.name),
                fix="lower train.learning_rate; with float16 try float32 weights "
                "(models.quantization: 32bit)",
            )
        self.losses.append(loss)
        tokens = sum(self.step_tokens[:step])
        speed = tokens / max(time.monotonic() - self.started, 1e-9)
        peak = peak_bytes()
        row = {
            "step": step,
            "train/loss": loss,
            "train/learning_rate": self.rate,
            "train/grad_norm": float(logs.get("grad_norm", float("nan"))),
            "train/tokens": tokens,
            "train/tokens_per_second": speed,
            "memory/peak_bytes": peak,
        }
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        note = f"loss {loss:.3f}  {speed:,.0f} tokens/s  {peak / 1024**3:.1f} GiB"
        self.advance(self.step_tokens[step - 1], note)


class GradientWatch(TrainerCallback):
    """Looks at the gradients of every trained module at the first two updates.

    lora_B must have one at the first; lora_A's is exactly 0 then, because B starts at 0, and must
    be there at the second. A module that gets none was silently left out of training.
    """

    def __init__(self, *, continued: bool = False) -> None:
        self.updates = 1 if continued else 0

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self.updates >= 2 or not _finite(kwargs["model"]):
            # A float16 scaler starts too high and skips updates until it fits; a loss that is no
            # number is StepRecord's to report.
            return
        check_gradients(kwargs["model"], first_update_done=self.updates > 0)
        self.updates += 1

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """A scaler that skipped every update leaves an adapter that does nothing."""
        if self.updates < min(2, state.global_step):
            raise TrainingError(
                "the gradients were not finite in any update, so nothing was trained",
                fix="train longer, or with models.quantization 32bit",
            )


def _finite(model: torch.nn.Module) -> bool:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def peak_bytes() -> int:
    """Most memory held so far: CUDA's allocator, or this process's resident set."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
