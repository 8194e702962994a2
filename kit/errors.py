"""Every error that the kit raises on purpose, in one tree.

    KitError
    |-- RecipeError        ValueError    a recipe, an override or an argument that cannot be meant
    |-- DataError          ValueError    documents, questions or chats that cannot be read as asked
    |-- CheckpointError    ValueError    a model or tokenizer folder that cannot be used
    |-- PairError          ValueError    a base and an instruct model that do not belong together
    |-- AdapterError       ValueError    an adapter that does not fit where it is to go
    |   `-- GraftError     ValueError    one that is no plain delta of the model it goes on
    |-- RunDirectoryError  RuntimeError  a run directory that belongs to something else
    |   `-- RunBusyError   RuntimeError  one that another process is writing
    |-- TrainingError      RuntimeError  a training that must not go on
    `-- StorageError       OSError       no room or no permission to write

A message has three parts: what is wrong, where, and what to do about it. The command line prints
them without a traceback and ends with `exit_code`.
"""

from __future__ import annotations


class KitError(Exception):
    """Root of the tree.

    Args:
        what: what is wrong, in one sentence.
        where: the file, key or value that it concerns.
        fix: what the reader can do about it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [what]
        if where:
            parts.append(f"  where: {where}")
        if fix:
            parts.append(f"  what to do: {fix}")
        super().__init__("\n".join(parts))


class RecipeError(KitError, ValueError):
    """A recipe, an override or an argument that cannot be meant."""


class DataError(KitError, ValueError):
    """Documents, questions or chats that cannot be read as asked."""


class CheckpointError(KitError, ValueError):
    """A model or tokenizer folder that cannot be used."""


class PairError(KitError, ValueError):
    """A base and an instruct model that do not belong together."""


class AdapterError(KitError, ValueError):
    """An adapter that does not fit where it is to go."""


class GraftError(AdapterError):
    """An adapter that is no plain additive delta of the model it is grafted onto."""


class RunDirectoryError(KitError, RuntimeError):
    """A run directory that belongs to something else."""


class RunBusyError(RunDirectoryError):
    """A run directory that another process is writing."""


class TrainingError(KitError, RuntimeError):
    """A training that must not go on."""


class StorageError(KitError, OSError):
    """No room or no permission to write."""
