"""`kit`: parses the command line, and makes one library call per command.

Nothing heavy is imported before a command runs: `kit --help` must answer at once.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from kit import __version__
from kit.errors import KitError

app = typer.Typer(
    name="kit",
    help="Teach a chat model new text on one GPU without losing the chat, and see what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

P = ParamSpec("P")
R = TypeVar("R")

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or a shipped recipe's name.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe: train.tokens=2M lora.rank=64")
]


class SuiteOption(StrEnum):
    """The suites; a test holds them equal to the recipe's."""

    quick = "quick"
    standard = "standard"
    full = "full"


Out = Annotated[Path | None, typer.Option(help="Run directory. Default: runs/NAME")]


def main() -> None:
    """Entry point of the `kit` script."""
    signal.signal(signal.SIGTERM, _terminate)
    app()


def _terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # a polite kill ends like Ctrl-C: whole files, and how to go on


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Register a command behind the one error boundary: a clear message, no traceback."""

    @app.command(name=function.__name__.removesuffix("_"))
    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except KitError as error:
            typer.echo(f"kit: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo(
                "kit: stopped; finished stages are kept. Run the same command to go on.", err=True
            )
            raise typer.Exit(130) from None
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's; torch may not be loaded
                raise
            typer.echo(
                f"kit: out of memory: {error}\n  what to do: lower train.micro_batch_size or "
                "evaluate.batch_size, or set train.activation_checkpointing; finished stages are "
                "kept",
                err=True,
            )
            raise typer.Exit(2) from None

    return guarded


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


@command
def quickstart(overrides: Overrides = None, out: Out = None) -> None:
    """Every arm on Lilliput, the embedded pair: minutes on a laptop, no network."""
    _study("quickstart", overrides, out)


@command
def run(recipe: RecipeArgument, overrides: Overrides = None, out: Out = None) -> None:
    """Train, transfer and measure what a recipe asks for; run again to go on after a stop."""
    _study(recipe, overrides, out)


def _study(recipe: str, overrides: list[str] | None, out: Path | None) -> None:
    from kit.recipe.read import find_recipe, read_recipe

    loaded = read_recipe(find_recipe(recipe), overrides or [])
    from kit.cli.console import quiet_libraries, show_results

    quiet_libraries()
    from kit.strategies.execute import run_study

    show_results(run_study(loaded, out or Path("runs") / loaded.recipe.name))


@command
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    on: Annotated[
        str | None, typer.Option(help="Plan for other hardware: T4, 'RTX 3060', '24 GiB'.")
    ] = None,
) -> None:
    """What a recipe would do and cost: stages, tokens, memory, time. Loads no weights."""
    from kit.recipe.read import find_recipe, read_recipe
    from kit.strategies.preview import preview

    _print(preview(read_recipe(find_recipe(recipe), overrides or []), hardware=on).lines())


@command
def pair(
    base: Annotated[str, typer.Argument(help="Hub id, folder or .gguf of the base model.")],
    instruct: Annotated[str, typer.Argument(help="The same of the instruct model.")],
) -> None:
    """Check that two checkpoints are a base and its instruct model, and how far apart they are."""
    from kit.cli.console import pair_lines, quiet_libraries

    quiet_libraries()
    from kit.models.loading import resolve_source
    from kit.models.pair_check import check_pair

    _print(pair_lines(check_pair(resolve_source(base), resolve_source(instruct))))


@command
def evaluate(
    stacks: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run directories, or stacks: 'CHECKPOINT + ADAPTER*0.5'. The first is the control."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Its pair, text and measurements: 'instruct + ADAPTER'.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Of lm-eval, by comma: ifeval,arc_easy,mmlu; text.")
    ] = None,
    suite: Annotated[
        SuiteOption | None, typer.Option(help="A ready set: minutes, an hour, or a night.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Items of each task, spread evenly.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples before each question.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask benchmarks in chat turns.")] = False,
    data_dir: Annotated[str | None, typer.Option(help="Folder with the tasks' jsonl.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what OUT holds.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for rows and report.")] = Path("evaluation"),
) -> None:
    """Measure arms of a run, or stacks of your own, on lm-eval's tasks and on your text."""
    from kit.cli.console import quiet_libraries, show_results
    from kit.recipe.read import find_recipe, read_recipe

    loaded = read_recipe(find_recipe(recipe)) if recipe else None
    quiet_libraries()
    from kit.strategies.choice import TaskChoice
    from kit.strategies.evaluate import evaluate_stacks, resume_evaluation

    if resume:
        show_results(resume_evaluation(out))
        return
    choice = TaskChoice(
        tasks=tuple(name.strip() for name in tasks.split(",")) if tasks else (),
        suite=suite.value if suite else None,
        limit=limit,
        num_fewshot=num_fewshot,
        chat=chat,
        data_dir=data_dir,
    )
    show_results(evaluate_stacks(stacks or [], out, recipe=loaded, choice=choice))


@command
def residual(
    base: Annotated[str, typer.Argument(help="Hub id, folder or .gguf of the base model.")],
    instruct: Annotated[str, typer.Argument(help="The same of the instruct model.")],
    out: Annotated[Path, typer.Option(help="Folder for one adapter per rank: OUT/r32")],
    rank: Annotated[list[int] | None, typer.Option(help="Ranks to keep. Default: 32")] = None,
) -> None:
    """Write instruct - base as low-rank adapters, with the share of energy that they keep."""
    from kit.cli.console import quiet_libraries, residual_lines

    quiet_libraries()
    from kit.adapters.residual import extract_residual
    from kit.models.loading import resolve_source
    from kit.progress import Progress, counted

    with counted(Progress(), "decompose") as progress:
        report = extract_residual(
            resolve_source(base),
            resolve_source(instruct),
            ranks=rank or [32],
            out=lambda each: out / f"r{each}",
            progress=progress,
        )
    _print(residual_lines(report, out))


@command
def merge(
    checkpoint: Annotated[str, typer.Argument(help="Hub id, folder or .gguf to merge into.")],
    adapters: Annotated[list[str], typer.Argument(help="PEFT adapters: FOLDER or FOLDER*0.5")],
    out: Annotated[Path, typer.Option(help="Folder for the merged 16-bit checkpoint.")],
) -> None:
    """Add adapters to a 16-bit checkpoint, and verify what was written."""
    from kit.cli.console import gap_line, merge_lines, quiet_libraries

    quiet_libraries()
    from kit.models.loading import resolve_source
    from kit.progress import Progress, counted
    from kit.strategies.evaluate import parse_stack
    from kit.strategies.merging import merge_and_compare

    stack = parse_stack(" + ".join(["checkpoint", *adapters]), checkpoints=["checkpoint"])
    folder = resolve_source(checkpoint)
    with counted(Progress(), "merge") as progress:
        done, gap = merge_and_compare(stack, checkpoint=folder, out=out, progress=progress)
    _print([*merge_lines(done), gap_line(gap)])


@command
def report(
    run_directory: Annotated[Path, typer.Argument(help="A folder that `kit run` made.")],
) -> None:
    """Write report.md and report.html again, and print the table. Needs no torch."""
    from kit.cli.console import show_results
    from kit.reporting.page import write_report

    write_report(run_directory)
    show_results(run_directory)


@command
def recipes() -> None:
    """List the shipped recipes."""
    from kit.recipe.read import list_recipes

    for card in list_recipes():
        typer.echo(f"{card.name:34} {card.title}")
        if card.needs:
            typer.echo(f"{'':34} needs {card.needs}")
    typer.echo("\nRun one: kit run NAME    Look first: kit plan NAME")


@command
def schema() -> None:
    """Print the recipes' JSON schema, for completion and checks in an editor."""
    from kit.recipe.explain import schema_json

    typer.echo(schema_json())


@command
def doctor() -> None:
    """Look at versions, GPU, bitsandbytes, disk and hub log-in; say what to do about them."""
    from kit.planning.doctor import examine

    findings = examine()
    marks = {True: "ok", False: "!!", None: "--"}
    for finding in findings:
        typer.echo(f"{marks[finding.ok]:3} {finding.name:22} {finding.found}")
        if finding.ok is not True and finding.what_to_do:
            typer.echo(f"{'':27}{finding.what_to_do}")
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)
