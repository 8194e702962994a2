"""Every notebook is executed, and is the same as its script."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

SMALL = [
    "study.arms=[instruct, cpt-instruct, residual]",
    "study.cpt_weights=[0.5]",
    "train.tokens=8k",
    "evaluate.lilliput_rules=15",
    "evaluate.max_heldout_documents=8",
    "general.max_documents=8",
]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == len(list(FOLDER.glob("*.py"))) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_its_script(path):
    notebook, script = jupytext.read(path), jupytext.read(path.with_suffix(".py"))
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in script.cells]
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")  # the kernel's own, in another process
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += f"\nchanges = {SMALL!r}\nfolder = {str(tmp_path / 'run')!r}"
    NotebookClient(notebook, timeout=400, resources={"metadata": {"path": tmp_path}}).execute()
    shown = "".join(
        output.get("data", {}).get("text/html", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "residual x0.5" in shown, "the table is shown in the notebook"
    assert shown.count("<svg") >= 2, "and so are the plots"
