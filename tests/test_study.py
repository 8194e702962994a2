"""A whole study on the pico pair: every arm, stops and goes on, and the report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.recipe.read import read_recipe
from kit.runs.records import read_measurement
from kit.strategies import catalog
from kit.strategies.catalog import stages
from kit.strategies.evaluate import evaluate_stacks
from kit.strategies.execute import run_study

ARMS = list(catalog.ARMS)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, pico_pair) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    with (folder / "news.jsonl").open("w") as file:
        for n in range(60):
            text = f"On day {n} the mayor of town {n % 7} opened bridge number {n * 3}."
            file.write(json.dumps({"text": text, "date": f"2026-01-{n % 28 + 1:02d}"}) + "\n")
    with (folder / "chats.jsonl").open("w") as file:
        for n in range(16):
            turns = [
                {"role": "user", "content": f"Day {n}?"},
                {"role": "assistant", "content": f"Bridge {n * 3}."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    with (folder / "questions.jsonl").open("w") as file:
        for n in range(6):
            file.write(json.dumps({"question": f"Bridge of day {n}?", "answer": str(n * 3)}) + "\n")
    path = folder / "recipe.yaml"
    path.write_text(f"""\
name: pico
models: {{base: {pico_pair.base}, instruct: {pico_pair.instruct}, compute_dtype: float32}}
corpus:
  sources: [{folder}/news.jsonl]
  date_field: date
  heldout: {{every: 6}}
general: {{sources: ['pydoc:topics'], max_documents: 4}}
lora: {{rank: 16}}
train:
  {{tokens: 8000, seq_len: 128, micro_batch_size: 2, tokens_per_step: 512, learning_rate: 1e-2}}
sft: {{sources: [{folder}/chats.jsonl], max_length: 128}}
study:
  {{arms: [{", ".join(ARMS)}], cpt_weights: [0, 0.5, 1], residual_ranks: [2, 64], seeds: [0, 1]}}
evaluate:
  seq_len: 128
  lilliput_rules: 12
  questions:
    plain: {{sources: [{folder}/questions.jsonl], form: plain, max_new_tokens: 4}}
""")
    return path


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    return run_study(read_recipe(recipe), tmp_path_factory.mktemp("runs") / "pico")


def measured(run: Path, name: str):
    return read_measurement(run / "stages" / f"measure-{name}")


def test_every_arm_is_measured_on_the_same_items(finished):
    found = [read_measurement(p) for p in sorted((finished / "stages").glob("measure-*"))]
    assert {m.arm for m in found} == set(ARMS)
    # 2 plain, 2 x 2 cpt, 2 x 2 residual weights, 2 x 2 low rank, 2 residual only, 2 sft
    assert len(found) == 2 + 4 + 4 + 4 + 2 + 2
    items = {tuple((row.task, row.item, row.prompt_hash) for row in m.rows) for m in found}
    assert len(items) == 1


def test_budgets_are_equal_and_sft_tokens_stand_apart(finished):
    found = [read_measurement(p) for p in (finished / "stages").glob("measure-*")]
    cpt = [m for m in found if "cpt" in m.arm or m.arm in ("residual", "residual-lowrank")]
    assert {m.trained_tokens["cpt"] for m in cpt} == {8000}
    assert {m.arm for m in found if "sft" in m.trained_tokens} == {"cpt-sft"}


def test_shared_stages_are_done_once(recipe, finished):
    names = [stage.name for stage in stages(read_recipe(recipe).recipe)]
    assert len(names) == len(set(names))
    assert sum(name.startswith("cpt-base") for name in names) == 2
    assert sorted(p.name for p in (finished / "stages").iterdir()) == sorted(names)


def test_training_learns_the_text(finished):
    def bits(name):
        rows = [row for row in measured(finished, name).rows if row.task == "new_text"]
        pairs = [row.scores["bits_per_byte"] for row in rows]
        return sum(a for a, _ in pairs) / sum(b for _, b in pairs)

    assert bits("cpt-base-s0") < bits("base") - 0.5
    assert bits("cpt-instruct-s0") < bits("instruct") - 0.5
    assert bits("residual-x1-s0") < bits("instruct") - 0.5


def test_the_run_explains_itself(finished):
    about = json.loads((finished / "run.json").read_text())
    assert about["versions"]["torch"] and about["finished"] and about["decisions"]
    page = (finished / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page), "readable without network"
    assert "<svg" in page
    for arm in ARMS:
        assert arm in page and arm in (finished / "report.md").read_text()
    assert read_recipe(finished / "recipe.yaml").fingerprint == about["fingerprint"]


def test_peft_reads_what_was_trained(finished, pico_pair):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(pico_pair.base)
    for folder in ("cpt-base-s0/adapter", "sft-s0/adapter", "residual/r2"):
        PeftModel.from_pretrained(model, str(finished / "stages" / folder)).unload()


def test_a_second_run_does_nothing_again(recipe, finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in (finished / "stages").rglob("*") if p.is_file()}
    run_study(read_recipe(recipe), finished)
    after = {p: p.stat().st_mtime_ns for p in (finished / "stages").rglob("*") if p.is_file()}
    assert before == after
    assert "stages were done already" in capsys.readouterr().out


def test_stacks_of_ones_own(recipe, finished, tmp_path):
    adapter = finished / "stages" / "cpt-base-s0" / "adapter"
    stacks = ["instruct", f"instruct + {adapter}*0.5"]
    out = evaluate_stacks(stacks, tmp_path / "own", recipe=read_recipe(recipe))
    found = {m.label: m for m in map(read_measurement, (out / "stages").glob("measure-*"))}
    half = measured(finished, "residual-x0.5-s0")
    assert found[f"instruct + {adapter}*0.5"].rows == half.rows


def test_killed_anywhere_goes_on_to_the_same_result(recipe, finished, tmp_path):
    """kill -9 at several moments; finished stages are not done again; the rows are the same."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "kit",
        "run",
        str(recipe),
        "study.seeds=[0]",
        "--out",
        str(run),
    ]
    done: dict[str, int] = {}
    for stage in ("text", "cpt-base-s0", "measure-instruct"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        marker = run / "stages" / stage / "done.json"
        deadline = time.monotonic() + 240
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert marker.exists()
        for path in (run / "stages").glob("*/done.json"):
            stamp = path.stat().st_mtime_ns
            assert done.setdefault(str(path), stamp) == stamp, f"{path} was done again"
    last = subprocess.run(command, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    for path in done:
        assert os.stat(path).st_mtime_ns == done[path]
    for name in ("cpt-base-s0", "residual-x0.5-s0", "cpt-sft-s0"):
        assert measured(run, name).rows == measured(finished, name).rows
