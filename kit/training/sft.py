"""A small instruction tuning through trl's SFTTrainer, with its cast of the weights undone."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from kit.adapters.attach import attach_lora
from kit.errors import DataError
from kit.hardware import Hardware
from kit.models.chat import Messages, chat_ids
from kit.progress import Advance, silent
from kit.training.cpt import Scheduled, run_trainer, training_arguments
from kit.training.hooks import GradientWatch, StepRecord
from kit.training.options import BatchSize, LoraOptions, Schedule, TrainResult

log = logging.getLogger(__name__)


class ScheduledSft(Scheduled, SFTTrainer):
    """trl's trainer with the kit's schedule."""


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chats: list[Messages],
    out: Path,
    *,
    hardware: Hardware,
    seed: int,
    start_from: Path | None = None,
    lora: LoraOptions | None = None,
    schedule: Schedule | None = None,
    batch_size: int = 8,
    micro_batch_size: int = 4,
    max_length: int = 1024,
    epochs: int = 1,
    advance: Advance = silent,
) -> TrainResult:
    """Tune an adapter on chats; the assistant's last turn of each bears the loss.

    Args:
        model: a plain, frozen causal model; it carries the adapter afterwards.
        tokenizer: the instruct model's, for its chat template.
        chats: conversations that end with the assistant.
        out: folder for `adapter/` (PEFT format) and `metrics.jsonl`.
        hardware: where, and in which dtype.
        seed: of the adapter's init and the order of the chats.
        start_from: an adapter to go on from (the CPT adapter, in the arm `cpt-sft`); None makes
            a new one.
        lora: the new adapter; not used with `start_from`.
        schedule: the rates.
        batch_size: chats per update.
        micro_batch_size: chats per forward pass.
        max_length: tokens; a longer chat is left out, never cut.
        epochs: passes over the chats.
        advance: told the loss-bearing tokens of each update.

    Raises:
        DataError: no chat is short enough.
        TrainingError: a trained module gets no gradient, or the loss is no number.
    """
    rows, row_tokens = _encode(tokenizer, chats, max_length=max_length)
    order = torch.Generator().manual_seed(seed)
    picks = [
        int(i) for _ in range(epochs) for i in torch.randperm(len(rows), generator=order).tolist()
    ]
    peft_model = _adapter(model, start_from, lora or LoraOptions(), seed)
    accumulation = max(1, round(batch_size / micro_batch_size))
    per_update = micro_batch_size * accumulation
    step_tokens = [
        sum(row_tokens[i] for i in picks[start : start + per_update])
        for start in range(0, len(picks), per_update)
    ]
    record = StepRecord(out / "metrics.jsonl", step_tokens=step_tokens, advance=advance)
    with tempfile.TemporaryDirectory(prefix="kit-trainer-") as scratch:
        arguments = training_arguments(
            scratch,
            hardware=hardware,
            seed=seed,
            schedule=schedule or Schedule(),
            batch=BatchSize(micro_batch_size=micro_batch_size),
            accumulation=accumulation,
        )
        trainer = _trainer(
            peft_model,
            tokenizer,
            [rows[i] for i in picks],
            arguments=arguments,
            schedule=schedule or Schedule(),
            callbacks=[record, GradientWatch(continued=start_from is not None)],
        )
        result = run_trainer(trainer, record)
    peft_model.save_pretrained(str(out / "adapter"))
    return result


def _encode(
    tokenizer: PreTrainedTokenizerBase, chats: list[Messages], *, max_length: int
) -> tuple[list[dict[str, list[int]]], list[int]]:
    """Rows of ids with a mask over the last turn, and the loss-bearing tokens of each.

    The prompt is what the template writes before the reply, so the mask does not depend on the
    template having generation markers, which few shipped ones have.
    """
    rows, tokens = [], []
    for chat in chats:
        whole, prompt = chat_ids(tokenizer, chat), chat_ids(tokenizer, chat[:-1], ask=True)
        if len(whole) > max_length or whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            continue
        mask = [0] * len(prompt) + [1] * (len(whole) - len(prompt))
        rows.append({"input_ids": whole, "completion_mask": mask})
        tokens.append(sum(mask))
    if not rows:
        raise DataError(
            f"none of the {len(chats)} chats fits in {max_length} tokens",
            where="sft.sources",
            fix="raise sft.max_length, or use shorter chats",
        )
    if len(rows) < len(chats):
        log.warning(
            "%d of %d chats were left out (longer than %d tokens, or the template rewrites "
            "earlier turns)",
            len(chats) - len(rows),
            len(chats),
            max_length,
        )
    return rows, tokens


def _adapter(
    model: PreTrainedModel, start_from: Path | None, lora: LoraOptions, seed: int
) -> PeftModel:
    if start_from is not None:
        torch.manual_seed(seed)
        return PeftModel.from_pretrained(model, str(start_from), is_trainable=True)
    return attach_lora(model, seed=seed, **asdict(lora))


def _trainer(
    peft_model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, list[int]]],
    *,
    arguments: TrainingArguments,
    schedule: Schedule,
    callbacks: list[TrainerCallback],
) -> ScheduledSft:
    settings = arguments.to_dict()
    settings.pop("push_to_hub_token", None)  # to_dict masks it, and the masked text is no token
    settings.update(max_length=None, packing=False, completion_only_loss=True)
    before = {
        name: parameter.detach().clone()
        for name, parameter in peft_model.named_parameters()
        if parameter.requires_grad
    }
    config = SFTConfig(**settings)
    config._n_gpu = min(config.n_gpu, 1)  # as in training_arguments
    trainer = ScheduledSft(
        model=peft_model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.schedule = schedule
    # trl casts the trainable weights of a 4-bit model to bfloat16, which rounds away small updates
    # and crashes the float16 scaler on cards without bfloat16.
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad:
            parameter.data = before[name].float()
    return trainer
