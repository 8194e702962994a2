"""A run directory: one recipe, its stages, and a done-marker in each that is finished.

run.json            the recipe's fingerprint, versions, decisions
recipe.yaml         the resolved recipe
stages/NAME/        one finished stage, with done.json written last
stages/.NAME.part/  one that was under way; a kill leaves it, the next run removes it
partial/NAME.jsonl  rows of a measurement under way; a kill leaves them, the next run goes on
report.md .html     written at the end, and by `kit report`
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.errors import RunBusyError, RunDirectoryError, StorageError
from kit.runs.records import SCHEMA_VERSION

_NO_ROOM = ("os error 28", "os error 27", "os error 122", "No space left", "File too large")


class RunDirectory:
    """The folder of one run, locked by this process while it is open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: int | None = None

    @contextmanager
    def opened(self, *, fingerprint: str, recipe_yaml: str) -> Iterator[RunDirectory]:
        """Create the directory or go on in it, and hold its lock.

        Raises:
            RunDirectoryError: it belongs to another recipe, or is no run directory.
            RunBusyError: another process is writing in it.
        """
        self.check_owner(fingerprint)
        self.stages.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self.check_owner(fingerprint)
            if not (self.root / "run.json").exists():
                write_text(self.root / "recipe.yaml", recipe_yaml)
                self.write_run({"fingerprint": fingerprint})
            for part in self.stages.glob(".*.part"):
                shutil.rmtree(part)
            yield self
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    def check_owner(self, fingerprint: str) -> None:
        """See whether a recipe may write here, before anything is read or written.

        Raises:
            RunDirectoryError: the directory belongs to another recipe, or is no run directory.
        """
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise RunDirectoryError(
                "the run directory's name is taken by a file",
                where=str(self.root),
                fix="name another one with --out",
            )
        if not (self.root / "run.json").exists():
            others = [p.name for p in self.root.iterdir() if p.name not in (".lock", "stages")]
            if others and others != ["recipe.yaml"]:
                raise RunDirectoryError(
                    f"the folder is in use and no run directory (it holds {sorted(others)[0]})",
                    where=str(self.root),
                    fix="name another one with --out",
                )
            return
        about = self.read_run()
        if about.get("fingerprint") != fingerprint:
            raise RunDirectoryError(
                f"the run directory belongs to another recipe (fingerprint "
                f"{about.get('fingerprint')}, this recipe has {fingerprint})",
                where=str(self.root),
                fix="name another directory with --out, or run the recipe as it was "
                f"({self.root / 'recipe.yaml'})",
            )

    def _take_lock(self) -> None:
        descriptor = os.open(self.root / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # a file system without locks, such as a mounted drive
            raise RunBusyError(
                "another process is writing in this run directory",
                where=str(self.root),
                fix="wait for it to end, or name another directory with --out",
            ) from None
        self._lock = descriptor

    def read_run(self) -> dict[str, Any]:
        """What `run.json` says."""
        try:
            about: dict[str, Any] = json.loads((self.root / "run.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise RunDirectoryError(
                f"this is no run directory: {error}", where=str(self.root / "run.json")
            ) from error
        return about

    def write_run(self, changes: dict[str, Any]) -> None:
        """Add to `run.json`."""
        known = self.read_run() if (self.root / "run.json").exists() else {}
        write_json(self.root / "run.json", {"schema_version": SCHEMA_VERSION, **known, **changes})

    def stage_folder(self, name: str) -> Path:
        """Where a stage's files are."""
        return self.stages / name

    def partial_path(self, name: str) -> Path:
        """Where rows of a measurement under way are kept."""
        return self.root / "partial" / f"{name}.jsonl"

    def is_done(self, name: str, fingerprint: str) -> bool:
        """Whether a stage was finished with the very same inputs and settings."""
        marker = self.stage_folder(name) / "done.json"
        if not marker.is_file():
            return False
        about = json.loads(marker.read_text("utf-8"))
        return bool(about.get("fingerprint") == fingerprint)

    @contextmanager
    def stage(self, name: str, fingerprint: str, **about: Any) -> Iterator[Path]:
        """A folder to fill; it takes its name, marker inside, when the block ends well.

        What stood under this name with another fingerprint is removed only then.
        """
        part = self.stages / f".{name}.part"
        if part.exists():
            shutil.rmtree(part)
        with storage_errors(part):
            part.mkdir(parents=True)
            yield part
            marker = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, **about}
            write_json(part / "done.json", marker)
            target = self.stage_folder(name)
            if target.exists():
                shutil.rmtree(target)
            part.replace(target)
            self.partial_path(name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that it is whole or not there."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with storage_errors(path):
        try:
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into one clear error; libraries report it in several shapes."""
    try:
        yield
    except Exception as error:
        if isinstance(error, PermissionError):
            raise StorageError(
                f"no permission: {error}",
                where=str(path),
                fix="choose another folder with --out, or change its permissions",
            ) from error
        if isinstance(error, StorageError) or not any(sign in str(error) for sign in _NO_ROOM):
            raise
        raise StorageError(
            f"no room to write: {error}",
            where=str(path),
            fix="free some space and run the same command again; finished stages are kept",
        ) from error
