"""The walls between the rooms: levels, what stays free of torch, sizes, types, docstrings."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "kit").rglob("*.py"))

LEVELS = [
    {"errors", "units"},
    {"stats", "hardware", "progress"},
    {"recipe", "runs"},
    {"models"},
    {"data", "adapters"},
    {"training", "evaluation", "planning", "reporting"},
    {"strategies"},
    {"cli"},
]
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

TORCH_FREE = [
    "kit",
    "kit.cli.app",
    "kit.recipe.read",
    "kit.runs.directory",
    "kit.runs.records",
    "kit.data",
    "kit.data.sources",
    "kit.planning.plan",
    "kit.planning.doctor",
    "kit.reporting.page",
    "kit.strategies.catalog",
    "kit.strategies.preview",
]
HEAVY = {"torch", "transformers", "peft", "datasets", "trl", "bitsandbytes", "lm_eval"}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "kit").parts
    return parts[0].removesuffix(".py")


def imported_rooms(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "kit":
                names = [f"kit.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("kit.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for other in imported_rooms(ast.parse(path.read_text("utf-8"))):
        if other == room:
            continue
        assert other in LEVEL_OF, f"{path.name} imports kit.{other}, which stands on no level"
        assert LEVEL_OF[other] < LEVEL_OF[room], f"{room} must not import {other}"


def test_every_room_stands_on_a_level():
    rooms = {room_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert rooms == set(LEVEL_OF)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_stays_free_of_torch(module):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 400, "a file has at most 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            docstring = ast.get_docstring(node, clean=False) or ""
            body = length - len(docstring.splitlines())
            assert body <= 60, f"{node.name} has {body} lines without its docstring"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_documented_and_typed(path):
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), "every module says what it is for"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert all(a.annotation for a in arguments), f"{node.name} has an untyped parameter"
            assert node.returns is not None, f"{node.name} does not say what it returns"


def test_no_utils_module():
    assert not [path for path in MODULES if path.stem in ("utils", "helpers", "misc", "common")]


def test_help_answers_at_once():
    code = (
        "import time; start = time.perf_counter()\n"
        "import kit.cli.app\n"
        "from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(kit.cli.app.app, ['--help'])\n"
        "assert result.exit_code == 0 and 'quickstart' in result.output\n"
        "print(time.perf_counter() - start)"
    )
    seconds = min(
        float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(3)
    )
    assert seconds < 0.5


def test_arm_names_are_the_catalogue():
    from typing import get_args

    from kit.recipe.schema import ArmName
    from kit.strategies.catalog import ARMS

    assert set(get_args(ArmName)) == set(ARMS)


def test_declared_dependencies_are_the_imported_ones():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {
        name.split(">")[0].split("=")[0].split("[")[0].replace("_", "-").lower()
        for name in project["dependencies"]
    }
    at_run_time = {"accelerate"}  # its reason stands beside it
    of_imports = {
        "ruamel": "ruamel.yaml",
        "lm_eval": "lm-eval",
        "huggingface_hub": "huggingface-hub",
    }
    imported = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= set(sys.stdlib_module_names) | {"kit"}
    named = {of_imports.get(name, name.replace("_", "-")) for name in imported}
    assert named <= declared, named - declared
    assert declared - named == at_run_time
