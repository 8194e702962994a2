"""lm-eval's tasks by name: found, loaded and seeded as `lm_eval.simple_evaluate` would.

lm-eval knows some 15,000 names, and reading all their definitions takes many seconds. A task's
definition mostly stands in a file or folder of its name, so those are read first.
"""

from __future__ import annotations

import difflib
import io
import logging
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from kit.errors import DataError, RecipeError
from kit.evaluation.local_data import expected_files, local_definitions

Fewshot = Literal["default", "first_n"]

_FEWSHOT_SEED, _RANDOM_SEED, _NUMPY_SEED = 1234, 0, 1234
"""The defaults of `lm_eval.simple_evaluate`."""


@dataclass(frozen=True)
class LoadedTasks:
    """The tasks behind a name, ready to build their requests."""

    tasks: dict[str, Any]
    """lm-eval's task objects by their names; one, or those of a group in its order."""
    notes: tuple[str, ...]
    """What a reader of the numbers should know about them."""
    chance: Chance
    """lm-eval's random state after loading."""


class Chance:
    """lm-eval's random numbers, kept apart from the process's own.

    Some tasks draw from Python's or numpy's global state when they are loaded and when they are
    asked for prompts; `simple_evaluate` seeds both beforehand.
    """

    def __init__(self) -> None:
        self._state: Any = None

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Draw from lm-eval's seeds the first time, then always from where that ended."""
        import numpy as np

        mine = random.getstate(), np.random.get_state()
        if self._state is None:
            random.seed(_RANDOM_SEED)
            np.random.seed(_NUMPY_SEED)
        else:
            random.setstate(self._state[0])
            np.random.set_state(self._state[1])
        try:
            yield
            if self._state is None:
                self._state = random.getstate(), np.random.get_state()
        finally:
            random.setstate(mine[0])
            np.random.set_state(mine[1])


@contextmanager
def quietly() -> Iterator[None]:
    """No bars and warnings of lm-eval and datasets, which a report of its own replaces."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level, showed_bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if showed_bars:
            datasets.enable_progress_bars()


def load_tasks(
    name: str,
    *,
    num_fewshot: int | None = None,
    fewshot: Fewshot = "default",
    data_dir: Path | None = None,
    include: Path | None = None,
) -> LoadedTasks:
    """Load a task or a group with its data.

    Args:
        name: as lm-eval knows it.
        num_fewshot: worked examples before each question; None as the task has it.
        fewshot: how they are chosen: as the task does, or always the first ones.
        data_dir: folder with the data; None for the hub or its cache.
        include: folder of definitions of one's own, in place of lm-eval's.

    Raises:
        RecipeError: there is no such task, or it cannot be asked so.
        DataError: its data cannot be had.
    """
    import lm_eval.models  # noqa: F401  # before any task imports one of them

    chance, notes = Chance(), []
    with quietly():
        manager = _manager(name) if include is None else _indexed(include)
        if data_dir is None:
            spec: Any = name
        else:
            local = local_definitions(members(manager.task_index, name), manager, data_dir)
            spec, notes = {"group": f"{name} of {data_dir.name}", "task": local.tasks}, local.notes
        with chance.drawn():
            tasks = _loaded(manager, spec, name=name)
    notes = notes if num_fewshot or any(t.get_config("num_fewshot") for t in tasks.values()) else []
    for task in tasks.values():
        _check_kind(task, name)
        _set_fewshot(task, num_fewshot, fewshot)
    if not _weighs_by_size(manager.task_index[name]):
        notes = [*notes, f"{name}: the mean is over items, lm-eval's is over its tasks"]
    return LoadedTasks(tasks, tuple(notes), chance)


def reseed(task: Any) -> None:
    """Put a task's choice of few-shot examples back to its beginning."""
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def members(index: dict[str, Any], name: str) -> list[str]:
    """The tasks of a group or tag, at any depth, in lm-eval's order; a task's own name alone.

    Raises:
        KeyError: one of them is not in the index.
    """
    entry = index[name]
    if entry.kind.name == "TAG":
        return [leaf for child in sorted(entry.tags) for leaf in members(index, child)]
    if entry.kind.name != "GROUP":
        return [name]
    children = entry.cfg["task"]
    names = [c if isinstance(c, str) else c.get("task") or c["group"] for c in children]
    return [leaf for child in names for leaf in members(index, child)]


def _manager(name: str) -> Any:
    """A task manager that knows a name and all that belongs to it.

    Raises:
        RecipeError: lm-eval has no such task.
    """
    for folder in _folders(name):
        manager = _indexed(folder)
        try:
            members(manager.task_index, name)
        except (KeyError, TypeError):
            continue
        return manager
    manager = _indexed(None)
    if name not in manager.task_index:
        close = difflib.get_close_matches(name, manager.all_tasks, n=3)
        raise RecipeError(
            f"lm-eval has no task or group named {name!r}",
            where="evaluate.benchmarks",
            fix=f"write {' or '.join(close)}" if close else "`lm-eval ls tasks` prints them all",
        )
    return manager


@cache
def _indexed(folder: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if folder is None:
        return TaskManager()
    return TaskManager(include_path=str(folder), include_defaults=False)


def _folders(name: str) -> list[Path]:
    """Folders of the files that define a name, as far as files or folders are called so."""
    import lm_eval.tasks

    if not re.fullmatch(r"[\w.-]+", name):
        return []
    defines = re.compile(rf"^[\"']?(task|group)[\"']?:\s*[\"']?{re.escape(name)}[\"']?\s*$", re.M)
    root = Path(lm_eval.tasks.__file__).parent
    candidates = {*root.rglob(f"{name}.yaml"), *root.rglob(f"_{name}.yaml")}
    candidates |= set((root / name).glob("*.yaml"))
    found = [p for p in sorted(candidates) if defines.search(p.read_text(encoding="utf-8"))]
    return list(dict.fromkeys(path.parent for path in found))


def _loaded(manager: Any, spec: Any, *, name: str) -> dict[str, Any]:
    import datasets

    try:
        tasks: dict[str, Any] = manager.load(spec)["tasks"]
    except ImportError as error:
        raise RecipeError(
            f"the task needs a package that is not installed: {error}",
            where=f"evaluate.benchmarks.{name}",
            fix="install it, or leave the task out",
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        files = expected_files(name)
        fix = "check the network, or fetch the data once while online: the cache serves it then"
        if files:
            fix = f"check the network, or set evaluate.data_dir to a folder with {files}"
        raise DataError(f"the data of {name} could not be read: {reason}", fix=fix) from error
    return tasks


def _check_kind(task: Any, name: str) -> None:
    """Refuse tasks that are no plain text, or run what a model wrote.

    Raises:
        RecipeError: it is one.
    """
    problem = ""
    if getattr(task, "MULTIMODAL", False):
        problem = "asks about images or sound"
    elif getattr(task, "UNSAFE_CODE", False):
        problem = "runs code that the model wrote"
    if problem:
        raise RecipeError(
            f"the task {problem}, which the kit does not",
            where=f"evaluate.benchmarks.{name}",
            fix="use lm-eval itself for it",
        )


def _set_fewshot(task: Any, count: int | None, fewshot: Fewshot) -> None:
    """Set the number of examples by `simple_evaluate`'s rules, and how they are chosen.

    Raises:
        RecipeError: the task fixes another number.
        DataError: there are not so many examples.
    """
    # `task.task_name` would do too, but draws a random number.
    own, where = task.get_config("num_fewshot"), f"evaluate.benchmarks: {task.get_config('task')}"
    if own == 0 and count:
        raise RecipeError(
            f"lm-eval fixes this task at 0 examples, and num_fewshot is {count}",
            where=where,
            fix="leave num_fewshot out",
        )
    count = count if count is not None else own or 0
    task.set_config(key="num_fewshot", value=count)
    sampler = getattr(task, "sampler", None)
    if not count or sampler is None:
        return
    # One more, because the question itself is left out where it stands among the examples.
    own_rows = task.config.fewshot_config.split == task.config.test_split
    if len(sampler.df) < count + own_rows:
        raise DataError(
            f"there are {len(sampler.df)} rows to take {count} examples from",
            where=where,
            fix="lower num_fewshot",
        )
    if fewshot == "first_n":
        from lm_eval.api.samplers import FirstNSampler

        task.sampler = FirstNSampler(sampler.df)


def _weighs_by_size(entry: Any) -> bool:
    """Whether a group's number is the mean over all its items, as the kit's is."""
    rules = (entry.cfg or {}).get("aggregate_metric_list") or []
    rules = rules if isinstance(rules, list) else [rules]
    return all(rule.get("weight_by_size", True) for rule in rules)
