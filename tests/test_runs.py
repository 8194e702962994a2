"""Run directories, rows and provenance."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from kit.errors import RunBusyError, RunDirectoryError, StorageError
from kit.runs.directory import RunDirectory, write_text
from kit.runs.provenance import fingerprint, provenance
from kit.runs.records import (
    ItemRow,
    Measurement,
    TaskInfo,
    append_jsonl,
    read_jsonl,
    read_measurement,
    write_measurement,
)


def opened(root, fingerprint="a" * 16):
    return RunDirectory(root).opened(fingerprint=fingerprint, recipe_yaml="name: x\n")


def test_a_stage_counts_when_its_marker_is_there(tmp_path):
    root = tmp_path / "run"
    with opened(root) as runs:
        with pytest.raises(ValueError, match="half way"), runs.stage("train", "f1") as folder:
            (folder / "weights").write_text("half")
            raise ValueError("half way")
        assert not runs.is_done("train", "f1")
    with opened(root) as runs:
        assert not list(runs.stages.iterdir()), "what a kill left is removed"
        with runs.stage("train", "f1", kind="TrainCpt") as folder:
            (folder / "weights").write_text("whole")
        assert runs.is_done("train", "f1")
        assert not runs.is_done("train", "f2"), "other inputs are another stage"
        with runs.stage("train", "f2") as folder:
            (folder / "weights").write_text("new")
        assert (runs.stage_folder("train") / "weights").read_text() == "new"


def test_another_recipe_is_refused_and_nothing_changes(tmp_path):
    root = tmp_path / "run"
    with opened(root):
        pass
    before = {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()}
    with pytest.raises(RunDirectoryError, match="another recipe"), opened(root, "b" * 16):
        pass
    assert {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()} == before


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose this")
    with pytest.raises(RunDirectoryError, match="thesis"), opened(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_processes_in_one_directory(tmp_path):
    root = tmp_path / "run"
    code = (
        "import sys\nfrom kit.runs.directory import RunDirectory\nfrom pathlib import Path\n"
        "with RunDirectory(Path(sys.argv[1])).opened(fingerprint='a'*16, recipe_yaml=''):\n"
        "    print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RunBusyError), opened(root):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with opened(root):
            pass  # a lock does not outlive its process
    finally:
        other.kill()
        other.communicate()


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path):
    path = tmp_path / "report.md"
    write_text(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(StorageError, match="no room"):
            write_text(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.md"]


def test_measurements_come_back_as_they_were(tmp_path):
    info = TaskInfo(
        task="ifeval", title="IFEval", role="instructions", metrics=("a", "b"), better="higher"
    )
    row = ItemRow(
        task="ifeval",
        item="1",
        status="truncated",
        scores={"a": (0.0, 1.0), "b": (2.0, 3.0)},
        prompt_hash="0" * 16,
        prediction='quotes " and\nlines',
    )
    measurement = Measurement(
        arm="residual",
        label="residual x0.5",
        seed=1,
        stack="instruct + cpt@base*0.5",
        settings={"cpt_weight": 0.5},
        tasks=(info,),
        rows=(row,),
    )
    write_measurement(tmp_path, measurement)
    assert read_measurement(tmp_path) == measurement
    about = json.loads((tmp_path / "measurement.json").read_text())
    about["schema_version"] = 99
    (tmp_path / "measurement.json").write_text(json.dumps(about))
    with pytest.raises(RunDirectoryError, match="schema_version 99"):
        read_measurement(tmp_path)


def test_a_cut_last_line_is_left_out_and_a_cut_middle_line_is_an_error(tmp_path):
    path = tmp_path / "eval.jsonl"
    append_jsonl(path, [{"a": 1}, {"a": 2}])
    with path.open("a") as file:
        file.write('{"a": ')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    with path.open("a") as file:
        file.write('\n{"a": 4}\n')
    with pytest.raises(RunDirectoryError, match="line 3"):
        read_jsonl(path)


def test_fingerprints():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_provenance_names_versions():
    about = provenance("CPU")
    assert about["versions"]["torch"] and about["hardware"] == "CPU"
