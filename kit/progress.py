"""Progress of long work: a live bar on a terminal, plain lines in notebooks, pipes and CI."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_EVERY_SECONDS = 15.0


class Advance(Protocol):
    """Called as work gets done."""

    def __call__(self, done: int, note: str = "") -> None:
        """Report that `done` more units are finished; `note` replaces the text beside the bar."""


def silent(done: int, note: str = "") -> None:
    """An `Advance` for callers that want no progress."""


class Progress:
    """Says what is being done, how far it is, and how long it will take.

    Args:
        console: where to; None for standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console()

    def say(self, line: str) -> None:
        """Print one line."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """One piece of work of `total` units."""
        if self.console.is_terminal and not self.console.is_jupyter:
            with self._bar(name, total) as advance:
                yield advance
        else:
            yield self._lines(name, total)

    @contextmanager
    def _bar(self, name: str, total: int) -> Iterator[Advance]:
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
        )
        with progress.Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(name, total=total, note="")

            def advance(done: int, note: str = "") -> None:
                if note:
                    bar.update(task, advance=done, note=note)
                else:
                    bar.update(task, advance=done)

            yield advance

    def _lines(self, name: str, total: int) -> Advance:
        from kit.units import show_seconds

        started = last = time.monotonic()
        seen = 0

        def advance(done: int, note: str = "") -> None:
            nonlocal last, seen
            seen += done
            now = time.monotonic()
            if now - last < _PLAIN_EVERY_SECONDS:
                return
            last = now
            left = (now - started) / max(seen, 1) * (total - seen)
            tail = f"  {note}" if note else ""
            self.say(f"  {name}: {seen / total:.0%}, {show_seconds(left)} left{tail}")

        return advance


@contextmanager
def counted(progress: Progress, name: str) -> Iterator[Callable[[int, int], None]]:
    """A task for callers that report (done, total) instead of what was added."""
    with progress.task(name, 100) as advance:
        shown = 0

        def report(done: int, total: int) -> None:
            nonlocal shown
            percent = 100 * done // max(total, 1)
            advance(percent - shown)
            shown = percent

        yield report
