"""lora-kit: teach a chat model new text without losing the chat, on one GPU.

    from kit import Results, find_recipe, read_recipe, run_study

    run = run_study(read_recipe(find_recipe("quickstart")), "runs/quickstart")
    Results(run)

The names below are what notebooks use. They are imported when they are first asked for, so that
`import kit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Checkpoint": "kit.models.weights",
    "Progress": "kit.progress",
    "Results": "kit.reporting.show",
    "Stack": "kit.adapters.stack",
    "check_graft": "kit.adapters.graft",
    "check_pair": "kit.models.pair_check",
    "evaluate_stacks": "kit.strategies.evaluate",
    "extract_residual": "kit.adapters.residual",
    "find_recipe": "kit.recipe.read",
    "load_model": "kit.models.loading",
    "merge": "kit.adapters.merge",
    "preview": "kit.strategies.preview",
    "read_adapter": "kit.adapters.tensors",
    "read_recipe": "kit.recipe.read",
    "read_study": "kit.reporting.collect",
    "resolve_source": "kit.models.loading",
    "run_study": "kit.strategies.execute",
    "write_report": "kit.reporting.page",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"kit has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_WHERE[name]), name)
