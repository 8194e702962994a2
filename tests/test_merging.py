"""The merged model against the one that was trained, through the command line."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from kit.adapters.stack import Stack, Weighted
from kit.adapters.tensors import Adapter, LowRank, write_adapter
from kit.models.weights import Checkpoint
from kit.strategies.merging import merge_and_compare


def adapter(folder, base, size):
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.down_proj"
    rows, columns = Checkpoint(base).shape(f"{name}.weight")
    pair = LowRank(
        size * torch.randn(4, columns, generator=generator),
        torch.randn(rows, 4, generator=generator),
    )
    write_adapter(folder, Adapter(deltas={name: pair}), base_model=str(base))
    return folder


def test_the_gap_is_the_rounding_and_nothing_more(tmp_path, pico_pair):
    """Both sides carry the adapter: a large delta leaves the gap that NF4 has without any."""
    gaps = []
    for size in (1e-6, 0.3):
        folder = adapter(tmp_path / f"a{size}", pico_pair.base, size)
        stack = Stack("base", (Weighted("cpt", folder),))
        _, gap = merge_and_compare(stack, checkpoint=pico_pair.base, out=tmp_path / f"merged{size}")
        gaps.append(gap)
    assert gaps[0].tokens == 8 * 127
    assert 0 < gaps[0].max_logit_difference < 0.5
    assert gaps[1].perplexity_merged == pytest.approx(gaps[1].perplexity_4bit, rel=0.05)
    assert gaps[1].perplexity_merged != pytest.approx(gaps[0].perplexity_merged, rel=1e-3)


def test_merge_command_prints_the_gap_and_is_done_once(tmp_path, pico_pair):
    from kit.cli.app import app

    folder = adapter(tmp_path / "a", pico_pair.base, 0.1)
    command = ["merge", str(pico_pair.base), f"{folder}*0.5", "--out", str(tmp_path / "m")]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "read back and verified" in first.output and "against 4-bit + adapter" in first.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and "nothing was written" in again.output
