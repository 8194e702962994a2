"""Continual pre-training of an adapter on packed blocks, with transformers' Trainer underneath.

Ours are the loss (chunked, documents apart), the order of the data (the data set's own), the
schedule and the checks; the loop, the scaler and the clipping are the Trainer's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from kit.adapters.attach import attach_lora
from kit.errors import TrainingError
from kit.hardware import Hardware
from kit.models.logprobs import chunked_cross_entropy, final_hidden, projector
from kit.progress import Advance, silent
from kit.training.hooks import GradientWatch, StepRecord, peak_bytes
from kit.training.options import BatchSize, LoraOptions, Schedule, TrainResult

Batch = dict[str, torch.Tensor]
Collate = Callable[[list[Batch]], Batch]


class Scheduled:
    """Gives a Trainer the kit's schedule, whose first update has a rate above 0."""

    schedule: Schedule
    lr_scheduler: Any
    optimizer: Any

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Called by the Trainer once it knows how many updates there are."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,
                lambda step: self.schedule.factor(step, num_steps=num_training_steps),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler


class CptTrainer(Scheduled, Trainer):
    """A Trainer whose loss is next-token cross-entropy over packed documents."""

    def __init__(self, *, schedule: Schedule, **options: Any) -> None:
        super().__init__(**options)
        self.schedule = schedule
        # compute_loss divides by the tokens of the whole update, so nothing divides again.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Summed loss of the micro-batch over the tokens of the whole update, in nats."""
        causal = self.accelerator.unwrap_model(model).get_base_model()
        hidden_BTH = final_hidden(causal, inputs["input_ids"], position_ids=inputs["position_ids"])
        total, count = chunked_cross_entropy(
            hidden_BTH, inputs["labels"], project=projector(causal)
        )
        loss = total / (num_items_in_batch if num_items_in_batch is not None else max(count, 1))
        return (loss, None) if return_outputs else loss


def train_cpt(
    model: PreTrainedModel,
    dataset: Dataset[Batch],
    out: Path,
    *,
    collate: Collate,
    row_tokens: Sequence[int],
    hardware: Hardware,
    seed: int,
    lora: LoraOptions | None = None,
    schedule: Schedule | None = None,
    batch: BatchSize | None = None,
    advance: Advance = silent,
) -> TrainResult:
    """Train a LoRA on a frozen model and save it in PEFT's format.

    Args:
        model: a plain, frozen causal model (4-bit, 16-bit or 32-bit); it carries the adapter
            afterwards.
        dataset: map-style, in the order of training: `input_ids`, `position_ids`, `labels`
            (-100 where no loss is borne), each (seq,).
        out: folder for `adapter/` (PEFT format) and `metrics.jsonl`.
        collate: rows to a (batch, seq) dict.
        row_tokens: loss-bearing tokens of each row of the data set.
        hardware: where, and in which dtype.
        seed: of the adapter's init and the dropout.
        lora: the adapter; None takes the defaults.
        schedule: the rates; None takes the defaults.
        batch: the batch; None takes the defaults.
        advance: told the loss-bearing tokens of each update.

    Raises:
        TrainingError: a trained module gets no gradient, or the loss is no number.
    """
    lora, schedule, batch = lora or LoraOptions(), schedule or Schedule(), batch or BatchSize()
    if not row_tokens:
        raise TrainingError(
            "there is no block to train on", fix="give more text, or a shorter train.seq_len"
        )
    seq_len = int(dataset[0]["input_ids"].shape[0])
    accumulation = batch.accumulation(seq_len)
    step_tokens = _tokens_per_update(row_tokens, batch.micro_batch_size * accumulation)
    peft_model = attach_lora(model, seed=seed, **asdict(lora))
    record = StepRecord(out / "metrics.jsonl", step_tokens=step_tokens, advance=advance)
    with tempfile.TemporaryDirectory(prefix="kit-trainer-") as scratch:
        arguments = training_arguments(
            scratch,
            hardware=hardware,
            seed=seed,
            schedule=schedule,
            batch=batch,
            accumulation=accumulation,
        )
        trainer = CptTrainer(
            schedule=schedule,
            model=peft_model,
            args=arguments,
            train_dataset=dataset,
            data_collator=collate,
            callbacks=[record, GradientWatch()],
        )
        result = run_trainer(trainer, record)
    peft_model.save_pretrained(str(out / "adapter"))
    return result


def _tokens_per_update(row_tokens: Sequence[int], rows_per_update: int) -> list[int]:
    return [
        sum(row_tokens[start : start + rows_per_update])
        for start in range(0, len(row_tokens), rows_per_update)
    ]


def training_arguments(
    scratch: str,
    *,
    hardware: Hardware,
    seed: int,
    schedule: Schedule,
    batch: BatchSize,
    accumulation: int,
) -> TrainingArguments:
    """The Trainer's settings: nothing saved, evaluated or sent anywhere on its own account.

    There is no autocast: frozen layers compute in their own dtype and adapters in float32, in
    training as in measuring. `fp16` is set for its gradient scaler.
    """
    arguments = TrainingArguments(
        output_dir=scratch,
        num_train_epochs=1,
        per_device_train_batch_size=batch.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=False,
        fp16=hardware.needs_loss_scaling,
        use_cpu=hardware.device == "cpu",
        seed=seed,
        data_seed=seed,
        train_sampling_strategy="sequential",
        gradient_checkpointing=batch.activation_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=hardware.device == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
    )
    # One process trains on one device; with more in sight the Trainer would multiply the batch by
    # their number, although a 4-bit model is never spread over them.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def run_trainer(trainer: Trainer, record: StepRecord) -> TrainResult:
    """Train, and say what was done."""
    # It prints a dict per log; the record's progress line says it better.
    trainer.remove_callback(PrinterCallback)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    step_tokens, losses = record.step_tokens[: trainer.state.global_step], record.losses
    tokens, tail = sum(step_tokens), max(1, len(losses) // 10)
    last_loss = sum(
        loss * count for loss, count in zip(losses[-tail:], step_tokens[-tail:], strict=True)
    ) / sum(step_tokens[-tail:])
    model: Any = trainer.model
    trainable = sum(int(p.numel()) for p in model.parameters() if p.requires_grad)
    return TrainResult(
        loss_tokens=tokens,
        num_steps=trainer.state.global_step,
        first_loss=losses[0],
        last_loss=last_loss,
        seconds=seconds,
        tokens_per_second=tokens / max(seconds, 1e-9),
        peak_bytes=peak_bytes(),
        trainable_parameters=trainable,
    )
