"""Reports: from the files that a run writes to tables, sentences, plots and a page."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from kit.errors import DataError, RunDirectoryError
from kit.reporting.collect import read_study, summarize
from kit.reporting.conclusions import compare, conclusions
from kit.reporting.lines import STATUSES, find_line
from kit.reporting.page import render_html, render_markdown, write_report
from kit.reporting.plots import energy, loss_curves, plots, tradeoff, weight_sweep
from kit.reporting.tables import (
    count_grid,
    difference_grid,
    grids,
    markdown_table,
    rich_table,
    score_grid,
    spread_grid,
)
from kit.runs.records import ItemRow, Measurement, TaskInfo, write_measurement

TEXT = TaskInfo(
    task="new_text",
    title="Held-out text",
    role="new_text",
    metrics=("bits_per_byte",),
    better="lower",
    unit="bits per byte",
)
GENERAL = replace(TEXT, task="general_text", title="General text", role="general_text")
IFEVAL = TaskInfo(
    task="ifeval",
    title="IFEval",
    role="instructions",
    metrics=("prompt_strict", "instruction_strict"),
    better="higher",
)
QUESTIONS = TaskInfo(
    task="questions/new",
    title="Questions",
    role="knowledge",
    metrics=("contains",),
    better="higher",
    chance=0.0,
)
TASKS = (TEXT, GENERAL, IFEVAL, QUESTIONS)
SIZES = {"new_text": 40, "general_text": 30, "ifeval": 60, "questions/new": 80}

# label: arm, settings, new text, general text, instructions, questions, trained
ARMS = {
    "instruct": ("instruct", {}, 1.00, 0.90, 0.62, 0.10, False),
    "base": ("base", {}, 0.98, 0.88, 0.20, 0.12, False),
    "cpt-instruct": ("cpt-instruct", {}, 0.80, 0.99, 0.30, 0.42, True),
    "cpt-base": ("cpt-base", {}, 0.78, 0.94, 0.15, 0.30, True),
    "residual x0.25": ("residual", {"cpt_weight": 0.25}, 0.95, 0.90, 0.61, 0.16, True),
    "residual x0.5": ("residual", {"cpt_weight": 0.5}, 0.90, 0.91, 0.60, 0.28, True),
    "residual x0.75": ("residual", {"cpt_weight": 0.75}, 0.85, 0.92, 0.55, 0.38, True),
    "residual x1": ("residual", {"cpt_weight": 1.0}, 0.82, 0.94, 0.48, 0.40, True),
    "residual x1.25": ("residual", {"cpt_weight": 1.25}, 0.84, 0.99, 0.36, 0.38, True),
    "residual-lowrank r32": ("residual-lowrank", {"rank": 32}, 0.81, 0.95, 0.33, 0.33, True),
    "residual-only r32": (
        "residual-only",
        {"rank": 32, "residual_weight": 1.0},
        0.99,
        0.89,
        0.40,
        0.11,
        False,
    ),
    "cpt-sft": ("cpt-sft", {}, 0.84, 0.97, 0.50, 0.36, True),
}


def measurement(label: str, *, seed: int | None = None, sizes=SIZES) -> Measurement:
    """Items with a common difficulty, so that pairs are correlated as real ones are."""
    arm, settings, new, general, follow, knows, trained = ARMS[label]
    hard = np.random.default_rng(7)
    luck = np.random.default_rng([sum(map(ord, label)), 0 if seed is None else seed + 1])
    rows: list[ItemRow] = []
    for info, level in zip(TASKS, (new, general, follow, knows), strict=True):
        for index in range(sizes[info.task]):
            difficulty, own = hard.random(), luck.random()
            length = float(hard.integers(300, 4000))
            item = f"{info.task}-{index}"
            common = {"task": info.task, "item": item, "prompt_hash": f"{index:016x}"}
            if info.unit == "bits per byte":
                bits = length * (level * (0.8 + 0.4 * difficulty) + 0.02 * own)
                scores = {"bits_per_byte": (bits, length)}
                rows.append(ItemRow(status="scored", scores=scores, **common))
                continue
            right = 0.7 * difficulty + 0.3 * own < level
            cut = not right and own > 0.9
            scores = {metric: (float(right), 1.0) for metric in info.metrics}
            if "instruction_strict" in scores:
                scores["instruction_strict"] = (1.0 + right, 2.0)
            rows.append(
                ItemRow(
                    status="correct" if right else "truncated" if cut else "wrong",
                    scores=scores,
                    prediction=f"{label} says {index}",
                    note="cut off after 512 tokens" if cut else "",
                    **common,
                )
            )
    return Measurement(
        arm=arm,
        label=label,
        seed=seed if trained else None,
        stack=f"stack of {label}",
        settings=settings,
        trained_tokens={"cpt": 1_000_000} if trained else {},
        decode="NF4, as trained",
        seconds=61.0,
        tasks=TASKS,
        rows=tuple(rows),
    )


def study_measurements(seeds=(0, 1, 2), labels=tuple(ARMS)) -> list[Measurement]:
    made = []
    for label in labels:
        for seed in seeds if ARMS[label][-1] else (None,):
            made.append(measurement(label, seed=seed))
    return made


def write_stage(run: Path, name: str) -> Path:
    folder = run / "stages" / name
    folder.mkdir(parents=True)
    (folder / "done.json").write_text('{"fingerprint": "f"}')
    return folder


def write_run(run: Path, measurements: list[Measurement], **about) -> Path:
    """A run directory as the writer leaves it."""
    run.mkdir()
    (run / "run.json").write_text(
        json.dumps(
            {
                "schema_version": 1,
                "fingerprint": "0123456789abcdef",
                "name": "smollm2-news",
                "started": "2026-01-05T10:00:00+00:00",
                "finished": "2026-01-05T13:10:00+00:00",
                "command": "kit run news --out runs/news",
                "hardware": "NVIDIA L4, 22.5 GiB, bfloat16",
                "versions": {"torch": "2.8.0", "peft": None},
                "decisions": ["bfloat16: the GPU computes it natively"],
                "seeds": [0, 1, 2],
                "control": "instruct",
                "arms": ["instruct", "cpt-instruct", "residual"],
                **about,
            }
        )
    )
    (run / "recipe.yaml").write_text(
        "name: smollm2-news\nmodels: {instruct: org/small-instruct, base: org/small, "
        "quantization: nf4}\ncorpus: {sources: [news.jsonl], heldout: {every: 10}}\n"
        "general: {sources: ['pydoc:topics']}\nlora: {rank: 32, alpha: 16.0, rslora: true, "
        "target_modules: all-linear}\ntrain: {tokens: 1000000, seq_len: 1024, "
        "tokens_per_step: 16384, learning_rate: 1e-4}\n"
        "study: {arms: [instruct, cpt-instruct, residual], control: instruct, seeds: [0, 1, 2],"
        " cpt_weights: [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]}\n"
    )
    for one in measurements:
        tail = "" if one.seed is None else f"-s{one.seed}"
        folder = write_stage(run, f"measure-{one.label.replace(' ', '-')}{tail}")
        write_measurement(folder, one)
    return run


def add_trainings(run: Path) -> None:
    rng = np.random.default_rng(3)
    for name in ("cpt-base-s0", "cpt-base-s1", "cpt-instruct-s0", "cpt-instruct-s1", "sft-s0"):
        folder = write_stage(run, name)
        start = 2.4 if "base" in name else 2.6
        rows = [
            {
                "step": n,
                "train/loss": start - 0.5 * (1 - math.exp(-n / 20)) + 0.05 * rng.standard_normal(),
                "train/tokens": 16_384 * n,
            }
            for n in range(1, 62)
        ]
        lines = "\n".join(json.dumps(row) for row in rows) + "\n"
        (folder / "metrics.jsonl").write_text(lines)
        result = {
            "loss_tokens": 1_000_000,
            "num_steps": 61,
            "first_loss": 2.4,
            "last_loss": 1.9,
            "seconds": 1234.0,
            "tokens_per_second": 812.4,
            "peak_bytes": 6_000_000_000,
            "trained_tokens": {"cpt": 1_000_000},
        }
        (folder / "training.json").write_text(json.dumps(result))
    (write_stage(run, "text") / "blocks").mkdir()
    ledger = {"documents": 200, "text_tokens": 1_200_345, "dropped_tokens": 0, "eos_id": 2}
    (run / "stages" / "text" / "blocks" / "ledger.json").write_text(json.dumps(ledger))
    report = {"total": {"energy_kept": {"8": 0.21, "16": 0.3, "32": 0.41, "64": 0.55}}}
    (write_stage(run, "residual") / "report.json").write_text(json.dumps(report))
