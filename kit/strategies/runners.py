"""What each kind of stage does: from its record to the files in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kit.adapters.graft import check_graft
from kit.adapters.residual import extract_residual
from kit.adapters.stack import Stack, Weighted
from kit.adapters.tensors import Sidecar, write_sidecar
from kit.data.batches import BlockDataset, collate
from kit.data.budget import blocks_for_budget
from kit.models.pair_check import check_pair
from kit.progress import counted
from kit.runs.directory import RunDirectory, write_json
from kit.runs.records import write_measurement
from kit.strategies.measuring import all_chunks, text_tasks
from kit.strategies.stages import (
    ComparePair,
    ExtractResidual,
    Graft,
    Measure,
    PrepareText,
    Stage,
    TrainCpt,
    TrainSft,
    Where,
)
from kit.strategies.study import Shelf, Study
from kit.strategies.targets import (
    Target,
    check_contamination,
    finished,
    measure_target,
    open_rows,
)
from kit.strategies.text import open_blocks, write_text_stage
from kit.training.options import BatchSize, LoraOptions, Schedule, TrainResult
from kit.units import show_bytes, show_count


def prepare_text(
    stage: PrepareText, study: Study, shelf: Shelf, runs: RunDirectory, folder: Path
) -> str:
    """Read, split, tokenise and pack."""
    return write_text_stage(study, folder)


def train_cpt_stage(
    stage: TrainCpt, study: Study, shelf: Shelf, runs: RunDirectory, folder: Path
) -> str:
    """Train one CPT adapter on exactly the budget."""
    from kit.training.cpt import train_cpt

    train = study.recipe.train
    blocks = open_blocks(runs.stage_folder("text")).blocks
    plan = blocks_for_budget(blocks, tokens=train.tokens, order_seed=stage.seed)
    for line in plan.lines():
        study.decide(line)
    dataset = BlockDataset(blocks, plan=plan)
    per_block = blocks.loss_tokens()
    row_tokens = [int(per_block[dataset.block_index(i)]) for i in range(len(dataset) - 1)]
    row_tokens.append(plan.last_block_loss_tokens)
    with study.progress.task(stage.name, plan.loss_tokens) as advance:
        result = train_cpt(
            study.load(stage.on),
            dataset,
            folder,
            collate=collate,
            row_tokens=row_tokens,
            hardware=study.hardware,
            seed=stage.seed,
            lora=LoraOptions(**study.recipe.lora.model_dump()),
            schedule=_schedule(study),
            batch=BatchSize(
                micro_batch_size=train.micro_batch_size,
                tokens_per_step=train.tokens_per_step,
                activation_checkpointing=train.activation_checkpointing,
            ),
            advance=advance,
        )
    _sign(folder / "adapter", study, stage.on, stage.seed)
    return _finish_training(folder, result, {"cpt": result.loss_tokens})


def train_sft_stage(
    stage: TrainSft, study: Study, shelf: Shelf, runs: RunDirectory, folder: Path
) -> str:
    """Go on with the base-trained CPT adapter on chats."""
    from kit.training.sft import train_sft

    sft = study.recipe.sft
    assert sft is not None, "the recipe's validation lets no cpt-sft through without sft"
    chats = study.chats
    before = runs.stage_folder(stage.inputs[0])
    with study.progress.task(stage.name, len(chats) * sft.epochs) as advance:
        result = train_sft(
            study.load("base"),
            study.tokenizer("instruct"),
            chats,
            folder,
            hardware=study.hardware,
            seed=stage.seed,
            start_from=before / "adapter",
            schedule=Schedule(learning_rate=sft.learning_rate),
            batch_size=sft.batch_size,
            micro_batch_size=sft.micro_batch_size,
            max_length=sft.max_length,
            epochs=sft.epochs,
            advance=lambda done, note="": advance(sft.batch_size, note),
        )
    _sign(folder / "adapter", study, "base", stage.seed)
    trained = json.loads((before / "training.json").read_text("utf-8"))["trained_tokens"]
    return _finish_training(folder, result, {**trained, "sft": result.loss_tokens})


def graft_stage(stage: Graft, study: Study, shelf: Shelf, runs: RunDirectory, folder: Path) -> str:
    """Check the conditions under which the graft equals adding the residual."""
    report = check_graft(
        runs.stage_folder(stage.inputs[0]) / "adapter",
        base=study.folders["base"],
        instruct=study.folders["instruct"],
    )
    write_json(folder / "report.json", asdict(report))
    for warning in report.warnings:
        study.decide(f"warning: {warning}")
    for reason in report.reasons:
        study.decide(f"graft: {reason}")
    return "instruct + cpt@base is exactly base + cpt@base + (instruct - base)"


def residual_stage(
    stage: ExtractResidual, study: Study, shelf: Shelf, runs: RunDirectory, folder: Path
) -> str:
    """instruct - base, decomposed once for all ranks."""
    with counted(study.progress, "decompose") as progress:
        report = extract_residual(
            study.folders["base"],
            study.folders["instruct"],
            ranks=stage.ranks,
            out=lambda rank: folder / f"r{rank}",
            target_modules=study.recipe.lora.target_modules,
            progress=progress,
        )
    write_json(folder / "report.json", report.to_dict())
    kept = ", ".join(f"rank {rank} keeps {share:.1%}" for rank, share in report.kept.items())
    return f"of the residual's energy {kept}"


def compare_pair(
    stage: ComparePair, study: Study, shelf: Shelf, runs: RunDirectory, folder: Path
) -> str:
    """sigma, spectrum and special tokens of the pair."""
    with counted(study.progress, "compare") as progress:
        report = check_pair(study.folders["base"], study.folders["instruct"], progress=progress)
    write_json(folder / "report.json", report.to_dict())
    for warning in report.warnings:
        study.decide(f"warning: {warning}")
    return f"sigma {report.sigma:.4f} over {report.tensors} tensors"


def measure_stage(
    stage: Measure, study: Study, shelf: Shelf, runs: RunDirectory, folder: Path
) -> str:
    """Every task on one stack."""
    stack, text = stack_of(stage, runs), runs.stage_folder("text")
    target = Target(
        arm=stage.arm,
        label=stage.label,
        seed=stage.seed,
        stack=stack,
        settings=stage.settings,
        trained_tokens=trained_tokens(stage, runs),
    )
    tasks = [*text_tasks(text), *study.asking]
    check_contamination(study, tasks, runs)
    rows = open_rows(study, runs, stage.name, target, text=text)
    measure_target(target, shelf, tasks=tasks, todo=all_chunks(tasks), rows=rows)
    measurement = finished(target, shelf, tasks=tasks, rows=rows)
    write_measurement(folder, measurement)
    return f"{len(measurement.rows)} items on {measurement.stack}"


def stack_of(stage: Measure, runs: RunDirectory) -> Stack:
    """The stack that a stage measures."""
    return Stack(
        stage.checkpoint,
        tuple(
            Weighted(layer.word, runs.stage_folder(layer.stage) / layer.folder, layer.weight)
            for layer in stage.layers
        ),
    )


def trained_tokens(stage: Measure, runs: RunDirectory) -> dict[str, int]:
    """Tokens that bore loss in the trainings below a stack, by kind."""
    found: dict[str, int] = {}
    for layer in stage.layers:
        about = runs.stage_folder(layer.stage) / "training.json"
        if about.exists():
            found.update(json.loads(about.read_text("utf-8"))["trained_tokens"])
    return found


def _schedule(study: Study) -> Schedule:
    train = study.recipe.train
    return Schedule(
        learning_rate=train.learning_rate,
        warmup_share=train.warmup_share,
        shape=train.schedule,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
    )


def _sign(adapter: Path, study: Study, where: Where, seed: int) -> None:
    """Write down beside PEFT's files what the adapter is a delta of."""
    models = study.recipe.models
    sidecar = Sidecar(
        base_name=str(models.base if where == "base" else models.instruct),
        base_fingerprint=study.weights[where],
        quantization=models.quantization,
        init_seed=seed,
    )
    write_sidecar(adapter, sidecar)


def _finish_training(folder: Path, result: TrainResult, trained_tokens: dict[str, int]) -> str:
    about = {**result.to_dict(), "trained_tokens": trained_tokens}
    write_json(folder / "training.json", about)
    return (
        f"{show_count(result.loss_tokens)} tokens in {result.num_steps} updates, loss "
        f"{result.first_loss:.3f} -> {result.last_loss:.3f}, "
        f"{result.tokens_per_second:,.0f} tokens/s, {show_bytes(result.peak_bytes)} at most"
    )


Runner = Callable[[Any, Study, Shelf, RunDirectory, Path], str]

RUNNERS: dict[type[Stage], Runner] = {
    ComparePair: compare_pair,
    PrepareText: prepare_text,
    TrainCpt: train_cpt_stage,
    TrainSft: train_sft_stage,
    Graft: graft_stage,
    ExtractResidual: residual_stage,
    Measure: measure_stage,
}
