"""Measure stacks that the user names, with a recipe's measurements."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from kit.adapters.graft import check_modules
from kit.adapters.stack import Stack, Weighted
from kit.adapters.tensors import adapter_fingerprint
from kit.errors import RecipeError
from kit.models.weights import Checkpoint
from kit.progress import Progress
from kit.recipe.read import LoadedRecipe
from kit.reporting.page import write_report
from kit.runs.directory import RunDirectory
from kit.runs.provenance import fingerprint, provenance
from kit.runs.records import Measurement, write_measurement
from kit.strategies.execute import (
    keep_decisions,
    measured_with,
    now,
    stage_fingerprints,
    started,
)
from kit.strategies.measuring import build_tasks, measure_model
from kit.strategies.stages import PrepareText, Where
from kit.strategies.study import Shelf, Study
from kit.strategies.text import GENERAL, HELDOUT, write_text_stage


def evaluate_stacks(
    loaded: LoadedRecipe, stacks: Sequence[str], out: Path, *, progress: Progress | None = None
) -> Path:
    """Measure stacks on the recipe's text and tasks, all on the same items.

    Args:
        loaded: the recipe; its arms and its training are not used.
        stacks: `instruct`, `base`, `instruct + FOLDER*0.5`; the first one is the control.
        out: a run directory of its own; run again to go on after a stop.
        progress: where to say what is done.

    Raises:
        KitError: a stack, the data or a checkpoint cannot be used.
    """
    progress = progress or Progress()
    study = Study(loaded.recipe, progress)
    parsed = [(text, parse_stack(text, checkpoints=study.folders)) for text in stacks]
    directory = RunDirectory(out)
    identity = fingerprint([loaded.fingerprint, list(stacks)])
    directory.check_owner(identity)
    study.check()
    for _, stack in parsed:
        adapter = stack.combined(study.folders)
        if adapter is not None:
            check_modules(adapter, Checkpoint(study.folders[_where(stack)]))
    with directory.opened(fingerprint=identity, recipe_yaml=loaded.resolved_yaml):
        directory.write_run(
            {
                "name": loaded.recipe.name,
                "started": started(directory),
                "finished": None,
                "control": stacks[0],
                "seeds": [],
                **provenance(study.hardware.line()),
            }
        )
        text = stage_fingerprints(study, [PrepareText()])["text"]
        if not directory.is_done("text", text):
            with directory.stage("text", text) as folder:
                write_text_stage(study, folder)
        _measure_all(study, directory, parsed, text)
        keep_decisions(study, directory)
        directory.write_run({"finished": now()})
        write_report(out)
    return out


def parse_stack(text: str, *, checkpoints: Collection[str]) -> Stack:
    """Read `instruct + FOLDER*0.5 + FOLDER` as a user types it.

    Raises:
        RecipeError: it does not start with a known checkpoint, or a weight is no number.
    """
    first, *rest = (part.strip() for part in text.split(" + "))
    if first not in checkpoints:
        raise RecipeError(
            f"a stack starts with one of {sorted(checkpoints)}, not {first!r}",
            where=text,
            fix="write, say, 'instruct + runs/NAME/stages/cpt-base-s0/adapter*0.5'",
        )
    layers = []
    for number, part in enumerate(rest, start=1):
        folder, star, weight = part.rpartition("*")
        try:
            value = float(weight) if star else 1.0
        except ValueError as error:
            raise RecipeError(f"{weight!r} is no weight", where=text, fix="FOLDER*0.5") from error
        layers.append(Weighted(f"adapter{number}", Path(folder if star else part), value))
    return Stack(first, tuple(layers))


def _where(stack: Stack) -> Where:
    return "base" if stack.checkpoint == "base" else "instruct"


def _measure_all(
    study: Study, directory: RunDirectory, parsed: list[tuple[str, Stack]], text_print: str
) -> None:
    shelf = Shelf(study)
    text = directory.stage_folder("text")
    tasks = build_tasks(study.recipe.evaluate, heldout=text / HELDOUT, general=text / GENERAL)
    for label, stack in sorted(parsed, key=lambda pair: pair[1].checkpoint):
        name = f"measure-{fingerprint(label)}"
        layers = [[adapter_fingerprint(x.path), x.weight] for x in stack.adapters]
        identity = fingerprint([text_print, stack.checkpoint, layers, measured_with(study)])
        if directory.is_done(name, identity):
            continue
        study.progress.say(label)
        started = time.monotonic()
        with directory.stage(name, identity) as folder:
            rows = measure_model(
                shelf.model(_where(stack)),
                study.tokenizer("instruct"),
                stack.combined(study.folders),
                tasks=tasks,
                evaluate=study.recipe.evaluate,
                progress=study.progress,
            )
            measurement = Measurement(
                arm=label,
                label=label,
                seed=None,
                stack=label,
                decode=shelf.decode,
                seconds=time.monotonic() - started,
                tasks=tuple(task.info for task in tasks),
                rows=tuple(rows),
            )
            write_measurement(folder, measurement)
