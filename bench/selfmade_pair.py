"""Make an instruct model out of a checkpoint, so that the pair is real and its making is known.

    python bench/selfmade_pair.py SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2-sft \\
        --chats ../shared/data/instruct/oasst1_validation_en.sft.jsonl

The checkpoint is tuned on the chats (QLoRA, trl) and the adapter is merged into its 16-bit weights.
The pair (the checkpoint as base, the result as instruct) is self-made: it stands in for a real one
where none can be downloaded, and it says nothing about a vendor's instruction tuning.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from kit.adapters.merge import merge
from kit.adapters.stack import Stack, Weighted
from kit.cli.console import merge_lines, quiet_libraries
from kit.data.chats import read_chats
from kit.hardware import detect
from kit.models.loading import load_model, resolve_source
from kit.models.tokenizer import load_tokenizer
from kit.progress import Progress
from kit.training.options import LoraOptions, Schedule
from kit.training.sft import train_sft


def main() -> None:
    """Tune, merge, say where."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--chats", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    quiet_libraries()
    progress, hardware = Progress(), detect()
    folder = resolve_source(options.checkpoint)
    chats = read_chats(options.chats, limit=options.examples)
    work = options.out.with_name(options.out.name + "-adapter")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with progress.task("tune", len(chats)) as advance:
        result = train_sft(
            load_model(folder, quantization="nf4", hardware=hardware),
            load_tokenizer(folder),
            chats,
            work,
            hardware=hardware,
            seed=options.seed,
            lora=LoraOptions(rank=32),
            schedule=Schedule(learning_rate=options.learning_rate),
            batch_size=8,
            micro_batch_size=2,
            max_length=512,
            advance=lambda done, note="": advance(8, note),
        )
    progress.say(
        f"{result.loss_tokens} reply tokens, loss {result.first_loss:.3f} -> {result.last_loss:.3f}"
    )
    stack = Stack("base", (Weighted("sft@base", work / "adapter"),))
    for line in merge_lines(merge(stack, checkpoint=folder, out=options.out)):
        progress.say(line)


if __name__ == "__main__":
    main()
