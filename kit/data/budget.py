"""Which blocks a budget draws, in which order: every arm trains on exactly as many tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kit.data.packing import Blocks
from kit.errors import DataError
from kit.units import show_count

REPETITION_WARNING = 4.0
"""Passes over one text beyond which it is worth markedly less than fresh text (2305.16264)."""


@dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """Blocks to draw, pass after pass over the store, each pass in an order of its own."""

    order_seed: int
    """Of the order; together with the store it fixes every batch."""
    store_blocks: int
    """Blocks of the store: one pass."""
    num_blocks: int
    """Blocks drawn in all; more than `store_blocks` where the text is repeated."""
    loss_tokens: int
    """Tokens that bear loss: exactly the budget."""
    last_block_loss_tokens: int
    """So many of the last block's tokens bear loss, the first ones; the rest is masked."""
    epochs: float
    """Budget divided by the loss tokens of one pass."""

    def lines(self) -> list[str]:
        """The plan, to be printed."""
        line = (
            f"budget: {show_count(self.loss_tokens)} tokens bear loss, "
            f"{self.num_blocks:,} blocks, {self.epochs:.2f} passes over the text"
        )
        if self.epochs <= REPETITION_WARNING:
            return [line]
        return [line, f"more than {REPETITION_WARNING:g} passes: repeated text teaches little more"]


def blocks_for_budget(blocks: Blocks, *, tokens: int | None, order_seed: int) -> BudgetPlan:
    """The blocks whose loss-bearing tokens make up a budget exactly.

    Args:
        blocks: the corpus.
        tokens: the budget in tokens that bear loss; None is one pass over everything.
        order_seed: of the order of the blocks.

    Raises:
        DataError: the budget is not above zero, or nothing in the blocks bears loss.
    """
    per_block = blocks.loss_tokens()
    per_epoch = int(per_block.sum())
    budget = per_epoch if tokens is None else tokens
    if budget <= 0 or per_epoch <= 0:
        raise DataError(
            "there is nothing to train on",
            where=f"budget of {budget} tokens, {per_epoch} tokens in the corpus bear loss",
            fix="raise train.tokens, or read longer documents",
        )
    full_epochs, rest = divmod(budget, per_epoch)
    if rest == 0:
        full_epochs, rest = full_epochs - 1, per_epoch
    order = epoch_order(blocks.num_blocks, epoch=full_epochs, order_seed=order_seed)
    reached = np.cumsum(per_block[order])
    last = int(np.searchsorted(reached, rest))
    before = int(reached[last] - per_block[order[last]])
    return BudgetPlan(
        order_seed=order_seed,
        store_blocks=blocks.num_blocks,
        num_blocks=full_epochs * blocks.num_blocks + last + 1,
        loss_tokens=budget,
        last_block_loss_tokens=rest - before,
        epochs=budget / per_epoch,
    )


def epoch_order(num_blocks: int, *, epoch: int, order_seed: int) -> npt.NDArray[np.int64]:
    """The order of the blocks in one pass; a seed sequence of both numbers, so passes differ."""
    return np.random.default_rng([order_seed, epoch]).permutation(num_blocks)
