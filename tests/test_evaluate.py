"""`kit evaluate`: arms of a run or bare stacks, on lm-eval tasks, stopped and gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import shared_data
from typer.testing import CliRunner

from kit.models import loading
from kit.recipe.read import read_recipe
from kit.recipe.schema import SuiteName
from kit.runs.records import read_measurement
from kit.strategies.choice import TaskChoice
from kit.strategies.evaluate import evaluate_stacks, resume_evaluation
from kit.strategies.execute import run_study

TEXT = "The miller of Mire keeps grey geese and sells their feathers every second week"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Questions in ARC's plain form."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "arc").mkdir()
    rows = [
        {
            "query": f"Question: Which word comes after {WORDS[n % 9]} in line {n}?",
            "choices": [WORDS[(n + k) % 13] for k in range(4)],
            "gold": n % 4,
        }
        for n in range(30)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "arc" / "arc_easy.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, pico_pair) -> Path:
    place = tmp_path_factory.mktemp("evaluated")
    for n in range(4):
        lines = (f"Line {k} of part {n}: {' '.join(WORDS[k % 5 :])}." for k in range(60))
        (place / f"part{n}.txt").write_text("\n".join(lines))
    (place / "recipe.yaml").write_text(
        f"""\
name: small
models: {{base: {pico_pair.base}, instruct: {pico_pair.instruct}, compute_dtype: float32}}
corpus: {{sources: [{place}], heldout: {{every: 4}}}}
general: {{max_documents: 2}}
lora: {{rank: 4}}
train: {{tokens: 1000, seq_len: 128, tokens_per_step: 512}}
study: {{arms: [instruct, base, cpt-instruct, residual], cpt_weights: [0.5, 1.0], seeds: [0]}}
evaluate: {{seq_len: 128, max_heldout_documents: 1}}
""".replace(f"[{place}]", "[" + ", ".join(str(place / f"part{n}.txt") for n in range(4)) + "]")
    )
    return run_study(read_recipe(place / "recipe.yaml"), place / "run")


def measurements(out: Path):
    found = map(read_measurement, (out / "stages").glob("measure-*"))
    return {m.label: m for m in found}


def test_all_arms_of_a_run_with_one_load_of_each_checkpoint(run, data_dir, tmp_path, monkeypatch):
    loads = []
    true_load = loading.load_model

    def counting(folder, **options):
        loads.append(Path(folder).name)
        return true_load(folder, **options)

    monkeypatch.setattr("kit.strategies.study.load_model", counting)
    choice = TaskChoice(tasks=("arc_easy", "text"), limit=20, data_dir=str(data_dir))
    out = evaluate_stacks([str(run)], tmp_path / "out", choice=choice)
    assert sorted(loads) == ["base", "instruct"]
    found = measurements(out)
    assert set(found) == {"instruct", "base", "cpt-instruct", "residual x0.5", "residual x1"}
    items = {tuple(row.item for row in m.rows if row.task == "arc_easy") for m in found.values()}
    assert len(items) == 1 and len(items.pop()) == 20
    report = (out / "report.md").read_text()
    assert "Differences to instruct" in report and "ARC-Easy" in report
    text = {label: [r for r in m.rows if r.task == "new_text"] for label, m in found.items()}
    for label, name in (("instruct", "instruct"), ("residual x0.5", "residual-x0.5-s0")):
        before = read_measurement(run / "stages" / f"measure-{name}")
        assert text[label] == [row for row in before.rows if row.task == "new_text"]
    assert not list((out / "partial").glob("*.jsonl"))


def test_bare_checkpoints(pico_pair, data_dir, tmp_path):
    choice = TaskChoice(tasks=("arc_easy",), limit=5, data_dir=str(data_dir))
    stacks = [str(pico_pair.instruct), str(pico_pair.base)]
    out = evaluate_stacks(stacks, tmp_path / "out", choice=choice)
    found = measurements(out)
    assert set(found) == set(stacks)
    assert all(len(m.rows) == 5 for m in found.values())
    assert {row.prompt_hash for row in found[stacks[0]].rows} == {
        row.prompt_hash for row in found[stacks[1]].rows
    }


def test_killed_and_gone_on_with_it_gives_the_same_rows(run, data_dir, tmp_path):
    arguments = ["--tasks", "arc_easy,text", "--data-dir", str(data_dir)]
    command = [sys.executable, "-m", "kit", "evaluate", str(run), *arguments, "--out"]
    whole = tmp_path / "whole"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    cut = tmp_path / "cut"
    process = subprocess.Popen([*command, str(cut)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(cut.glob("partial/*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(cut.glob("partial/*.jsonl")) and not (cut / "report.md").exists()
    resume_evaluation(cut)
    first, second = measurements(whole), measurements(cut)
    assert {k: m.rows for k, m in first.items()} == {k: m.rows for k, m in second.items()}


def test_the_training_text_in_a_benchmark_is_told(run, tmp_path):
    """An item that stands in the training text word for word is listed, and only that one."""
    known = (run.parent / "part1.txt").read_text().splitlines()[0]
    folder = tmp_path / "data" / "arc"
    folder.mkdir(parents=True)
    rows = [
        {"query": f"Question: {text}", "choices": ["yes", "no"], "gold": 0}
        for text in (known, "Is this a question that nobody has ever seen before in any text?")
    ]
    (folder / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = TaskChoice(tasks=("arc_easy",), data_dir=str(tmp_path / "data"))
    out = evaluate_stacks([str(run)], tmp_path / "out", choice=choice)
    found = json.loads((out / "contamination.json").read_text())["contamination"]["arc_easy"]
    assert found == {"items": ["arc_easy/0"], "checked": 2}
    assert "contamination.json" in (out / "report.md").read_text()


def test_the_commands_suites_are_the_recipes():
    from typing import get_args

    from kit.cli.app import SuiteOption
    from kit.recipe.suites import SUITES

    assert {s.value for s in SuiteOption} == set(get_args(SuiteName)) == set(SUITES)


def test_the_command_prints_the_table(pico_pair, tmp_path):
    from kit.cli.app import app

    data = shared_data()
    arguments = ["evaluate", str(pico_pair.instruct), "--tasks", "arc_easy,mmlu", "--limit", "8"]
    arguments += ["--data-dir", str(data), "--num-fewshot", "1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "ARC-Easy" in done.output and "MMLU" in done.output
