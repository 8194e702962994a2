"""What commands have in common on the console."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from kit.units import show_count

if TYPE_CHECKING:
    from kit.adapters.merge import MergeReport
    from kit.adapters.residual import ResidualReport
    from kit.models.pair_check import PairReport
    from kit.strategies.merging import MergeGap


def quiet_libraries() -> None:
    """Let the kit speak alone: libraries' bars and advice are for their own users.

    Warnings of the kit itself come through `logging` and stay.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore")
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("bitsandbytes", "trl", "peft", "accelerate", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # IFEval's checkers log whole replies whose language they cannot tell.
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)


def show_results(run_directory: Path) -> None:
    """Print a run's tables and conclusions, and where to look next."""
    from rich.console import Console

    from kit.reporting.show import Results

    console = Console()
    if not console.is_terminal:  # a pipe has no width of its own, and 80 columns fold the labels
        console = Console(width=max(console.width, 110))
    console.print(Results(run_directory))
    report = run_directory / "report.html"
    console.print(f"\nPlots, counts and single replies: {report}", highlight=False, soft_wrap=True)


def pair_lines(report: PairReport) -> list[str]:
    """A pair's comparison for the console."""
    specials = ", ".join(report.specials_of_instruct) or "none"
    lines = [
        f"base      {report.base}",
        f"instruct  {report.instruct}",
        f"{report.tensors} tensors of the same names and shapes, "
        f"{report.parameters_billions:.3g}B parameters, {report.padded_vocab_size} rows of "
        "embedding",
        f"special tokens of instruct alone: {specials}",
        f"sigma {report.sigma:.4f}   (sum |W_i - W_b| over sum |W_i| + sum |W_b|)",
    ]
    lines += [f"  {group.group:12} {group.sigma:.4f}" for group in report.groups]
    lines += [f"warning: {warning}" for warning in report.warnings]
    return lines


def residual_lines(report: ResidualReport, out: Path) -> list[str]:
    """What low-rank residuals keep, for the console."""
    lines = [f"of the difference's energy, {report.linear_share:.1%} is in the adapted layers"]
    for rank in report.ranks:
        lines.append(
            f"  rank {rank:5}  keeps {report.kept[rank]:.1%} of all, "
            f"{report.kept_of_linear[rank]:.1%} of theirs   {out / f'r{rank}'}"
        )
    about = "" if report.exact else "about "
    for share, rank in report.rank_for.items():
        lines.append(f"  {share:.0%} of theirs would need {about}rank {rank}")
    return lines


def merge_lines(report: MergeReport) -> list[str]:
    """What a merge did, for the console."""
    if report.already_done:
        return [f"{report.out} holds this merge already; nothing was written"]
    return [
        f"{report.out}: {show_count(report.changed)} of {report.tensors} tensors changed, "
        f"stored as {report.dtype}",
        f"read back and verified: largest rounding {report.max_rounding:.2g} of a tensor's largest",
        *(f"warning: {warning}" for warning in report.warnings),
    ]


def gap_line(gap: MergeGap) -> str:
    """How far the merged model is from what was trained."""
    return (
        f"against 4-bit + adapter, on {gap.tokens} tokens of general text: perplexity "
        f"{gap.perplexity_4bit:.2f} -> {gap.perplexity_merged:.2f} merged, "
        f"logits differ by {gap.max_logit_difference:.2g} at most"
    )
