"""Run a study's stages in order; what is done is skipped, what is shared is done once."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kit.progress import Progress
from kit.recipe.read import LoadedRecipe
from kit.reporting.page import write_report
from kit.runs.directory import RunDirectory, storage_errors
from kit.runs.provenance import fingerprint, provenance
from kit.strategies.catalog import stages
from kit.strategies.runners import RUNNERS
from kit.strategies.stages import ExtractResidual, Measure, PrepareText, Stage, TrainCpt, TrainSft
from kit.strategies.study import Shelf, Study
from kit.strategies.targets import measured_with
from kit.units import show_seconds


def run_study(loaded: LoadedRecipe, out: Path | str, *, progress: Progress | None = None) -> Path:
    """Do everything a recipe asks for, or what is left of it, and write the report.

    Args:
        loaded: the recipe.
        out: the run directory; made if it is not there, gone on with if it is this recipe's.
        progress: where to say what is done; None for standard output.

    Returns:
        The run directory.

    Raises:
        KitError: something is wrong with the recipe, the data, the checkpoints or the directory;
            what was finished before is kept.
    """
    out, progress = Path(out), progress or Progress()
    study = Study(loaded.recipe, progress)
    directory = RunDirectory(out)
    directory.check_owner(loaded.fingerprint)
    progress.say(f"{loaded.recipe.name} in {out}")
    for note in loaded.notes:
        study.decide(note)
    study.check()
    with (
        storage_errors(out),
        directory.opened(fingerprint=loaded.fingerprint, recipe_yaml=loaded.resolved_yaml),
    ):
        directory.write_run(
            {
                "name": loaded.recipe.name,
                "started": started(directory),
                "finished": None,
                "seeds": loaded.recipe.study.seeds,
                "control": loaded.recipe.study.control,
                "arms": loaded.recipe.study.arms,
                **provenance(study.hardware.line()),
            }
        )
        _run_stages(study, directory, stages(loaded.recipe))
        directory.write_run({"finished": now()})
        write_report(out)
    return out


def _run_stages(study: Study, directory: RunDirectory, todo: list[Stage]) -> None:
    prints = stage_fingerprints(study, todo)
    shelf = Shelf(study)
    skipped = 0
    for number, stage in enumerate(todo, start=1):
        if directory.is_done(stage.name, prints[stage.name]):
            skipped += 1
            continue
        started = time.monotonic()
        study.progress.say(f"[{number}/{len(todo)}] {stage.name}")
        if not isinstance(stage, Measure):
            shelf.clear()
        about = {"stage": asdict(stage), "kind": type(stage).__name__}
        with directory.stage(stage.name, prints[stage.name], **about) as folder:
            said = RUNNERS[type(stage)](stage, study, shelf, directory, folder)
        keep_decisions(study, directory)
        study.progress.say(f"  {said} ({show_seconds(time.monotonic() - started)})")
    shelf.clear()
    if skipped:
        study.progress.say(f"{skipped} of {len(todo)} stages were done already")


def now() -> str:
    """The time, as run.json has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def started(directory: RunDirectory) -> str:
    """When the run was first started: going on with it does not change that."""
    return str(directory.read_run().get("started") or now())


def keep_decisions(study: Study, directory: RunDirectory) -> None:
    """Add what was decided to what earlier starts of the run decided."""
    known = list(directory.read_run().get("decisions") or [])
    new = [line for line in study.decisions if line not in known]
    directory.write_run({"decisions": known + new})


def stage_fingerprints(study: Study, todo: list[Stage]) -> dict[str, str]:
    """Fingerprint of every stage: its record, its part of the recipe, its inputs' fingerprints."""
    found: dict[str, str] = {}
    for stage in todo:
        found[stage.name] = fingerprint(
            {
                "kind": type(stage).__name__,
                "stage": asdict(stage),
                "recipe": _part(study, stage),
                "inputs": [found[name] for name in stage.inputs],
            }
        )
    return found


def _part(study: Study, stage: Stage) -> dict[str, Any]:
    """What of the recipe, the checkpoints and the text a stage's result depends on."""
    recipe = study.recipe.model_dump(mode="json")
    checkpoints = study.fingerprints
    if isinstance(stage, PrepareText):
        parts = (study.split.train, study.split.heldout, study.general.documents)
        return {
            "text": [fingerprint([[d.id, d.text] for d in part]) for part in parts],
            "seq_len": study.recipe.train.seq_len,
            "limits": [
                study.recipe.general.max_documents,
                study.recipe.evaluate.max_heldout_documents,
            ],
            "checkpoints": checkpoints,
        }
    held = {
        "quantization": recipe["models"]["quantization"],
        # The resolved dtype: a run that goes on on another card must not mix two of them.
        "compute_dtype": study.hardware.compute_dtype,
    }
    if isinstance(stage, TrainCpt):
        trained = {"lora": recipe["lora"], "train": recipe["train"]}
        return {**trained, **held, "checkpoint": checkpoints[stage.on]}
    if isinstance(stage, TrainSft):
        chats = fingerprint(study.chats)
        return {"sft": recipe["sft"], "chats": chats, **held, "checkpoints": checkpoints}
    if isinstance(stage, Measure):
        return measured_with(study)
    if isinstance(stage, ExtractResidual):
        return {"lora": recipe["lora"]["target_modules"], "checkpoints": checkpoints}
    return {"checkpoints": checkpoints}  # ComparePair, Graft
