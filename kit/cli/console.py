"""What commands have in common on the console."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path


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
    for name in ("bitsandbytes", "trl", "peft", "accelerate", "lm_eval", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def show_results(run_directory: Path) -> None:
    """Print a run's tables and conclusions, and where to look next."""
    from rich.console import Console

    from kit.reporting.collect import read_study
    from kit.reporting.tables import conclusions, console_tables

    console = Console()
    study = read_study(run_directory)
    for table in console_tables(study):
        console.print(table)
    for sentence in conclusions(study):
        console.print(sentence, markup=False, highlight=False)
    console.print(
        f"\nPlots and rows: {run_directory / 'report.html'}", markup=False, highlight=False,
        soft_wrap=True,
    )
