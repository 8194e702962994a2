"""Blocks to tensors.

Labels stand at their own id's place: the shift is `kit.models.logprobs`' alone. There is no
attention mask: position ids that restart are what keeps documents apart, with `use_cache=False`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from kit.data.budget import BudgetPlan, epoch_order
from kit.data.packing import Blocks
from kit.errors import DataError
from kit.models.logprobs import IGNORE

Example = dict[str, torch.Tensor]


class BlockDataset(Dataset[Example]):
    """The blocks of a plan in training order, so it must be read in order, not shuffled again.

    Item i is always the same for the same store and plan, which is what makes a resumed run
    continue where it stopped.

    Args:
        blocks: the corpus, memory-mapped or not.
        plan: which of them are drawn.

    Raises:
        DataError: the plan was made for other blocks.
    """

    def __init__(self, blocks: Blocks, *, plan: BudgetPlan) -> None:
        if plan.store_blocks != blocks.num_blocks:
            raise DataError(
                f"the plan is for {plan.store_blocks} blocks, the store has {blocks.num_blocks}",
                fix="plan the budget on the store that is trained on",
            )
        self.blocks, self.plan = blocks, plan
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.plan.num_blocks

    def block_index(self, index: int) -> int:
        """Which block of the store item `index` is."""
        epoch, place = divmod(index, self.blocks.num_blocks)
        if epoch != self._epoch:
            self._order = epoch_order(
                self.blocks.num_blocks, epoch=epoch, order_seed=self.plan.order_seed
            )
            self._epoch = epoch
        return int(self._order[place])

    def __getitem__(self, index: int) -> Example:
        """`input_ids`, `position_ids` and `labels`, each (seq_len,) int64."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        block = self.block_index(index)
        ids = self.blocks.ids_BT[block].astype(np.int64)
        mask = self.blocks.loss_mask(block)
        if index == len(self) - 1:
            mask &= np.cumsum(mask) <= self.plan.last_block_loss_tokens
        return {
            "input_ids": torch.from_numpy(ids),
            "position_ids": torch.from_numpy(self.blocks.positions(block).astype(np.int64)),
            "labels": torch.from_numpy(np.where(mask, ids, IGNORE)),
        }


def collate(examples: Sequence[Example]) -> Example:
    """Stack examples to (batch, seq_len)."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
