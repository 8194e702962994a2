"""Measure stacks that the user names: arms of finished runs, or checkpoints with adapters."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kit.adapters.graft import check_modules
from kit.adapters.stack import Stack, Weighted
from kit.adapters.tensors import read_sidecar
from kit.errors import AdapterError, RecipeError, RunDirectoryError
from kit.evaluation.estimate import estimate, estimate_lines
from kit.evaluation.task import Task
from kit.models.chat import check_chat_template
from kit.models.weights import Checkpoint
from kit.progress import Progress
from kit.recipe.read import LoadedRecipe, read_recipe, recipe_of, with_overrides
from kit.reporting.page import write_report
from kit.runs.directory import RunDirectory
from kit.runs.partial import PartialRows
from kit.runs.provenance import fingerprint, provenance
from kit.runs.records import write_measurement
from kit.strategies.catalog import stages
from kit.strategies.choice import TaskChoice
from kit.strategies.execute import keep_decisions, now, stage_fingerprints, started
from kit.strategies.measuring import all_chunks, text_tasks
from kit.strategies.runners import stack_of, trained_tokens
from kit.strategies.stages import Measure, PrepareText
from kit.strategies.study import Shelf, Study
from kit.strategies.targets import (
    Target,
    check_contamination,
    finished,
    measure_target,
    open_rows,
)
from kit.strategies.text import write_measured_text
from kit.units import show_seconds


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be evaluated; it is written down, so that a stop can be gone on from."""

    stacks: tuple[str, ...]
    """As typed; a run directory stands for all of its arms."""


def evaluate_stacks(
    stacks: Sequence[str],
    out: Path | str = "evaluation",
    *,
    recipe: LoadedRecipe | None = None,
    choice: TaskChoice | None = None,
    progress: Progress | None = None,
) -> Path:
    """Measure stacks, all on the same items, with one load of each checkpoint.

    Args:
        stacks: run directories; `instruct + FOLDER*0.5` with the names of the recipe's
            checkpoints; or the same with a hub id, folder or .gguf file. The first is the control;
            of a run directory, its recipe's control.
        out: a run directory of its own; call again to go on after a stop.
        recipe: its checkpoints, text and measurements; None: the run directory's, or none.
        choice: the tasks; None: what the recipe says.
        progress: where to say what is done.

    Raises:
        KitError: a stack, the data or a checkpoint cannot be used.
    """
    request = Request(stacks=tuple(stacks))
    overrides = (choice or TaskChoice()).overrides()
    loaded = with_overrides(recipe, overrides) if recipe else _recipe_for(request, overrides)
    return _evaluate(loaded, request, Path(out), progress or Progress())


def resume_evaluation(out: Path | str, *, progress: Progress | None = None) -> Path:
    """Go on with an evaluation that was stopped.

    Raises:
        RunDirectoryError: there is none in this folder.
    """
    about = RunDirectory(Path(out)).read_run().get("request")
    if not about:
        raise RunDirectoryError(
            "this is no evaluation that was begun", where=str(out), fix="name stacks to measure"
        )
    request = Request(**{**about, "stacks": tuple(about["stacks"])})
    loaded = read_recipe(Path(out) / "recipe.yaml")
    return _evaluate(loaded, request, Path(out), progress or Progress())


def _recipe_for(request: Request, overrides: Sequence[str]) -> LoadedRecipe:
    """The recipe of the run directory among the stacks; without one, that of a bare checkpoint."""
    runs = [Path(text) for text in request.stacks if is_run(text)]
    if runs:
        return read_recipe(runs[0] / "recipe.yaml", overrides)
    if not request.stacks:
        raise RecipeError("there is nothing to evaluate", fix="name a run directory or a stack")
    source = request.stacks[0].partition(" + ")[0].strip()
    if source in ("instruct", "base"):
        raise RecipeError(
            f"{source!r} is a checkpoint of a recipe, and none is named",
            where=request.stacks[0],
            fix="add --recipe RECIPE, or write the checkpoint's hub id or folder",
        )
    if not overrides:
        raise RecipeError("there is nothing to measure", fix="name --tasks, a --suite, a --recipe")
    models, study = {"instruct": source}, {"arms": ["instruct"]}
    return recipe_of({"name": "evaluation", "models": models, "study": study}, overrides)


def _evaluate(loaded: LoadedRecipe, request: Request, out: Path, progress: Progress) -> Path:
    study = Study(loaded.recipe, progress, others=_others(request, loaded))
    targets = [target for text in request.stacks for target in _targets(text, study)]
    control = _control(targets, request, loaded)
    directory = RunDirectory(out)
    identity = fingerprint([loaded.fingerprint, asdict(request)])
    directory.check_owner(identity)
    _check(study, targets)
    with directory.opened(fingerprint=identity, recipe_yaml=loaded.resolved_yaml):
        directory.write_run(
            {
                "name": loaded.recipe.name,
                "started": started(directory),
                "finished": None,
                "control": control,
                "seeds": sorted({t.seed for t in targets if t.seed is not None}),
                "request": asdict(request),
                **provenance(study.hardware.line()),
            }
        )
        text = stage_fingerprints(study, [PrepareText()])["text"]
        if not directory.is_done("text", text):
            with directory.stage("text", text) as folder:
                write_measured_text(study, folder)
        _measure(study, directory, targets)
        keep_decisions(study, directory)
        directory.write_run({"finished": now()})
        write_report(out)
    return out


def _measure(study: Study, directory: RunDirectory, targets: list[Target]) -> None:
    shelf, text = Shelf(study), directory.stage_folder("text")
    tasks = [*text_tasks(text), *study.asking]
    check_contamination(study, tasks, directory)
    names = [f"measure-{fingerprint([t.label, t.seed])}" for t in targets]
    rows = [
        open_rows(study, directory, name, target, text=text)
        for name, target in zip(names, targets, strict=True)
    ]
    _measure_left(list(zip(targets, rows, strict=True)), shelf, tasks)
    for name, target, measured in zip(names, targets, rows, strict=True):
        if not directory.is_done(name, measured.fingerprint):
            with directory.stage(name, measured.fingerprint) as folder:
                made = finished(target, shelf, tasks=tasks, rows=measured)
                write_measurement(folder, made)
    shelf.clear()


def _measure_left(
    sheets: Sequence[tuple[Target, PartialRows]], shelf: Shelf, tasks: Sequence[Task]
) -> None:
    """Measure by checkpoint, each loaded once, what is not measured yet."""
    todo = all_chunks(tasks)
    left = [
        (target, rows)
        for target, rows in sorted(sheets, key=lambda sheet: sheet[0].stack.checkpoint)
        if not all(rows.has(task.info.task, task.item_ids) for task in tasks)
    ]
    started = time.monotonic()
    for number, (target, rows) in enumerate(left, start=1):
        if number == 1:
            seconds = estimate(shelf.engine(target.stack.checkpoint), tasks)
            for line in estimate_lines(seconds, stacks=len(left)):
                shelf.study.progress.say(line)
            rest = ""
        else:
            per_stack = (time.monotonic() - started) / (number - 1)
            rest = f", about {show_seconds(per_stack * (len(left) - number + 1))} left for all"
        shelf.study.progress.say(f"[{number}/{len(left)}] {target.label}{rest}")
        measure_target(target, shelf, tasks=tasks, todo=todo, rows=rows)


def is_run(text: str) -> bool:
    """Whether a stack, as typed, is the folder of a run."""
    return (Path(text).expanduser() / "run.json").is_file()


def _targets(text: str, study: Study) -> list[Target]:
    """What a stack, as typed, stands for."""
    if is_run(text):
        return _targets_of_run(Path(text).expanduser(), study)
    first, *rest = (part.strip() for part in text.split(" + "))
    named = {"instruct": "instruct", study.recipe.models.instruct: "instruct"}
    if study.recipe.models.base is not None:
        named |= {"base": "base", study.recipe.models.base: "base"}
    named |= {source: name for name, source in study.others.items()}
    stack = parse_stack(" + ".join([named[first], *rest]), checkpoints=named.values())
    return [Target(arm=text, label=text, seed=None, stack=stack)]


def _others(request: Request, loaded: LoadedRecipe) -> dict[str, str]:
    """Checkpoints among the stacks that the recipe does not know, each with a name."""
    models = loaded.recipe.models
    sources = [text.partition(" + ")[0].strip() for text in request.stacks if not is_run(text)]
    known = {"instruct", "base" if models.base else "instruct", models.instruct, models.base}
    unknown = [source for source in dict.fromkeys(sources) if source not in known]
    return {f"checkpoint{n}": source for n, source in enumerate(unknown, start=2)}


def _targets_of_run(run: Path, study: Study) -> list[Target]:
    """Every arm of a run whose adapters are there."""
    directory = RunDirectory(run)
    of_run = read_recipe(run / "recipe.yaml").recipe
    if of_run.models != study.recipe.models:
        raise RecipeError(
            "the run was made with other checkpoints than the recipe names",
            where=str(run),
            fix="leave --recipe out, and name run directories of one pair",
        )
    measures = [stage for stage in stages(of_run) if isinstance(stage, Measure)]
    there = [
        stage
        for stage in measures
        if all((directory.stage_folder(x.stage) / "done.json").is_file() for x in stage.layers)
    ]
    for stage in measures:
        if stage not in there:
            study.decide(f"left out: {stage.label}, whose training is not finished in {run}")
    if not there:
        raise RunDirectoryError("no arm of this run can be measured yet", where=str(run))
    return [
        Target(
            arm=stage.arm,
            label=stage.label,
            seed=stage.seed,
            stack=stack_of(stage, directory),
            settings=stage.settings,
            trained_tokens=trained_tokens(stage, directory),
        )
        for stage in there
    ]


def _control(targets: Sequence[Target], request: Request, loaded: LoadedRecipe) -> str:
    if is_run(request.stacks[0]):
        wanted = loaded.recipe.study.control
        return next((t.label for t in targets if t.arm == wanted), targets[0].label)
    return targets[0].label


def _check(study: Study, targets: Sequence[Target]) -> None:
    """Look at everything that can be wrong before anything is written.

    Raises:
        KitError: the first thing that is wrong.
    """
    if not (study.asking or study.evaluate.text):
        raise RecipeError(
            "there is nothing to measure", fix="name --tasks or a --suite, or give a --recipe"
        )
    if study.recipe.corpus is not None:
        _ = study.corpus
    if study.asking:
        check_chat_template(study.tokenizer("instruct"))
    labels = [(target.label, target.seed) for target in targets]
    if len(set(labels)) < len(labels):
        raise RecipeError("a stack stands twice", where=str(labels), fix="name each one once")
    for target in targets:
        adapter = target.stack.combined(study.folders)
        if adapter is None:
            continue
        check_modules(adapter, Checkpoint(study.folders[target.stack.checkpoint]))
        for layer in target.stack.adapters:
            _check_origin(layer, study)


def _check_origin(layer: Weighted, study: Study) -> None:
    """An adapter is a delta of one checkpoint's weights, and of no others of the same shape."""
    sidecar = read_sidecar(layer.path)
    if sidecar is not None and sidecar.base_fingerprint not in study.weights.values():
        raise AdapterError(
            f"the adapter was trained on {sidecar.base_name}, which is none of the checkpoints "
            f"here ({', '.join(str(folder) for folder in study.folders.values())})",
            where=str(layer.path),
            fix="name its own checkpoint, or with --recipe the pair that it belongs to",
        )


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
