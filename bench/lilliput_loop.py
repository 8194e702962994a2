"""The training loop behind `train_lilliput.py`: examples -> packed rows -> batches -> AdamW.

Shape suffixes: B rows of a batch, T tokens of a row, V vocabulary.
"""

import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

IGNORE = -100

log = logging.getLogger("lilliput")


@dataclass(frozen=True)
class Example:
    """Token ids of one document or chat, and the labels: the id, or `IGNORE` where no loss is."""

    ids: list[int]
    labels: list[int]


def pack(examples: Sequence[Example], seq_len: int) -> list[list[Example]]:
    """Whole examples into rows of at most `seq_len` tokens, each into the fullest that has room."""
    done: list[list[Example]] = []
    is_open: list[tuple[int, list[Example]]] = []
    for example in examples:
        size = len(example.ids)
        assert size <= seq_len, f"an example of {size} tokens does not fit into {seq_len}"
        fitting = [i for i, (used, _) in enumerate(is_open) if used + size <= seq_len]
        if fitting:
            best = max(fitting, key=lambda i: is_open[i][0])
            used, row = is_open.pop(best)
            is_open.append((used + size, [*row, example]))
        else:
            is_open.append((size, [example]))
        if len(is_open) > 32:
            fullest = max(range(len(is_open)), key=lambda i: is_open[i][0])
            done.append(is_open.pop(fullest)[1])
    return done + [row for _, row in is_open]


@dataclass(frozen=True)
class Batch:
    """Packed rows; attention stays within an example and positions restart at 0 in each."""

    ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    positions_BT: torch.Tensor
    mask_B1TT: torch.Tensor


def collate(rows: Sequence[list[Example]], seq_len: int, pad_id: int) -> Batch:
    """Rows of examples to tensors. An example's first token is never a target."""
    ids_BT = torch.full((len(rows), seq_len), pad_id)
    labels_BT = torch.full((len(rows), seq_len), IGNORE)
    positions_BT = torch.zeros((len(rows), seq_len), dtype=torch.long)
    owner_BT = torch.full((len(rows), seq_len), -1)
    for b, row in enumerate(rows):
        start = 0
        for index, example in enumerate(row):
            stop = start + len(example.ids)
            ids_BT[b, start:stop] = torch.tensor(example.ids)
            labels_BT[b, start + 1 : stop] = torch.tensor(example.labels[1:])
            positions_BT[b, start:stop] = torch.arange(stop - start)
            owner_BT[b, start:stop] = index
            start = stop
    causal_TT = torch.ones(seq_len, seq_len, dtype=torch.bool).tril()
    same_BTT = owner_BT[:, :, None] == owner_BT[:, None, :]
    return Batch(ids_BT, labels_BT, positions_BT, (same_BTT & causal_TT)[:, None])


def batches(
    passes: Iterator[list[Example]], *, seq_len: int, batch_rows: int, pad_id: int, seed: int
) -> Iterator[Batch]:
    """Endless batches from endless passes over the data."""
    rng = random.Random(seed)
    for one_pass in passes:
        rows = pack(one_pass, seq_len)
        rng.shuffle(rows)
        for start in range(0, len(rows) - batch_rows + 1, batch_rows):
            yield collate(rows[start : start + batch_rows], seq_len, pad_id)


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Linear warm-up over 4 % of the steps, then a cosine to 0."""
    warmup_steps = max(1, num_steps // 25)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def train(
    model: LlamaForCausalLM,
    data: Iterator[Batch],
    *,
    num_steps: int,
    learning_rate: float,
    use_compile: bool,
    name: str,
) -> None:
    """Train all weights with AdamW, kept in fp32, with bf16 autocast in the forward pass."""

    def loss_of(batch: Batch) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits_BTV = model(
                input_ids=batch.ids_BT,
                position_ids=batch.positions_BT,
                attention_mask=batch.mask_B1TT,
                use_cache=False,
            ).logits
        flat = logits_BTV[:, :-1].float().flatten(0, 1)
        return F.cross_entropy(flat, batch.labels_BT[:, 1:].flatten(), ignore_index=IGNORE)

    compute = torch.compile(loss_of) if use_compile else loss_of
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    model.train()
    started, tokens, losses = time.monotonic(), 0, 0.0
    for step in range(num_steps):
        rate = learning_rate * learning_rate_factor(step, num_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = next(data)
        loss = compute(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += int((batch.labels_BT != IGNORE).sum())
        losses += loss.item()
        if (step + 1) % 100 == 0 or step + 1 == num_steps:
            seconds = time.monotonic() - started
            mean = losses / (step % 100 + 1)
            log.info("%s step %d loss %.4f tokens %d %.0f s", name, step + 1, mean, tokens, seconds)
            losses = 0.0
