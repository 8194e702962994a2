"""Reports: from the files that a run writes to tables, sentences, plots and a page."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from kit.errors import DataError, RunDirectoryError
from kit.reporting.collect import read_study, summarize
from kit.reporting.conclusions import compare, conclusions
from kit.reporting.lines import STATUSES, find_line
from kit.reporting.page import render_html, render_markdown, write_report
from kit.reporting.plots import energy, loss_curves, plots, tradeoff, weight_sweep
from kit.reporting.tables import (
    count_grid,
    difference_grid,
    grids,
    markdown_table,
    rich_table,
    score_grid,
    spread_grid,
)
from kit.runs.records import ItemRow, Measurement, TaskInfo, write_measurement

TEXT = TaskInfo(
    task="new_text",
    title="Held-out text",
    role="new_text",
    metrics=("bits_per_byte",),
    better="lower",
    unit="bits per byte",
)
GENERAL = replace(TEXT, task="general_text", title="General text", role="general_text")
IFEVAL = TaskInfo(
    task="ifeval",
    title="IFEval",
    role="instructions",
    metrics=("prompt_strict", "instruction_strict"),
    better="higher",
)
QUESTIONS = TaskInfo(
    task="questions/new",
    title="Questions",
    role="knowledge",
    metrics=("contains",),
    better="higher",
    chance=0.0,
)
TASKS = (TEXT, GENERAL, IFEVAL, QUESTIONS)
SIZES = {"new_text": 40, "general_text": 30, "ifeval": 60, "questions/new": 80}

# label: arm, settings, new text, general text, instructions, questions, trained
ARMS = {
    "instruct": ("instruct", {}, 1.00, 0.90, 0.62, 0.10, False),
    "base": ("base", {}, 0.98, 0.88, 0.20, 0.12, False),
    "cpt-instruct": ("cpt-instruct", {}, 0.80, 0.99, 0.30, 0.42, True),
    "cpt-base": ("cpt-base", {}, 0.78, 0.94, 0.15, 0.30, True),
    "residual x0.25": ("residual", {"cpt_weight": 0.25}, 0.95, 0.90, 0.61, 0.16, True),
    "residual x0.5": ("residual", {"cpt_weight": 0.5}, 0.90, 0.91, 0.60, 0.28, True),
    "residual x0.75": ("residual", {"cpt_weight": 0.75}, 0.85, 0.92, 0.55, 0.38, True),
    "residual x1": ("residual", {"cpt_weight": 1.0}, 0.82, 0.94, 0.48, 0.40, True),
    "residual x1.25": ("residual", {"cpt_weight": 1.25}, 0.84, 0.99, 0.36, 0.38, True),
    "residual-lowrank r32": ("residual-lowrank", {"rank": 32}, 0.81, 0.95, 0.33, 0.33, True),
    "residual-only r32": (
        "residual-only",
        {"rank": 32, "residual_weight": 1.0},
        0.99,
        0.89,
        0.40,
        0.11,
        False,
    ),
    "cpt-sft": ("cpt-sft", {}, 0.84, 0.97, 0.50, 0.36, True),
}


def measurement(label: str, *, seed: int | None = None, sizes=SIZES) -> Measurement:
    """Items with a common difficulty, so that pairs are correlated as real ones are."""
    arm, settings, new, general, follow, knows, trained = ARMS[label]
    hard = np.random.default_rng(7)
    luck = np.random.default_rng([sum(map(ord, label)), 0 if seed is None else seed + 1])
    rows: list[ItemRow] = []
    for info, level in zip(TASKS, (new, general, follow, knows), strict=True):
        for index in range(sizes[info.task]):
            difficulty, own = hard.random(), luck.random()
            length = float(hard.integers(300, 4000))
            item = f"{info.task}-{index}"
            common = {"task": info.task, "item": item, "prompt_hash": f"{index:016x}"}
            if info.unit == "bits per byte":
                bits = length * (level * (0.8 + 0.4 * difficulty) + 0.02 * own)
                scores = {"bits_per_byte": (bits, length)}
                rows.append(ItemRow(status="scored", scores=scores, **common))
                continue
            right = 0.7 * difficulty + 0.3 * own < level
            cut = not right and own > 0.9
            scores = {metric: (float(right), 1.0) for metric in info.metrics}
            if "instruction_strict" in scores:
                scores["instruction_strict"] = (1.0 + right, 2.0)
            rows.append(
                ItemRow(
                    status="correct" if right else "truncated" if cut else "wrong",
                    scores=scores,
                    prediction=f"{label} says {index}",
                    note="cut off after 512 tokens" if cut else "",
                    **common,
                )
            )
    return Measurement(
        arm=arm,
        label=label,
        seed=seed if trained else None,
        stack=f"stack of {label}",
        settings=settings,
        trained_tokens={"cpt": 1_000_000} if trained else {},
        decode="NF4, as trained",
        seconds=61.0,
        tasks=TASKS,
        rows=tuple(rows),
    )


def study_measurements(seeds=(0, 1, 2), labels=tuple(ARMS)) -> list[Measurement]:
    made = []
    for label in labels:
        for seed in seeds if ARMS[label][-1] else (None,):
            made.append(measurement(label, seed=seed))
    return made


def write_stage(run: Path, name: str) -> Path:
    folder = run / "stages" / name
    folder.mkdir(parents=True)
    (folder / "done.json").write_text('{"fingerprint": "f"}')
    return folder


def write_run(run: Path, measurements: list[Measurement], **about) -> Path:
    """A run directory as the writer leaves it."""
    run.mkdir()
    (run / "run.json").write_text(
        json.dumps(
            {
                "schema_version": 1,
                "fingerprint": "0123456789abcdef",
                "name": "smollm2-news",
                "started": "2026-01-05T10:00:00+00:00",
                "finished": "2026-01-05T13:10:00+00:00",
                "command": "kit run news --out runs/news",
                "hardware": "NVIDIA L4, 22.5 GiB, bfloat16",
                "versions": {"torch": "2.8.0", "peft": None},
                "decisions": ["bfloat16: the GPU computes it natively"],
                "seeds": [0, 1, 2],
                "control": "instruct",
                "arms": ["instruct", "cpt-instruct", "residual"],
                **about,
            }
        )
    )
    (run / "recipe.yaml").write_text(
        "name: smollm2-news\nmodels: {instruct: org/small-instruct, base: org/small, "
        "quantization: nf4}\ncorpus: {sources: [news.jsonl], heldout: {every: 10}}\n"
        "general: {sources: ['pydoc:topics']}\nlora: {rank: 32, alpha: 16.0, rslora: true, "
        "target_modules: all-linear}\ntrain: {tokens: 1000000, seq_len: 1024, "
        "tokens_per_step: 16384, learning_rate: 1e-4}\n"
        "study: {arms: [instruct, cpt-instruct, residual], control: instruct, seeds: [0, 1, 2],"
        " cpt_weights: [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]}\n"
    )
    for one in measurements:
        tail = "" if one.seed is None else f"-s{one.seed}"
        folder = write_stage(run, f"measure-{one.label.replace(' ', '-')}{tail}")
        write_measurement(folder, one)
    return run


def add_trainings(run: Path) -> None:
    rng = np.random.default_rng(3)
    for name in ("cpt-base-s0", "cpt-base-s1", "cpt-instruct-s0", "cpt-instruct-s1", "sft-s0"):
        folder = write_stage(run, name)
        start = 2.4 if "base" in name else 2.6
        rows = [
            {
                "step": n,
                "train/loss": start - 0.5 * (1 - math.exp(-n / 20)) + 0.05 * rng.standard_normal(),
                "train/tokens": 16_384 * n,
            }
            for n in range(1, 62)
        ]
        lines = "\n".join(json.dumps(row) for row in rows) + "\n"
        (folder / "metrics.jsonl").write_text(lines)
        result = {
            "loss_tokens": 1_000_000,
            "num_steps": 61,
            "first_loss": 2.4,
            "last_loss": 1.9,
            "seconds": 1234.0,
            "tokens_per_second": 812.4,
            "peak_bytes": 6_000_000_000,
            "trained_tokens": {"cpt": 1_000_000},
        }
        (folder / "training.json").write_text(json.dumps(result))
    (write_stage(run, "text") / "blocks").mkdir()
    ledger = {"documents": 200, "text_tokens": 1_200_345, "dropped_tokens": 0, "eos_id": 2}
    (run / "stages" / "text" / "blocks" / "ledger.json").write_text(json.dumps(ledger))
    kept = {"8": 0.17, "16": 0.24, "32": 0.33, "64": 0.44}
    report = {"kept": kept, "kept_of_linear": {r: v / 0.8 for r, v in kept.items()}}
    (write_stage(run, "residual") / "report.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def full_run(tmp_path_factory) -> Path:
    arms = list(dict.fromkeys(arm for arm, *_ in ARMS.values()))
    run = write_run(
        tmp_path_factory.mktemp("full") / "run",
        study_measurements(),
        arms=arms,
    )
    add_trainings(run)
    write_report(run)
    return run


@pytest.fixture(scope="module")
def study(full_run):
    return read_study(full_run)


# lines


def test_one_line_per_label_with_the_control_first(study):
    assert [line.label for line in study.lines][:3] == ["instruct", "base", "cpt-instruct"]
    weights = [n.settings["cpt_weight"] for n in study.lines if n.arm == "residual"]
    assert weights == sorted(weights) and len(study.lines) == len(ARMS)
    assert study.control == "instruct" and study.seeds == (0, 1, 2) and not study.missing
    control, naive = study.lines[0], study.lines[2]
    assert control.seeds == () and naive.seeds == (0, 1, 2)
    assert {s.verdict for s in control.scores.values()} == {"control"}
    assert all(s.difference is None for s in control.scores.values())


def test_seeds_are_averaged_item_by_item():
    made = study_measurements(labels=("instruct", "cpt-instruct"))
    line = find_line(summarize(made, "instruct"), "cpt-instruct")
    score = line.first("ifeval")
    rows = [{r.item: r for r in m.rows} for m in made if m.arm == "cpt-instruct"]
    mean = np.mean([table["ifeval-3"].scores["prompt_strict"][0] for table in rows])
    assert score.values["ifeval-3"] == pytest.approx((mean, 1.0))
    assert score.interval.n == 60
    assert score.interval.estimate == pytest.approx(np.mean(list(score.by_seed.values())))
    assert score.spread == (min(score.by_seed.values()), max(score.by_seed.values()))


def test_verdicts_need_interval_and_adjusted_p_value(study):
    for line in study.lines[1:]:
        for score in line.scores.values():
            assert score.p_adjusted >= score.difference.p_value
            apart = score.difference.low > 0 or score.difference.high < 0
            if score.verdict in ("better", "worse"):
                assert apart and score.p_adjusted < 0.05
                grew = score.difference.estimate > 0
                assert (score.verdict == "better") == (grew == (score.info.better == "higher"))
            else:
                assert not apart or score.p_adjusted >= 0.05
    assert find_line(study.lines, "cpt-instruct").first("ifeval").verdict == "worse"
    assert find_line(study.lines, "cpt-instruct").first("new_text").verdict == "better"
    assert find_line(study.lines, "residual x0.25").first("ifeval").verdict == "undecided"


def test_other_items_are_compared_on_the_shared_ones_and_it_is_said(tmp_path):
    small = {**SIZES, "ifeval": 25}
    made = [measurement("instruct"), measurement("base", sizes=small)]
    lines = summarize(made, "instruct")
    score = lines[1].first("ifeval")
    assert score.unshared == 35 and score.difference.n == 25 and score.interval.n == 25
    notes = read_study(write_run(tmp_path / "run", made)).notes
    assert any("base, IFEval: 35 items stand on one side only" in note for note in notes)
    assert "n=25..60" in score_grid(lines).headers[3][1]


def test_other_prompts_are_said(tmp_path):
    other = measurement("base")
    rows = tuple(replace(row, prompt_hash="f" * 16) for row in other.rows)
    made = [measurement("instruct"), replace(other, rows=rows)]
    notes = read_study(write_run(tmp_path / "run", made)).notes
    assert any("60 items were asked with another prompt" in note for note in notes)


def test_an_item_that_failed_once_is_left_out_of_every_seed(tmp_path):
    made = study_measurements(seeds=(0, 1), labels=("instruct", "cpt-instruct"))
    rows = list(made[1].rows)
    index = next(i for i, row in enumerate(rows) if row.task == "ifeval")
    rows[index] = replace(rows[index], status="error", scores={}, note="too long")
    made[1] = replace(made[1], rows=tuple(rows))
    study = read_study(write_run(tmp_path / "run", made))
    line = study.lines[1]
    assert line.first("ifeval").left_out == 1 and line.first("ifeval").interval.n == 59
    assert line.counts["ifeval"]["error"] == 1
    assert any("1 items could not be measured with every seed" in note for note in study.notes)
    assert "error" in [name for name, _ in count_grid(study.lines).headers]


def test_a_task_of_errors_alone_has_no_score():
    broken = [
        replace(row, status="error", scores={}, note="NaN") if row.task == "ifeval" else row
        for row in measurement("base").rows
    ]
    lines = summarize(
        [measurement("instruct"), replace(measurement("base"), rows=tuple(broken))], "instruct"
    )
    assert lines[1].first("ifeval") is None and lines[1].counts["ifeval"] == {"error": 60}
    assert difference_grid(lines).rows[0][3].text == "-"


def test_the_same_thing_twice_is_an_error():
    with pytest.raises(DataError, match="measured twice"):
        summarize([measurement("base"), measurement("base")], None)
    once = measurement("base")
    with pytest.raises(DataError, match="stands twice"):
        summarize([replace(once, rows=(*once.rows, once.rows[0]))], None)


def test_the_same_stack_differs_by_nothing():
    made = [measurement("instruct"), replace(measurement("instruct"), label="again")]
    line = summarize(made, "instruct")[1]
    assert line.first("new_text").verdict == "identical"
    share = line.first("ifeval")
    assert share.verdict == "undecided" and share.difference.low < 0 < share.difference.high


def test_many_truncated_replies_are_said(tmp_path):
    one = measurement("base")
    rows = tuple(replace(r, status="truncated") if r.status == "wrong" else r for r in one.rows)
    study = read_study(write_run(tmp_path / "run", [replace(one, rows=rows)]))
    assert any("IFEval: up to 92 % of the replies were cut off" in note for note in study.notes)


def test_counts_add_up(study):
    for line in study.lines:
        for info in TASKS:
            rows = max(1, len(line.seeds)) * SIZES[info.task]
            assert sum(line.counts[info.task].values()) == rows
            assert set(line.counts[info.task]) <= set(STATUSES)


# run directories


def test_an_unfinished_run_gives_a_partial_report(tmp_path):
    labels = ("cpt-instruct", "residual x0.5")
    run = write_run(tmp_path / "run", study_measurements((0, 1), labels), finished=None)
    (run / "stages" / ".measure-instruct.part").mkdir()
    unmarked = run / "stages" / "measure-base"
    unmarked.mkdir()
    write_measurement(unmarked, measurement("base"))
    study = read_study(run)
    said = " ".join(study.missing)
    assert [line.label for line in study.lines] == list(labels)
    assert "not measured yet: instruct" in said and "so nothing is compared" in said
    assert "cpt-instruct is not measured yet with seed 2" in said
    assert "residual is not measured yet with cpt_weight 0.25, 0.75, 1.0, 1.25" in said
    assert "begun and not finished: measure-instruct" in said
    paths = write_report(run)
    assert "the report is partial" in paths.markdown.read_text("utf-8")
    assert "no control to compare with" in paths.html.read_text("utf-8")


def test_stacks_that_a_user_measured_lack_no_arm(tmp_path):
    """`kit evaluate` keeps a recipe beside the rows, but ran none of its arms."""
    run = write_run(tmp_path / "run", [measurement("instruct")], arms=None, seeds=[], finished=None)
    study = read_study(run)
    assert study.missing == () and study.control == "instruct"
    text = render_markdown(study)
    assert "partial" not in text and "- budget" not in text and "- instruct model" in text


def test_an_empty_run_has_a_report_too(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"fingerprint": "x"}')
    text = write_report(run).markdown.read_text("utf-8")
    assert text.startswith("# run\n") and "Nothing is measured yet" in text


@pytest.mark.parametrize("content", [None, "{}", "[1]", "{"])
def test_what_is_no_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=r"no run directory|no JSON"):
        read_study(tmp_path)


def test_broken_files_are_named(tmp_path):
    run = write_run(tmp_path / "run", [measurement("instruct")])
    (run / "recipe.yaml").write_text("a: [")
    with pytest.raises(RunDirectoryError, match=r"recipe\.yaml"):
        read_study(run)
    (run / "recipe.yaml").unlink()
    assert read_study(run).recipe == {}
    about = run / "stages" / "measure-instruct" / "measurement.json"
    about.write_text(about.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(RunDirectoryError, match="schema_version 9"):
        read_study(run)


# sentences


def test_conclusions_name_the_trade_and_the_weight(study):
    said = conclusions(study)
    start = "residual x1 keeps more instruction following than cpt-instruct and learns less:"
    assert said[0].startswith(start)
    sweep = next(line for line in said if line.startswith("Weights of the residual"))
    assert "strongest without a decided loss of it is residual x0.5" in sweep
    assert any(line.startswith("cpt-instruct against instruct: better in Held") for line in said)
    assert any("means over 3 seeds" in line for line in said)


def swapped(label: str, like: str, seeds=(0, 1, 2)) -> list[Measurement]:
    """Measurements under one label with the outcomes of another."""
    arm, settings, *_ = ARMS[label]
    return [
        replace(measurement(like, seed=seed), label=label, arm=arm, settings=settings, seed=seed)
        for seed in seeds
    ]


def read(tmp_path, made):
    return read_study(write_run(tmp_path / "run", made))


def test_a_residual_that_loses_is_said_to_lose(tmp_path):
    made = [
        measurement("instruct"),
        *swapped("cpt-instruct", "residual x1"),
        *swapped("residual x1", "residual x1.25"),
    ]
    assert conclusions(read(tmp_path, made))[0].startswith("residual x1 loses to cpt-instruct:")


def test_a_residual_that_wins_is_said_to_win(tmp_path):
    made = [
        measurement("instruct"),
        *swapped("cpt-instruct", "residual x1.25"),
        *swapped("residual x1", "residual x1"),
    ]
    assert conclusions(read(tmp_path, made))[0].startswith("residual x1 beats cpt-instruct:")


def test_nothing_is_claimed_where_intervals_hold_zero(tmp_path):
    made = [
        measurement("instruct"),
        *swapped("cpt-instruct", "residual x1", seeds=(0,)),
        *swapped("residual x1", "residual x1", seeds=(0,)),
    ]
    said = conclusions(read(tmp_path, made))
    assert said[0].startswith("These items do not tell residual x1 and cpt-instruct apart:")
    assert "better" not in said[0] and "worse" not in said[0]
    assert any("one seed per training" in line for line in said)


def test_comparisons_are_holm_adjusted_over_their_lines(study):
    naive = find_line(study.lines, "cpt-instruct")
    rivals = [line for line in study.lines if line.arm == "residual"]
    made = compare(rivals, naive)
    assert len(made) == len(rivals) * len(TASKS)
    assert all(c.other is naive and c.line is not naive for c in made)


# tables


@pytest.mark.parametrize("width", [80, 100, 140])
def test_console_tables_fit(study, width):
    console = Console(width=width, record=True, file=io.StringIO())
    for grid in grids(study.lines):
        console.print(rich_table(grid))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    if width >= 100:
        assert any("[0.959, 1.034]" in line for line in lines)


def test_labels_are_never_markup(study):
    line = replace(study.lines[0], label="[bold]x[/bold] [/]\x1b[31m")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(rich_table(score_grid([line])))
    text = console.export_text()
    assert "[bold]x[/bold]" in text and "\x1b" not in text
    assert "\\[bold\\]x" in markdown_table(score_grid([line]))


def test_markdown_tables_are_whole(study):
    for grid in grids(study.lines):
        rows = [x for x in markdown_table(grid).splitlines() if x.startswith("|")]
        assert len(rows) == len(grid.rows) + 2
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(grid.headers) + 1}


def test_arrows_sizes_and_spread_are_shown(study):
    heads = dict(score_grid(study.lines).headers)
    assert heads["Held-out text"] == "bits/byte \u2193 n=40"
    assert heads["Questions"].startswith("\u2191 n=80, chance 0 %")
    assert len(spread_grid(study.lines).rows) == 9
    assert "Spread over seeds" not in [g.title for g in grids(summarize([measurement("base")], ""))]


# plots


def test_plots_are_sound_xml_with_text_and_unique_ids(study):
    made = plots(study)
    assert [p.group for p in made] == ["tradeoff"] * 2 + ["sweep"] * 4 + ["training"] * 2
    ids: list[str] = []
    for plot in made:
        root = ElementTree.fromstring(plot.svg)
        texts = ["".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text")]
        assert len(texts) > 8 and plot.text and plot.title
        assert root.attrib["role"] == "img"
        own = re.findall(r'\bid="([^"]+)"', plot.svg)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', plot.svg)) <= set(own)
        ids += own
    assert len(ids) == len(set(ids))
    labels = made[0].svg
    for label in ("instruct", "cpt-instruct", "residual x1", "x0.5", "residual-lowrank r32"):
        assert f">{label}</text>" in labels


def test_plots_are_the_same_every_time(study):
    first = tradeoff(study.lines, x=TEXT, y=IFEVAL)
    assert first == tradeoff(study.lines, x=TEXT, y=IFEVAL)
    assert not re.search(r"20\d\d-\d\d-\d\dT", first.svg)


def test_labels_keep_clear_of_each_other_and_inside_the_frame(study):
    """Boxes from the drawing itself: height 8.5 points, width as narrow fonts have it."""
    root = ElementTree.fromstring(tradeoff(study.lines, x=QUESTIONS, y=IFEVAL).svg)
    labels = {line.label for line in study.lines} | {"x0.25", "x0.5", "x0.75", "x1.25"}
    width = float(root.attrib["viewBox"].split()[2])
    boxes = []
    for element in root.iter("{http://www.w3.org/2000/svg}text"):
        text = "".join(element.itertext())
        if text not in labels:
            continue
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        wide = 4.2 * len(text)
        anchor = re.search(r"text-anchor: (\w+)", element.attrib["style"])
        side = anchor[1] if anchor else "start"
        left = x - {"start": 0, "middle": wide / 2, "end": wide}[side]
        assert left >= 0 and left + wide <= width
        boxes.append((left, y - 7, left + wide, y, text))
    assert len(boxes) == len(study.lines)
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, (a, b)


def test_points_at_one_place_share_a_label():
    made = [measurement("instruct"), replace(measurement("instruct"), label="again")]
    plot = tradeoff(summarize(made, "instruct"), x=TEXT, y=IFEVAL)
    assert ">instruct = again</text>" in plot.svg


def test_names_that_look_like_mathematics_or_markup_are_drawn_as_they_are():
    odd = replace(IFEVAL, title="$x_{1$ <b>&")
    made = []
    for label in ("instruct", "base"):
        one = measurement(label)
        made.append(replace(one, label=f"{label} $\\frac<", tasks=(TEXT, GENERAL, odd, QUESTIONS)))
    plot = tradeoff(summarize(made, None), x=TEXT, y=odd)
    text = "".join(ElementTree.fromstring(plot.svg).itertext())
    assert "$x_{1$ <b>&" in text and "base $\\frac<" in text


def test_names_in_other_scripts_are_drawn_and_kept_apart():
    first = replace(IFEVAL, task="\u554f", title="\u554f\u984c \U0001f600")
    second = replace(first, task="\u7b54")
    made = []
    for label in ("instruct", "base"):
        one = measurement(label)
        rows = [row for row in one.rows if row.task in ("new_text", "ifeval")]
        rows += [
            replace(r, task=i.task) for r in rows for i in (first, second) if r.task != TEXT.task
        ]
        made.append(replace(one, tasks=(TEXT, first, second), rows=tuple(rows)))
    lines = summarize(made, None)
    one, two = (tradeoff(lines, x=TEXT, y=info) for info in (first, second))
    assert "\u554f\u984c" in one.svg
    assert tradeoff(lines, x=first, y=TEXT).name != tradeoff(lines, x=second, y=TEXT).name
    assert one.text == two.text


def test_a_notebooks_own_style_is_left_alone(study):
    import matplotlib

    plain = tradeoff(study.lines, x=TEXT, y=IFEVAL)
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        assert tradeoff(study.lines, x=TEXT, y=IFEVAL) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_plots_without_data_are_left_out(study):
    assert weight_sweep(study.lines[:1], TEXT) is None
    assert tradeoff(study.lines[:1], x=TEXT, y=IFEVAL) is None
    assert loss_curves([]) is None and energy({}) is None and energy({"residual": {}}) is None


def test_the_sweep_starts_at_the_plain_instruct_model(study):
    plot = weight_sweep(study.lines, IFEVAL)
    assert "; 0: 70; 0.25:" in plot.text


# page


HOSTILE = "<script>alert(1)</script></pre></details>&amp; `|` SURROGATE \x00\x1b[31m end"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    one = measurement("instruct")
    rows = tuple(
        replace(row, prediction=HOSTILE, note=HOSTILE) if row.task == "ifeval" else row
        for row in one.rows
    )
    odd = replace(IFEVAL, title="<img src=x onerror=alert(2)>")
    made = [
        replace(one, rows=rows, tasks=(TEXT, GENERAL, odd, QUESTIONS), stack="<b>stack"),
        measurement("base"),
    ]
    run = write_run(
        tmp_path_factory.mktemp("hostile") / "run",
        made,
        name="<h1>evil & name",
        decisions=["<u>decided</u> | [a](javascript:x)"],
        command='kit run "<x>"',
    )
    # A lone surrogate, which no UTF-8 file can hold but an escape in JSON can.
    stored = run / "stages" / "measure-instruct" / "eval.jsonl"
    stored.write_text(stored.read_text("utf-8").replace("SURROGATE", "\\ud800"), "utf-8")
    return write_report(run)


def test_nothing_from_the_run_is_markup(hostile):
    page = hostile.html.read_text("utf-8")
    for bad in ("<script", "<img", "<h1>evil", "<b>stack", "<u>", "\x00", "\x1b"):
        assert bad not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "&lt;h1&gt;evil &amp; name" in page
    text = hostile.markdown.read_text("utf-8")
    for bad in ("<img", "<h1>", "<u>", "[a](javascript"):
        assert bad not in text


def test_the_page_is_self_contained_and_well_formed(full_run):
    from html.parser import HTMLParser

    page = (full_run / "report.html").read_text("utf-8")
    assert "<script" not in page and "default-src 'none'" in page
    outside = set(re.findall(r"https?://[^\s\"'<>)]+", page))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))

    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open_tags: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br", "hr", "img", "link"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    parser = Balance()
    parser.feed(page)
    assert parser.open_tags == []
    for part in ("prefers-color-scheme: dark", 'name="viewport"', "<title>smollm2-news"):
        assert part in page


def test_the_page_says_what_it_should(full_run):
    page = (full_run / "report.html").read_text("utf-8")
    for part in (
        "finished 2026-01-05",
        "org/small-instruct",
        "rsLoRA, rank 32",
        "Differences to instruct",
        "Spread over seeds",
        "1,200,345",
        "bfloat16: the GPU computes it natively",
        "kit run news --out runs/news",
        "0123456789abcdef",
        "torch 2.8.0",
        "NVIDIA L4",
        "item ifeval-12",
        "prompt 000000000000000c",
        "residual x0.5 says 12",
    ):
        assert part in page, part
    assert "peft None" not in page


def test_reports_are_written_whole_and_the_same_again(full_run, study):
    files = sorted(path.name for path in full_run.iterdir())
    assert files == ["recipe.yaml", "report.html", "report.md", "run.json", "stages"]
    assert render_markdown(study) == (full_run / "report.md").read_text("utf-8")
    assert render_html(study) == (full_run / "report.html").read_text("utf-8")


def test_reporting_needs_no_torch():
    code = (
        "import sys, kit.stats, kit.reporting.page, kit.reporting.tables; "
        "bad = {'torch', 'transformers', 'peft', 'datasets', 'matplotlib', 'rich'}; "
        "sys.exit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
