"""Benchmarks from a folder: lm-eval's own definitions over other rows."""

from __future__ import annotations

import json

import pytest
from conftest import pico_model, pico_tokenizer
from lm_eval_tools import write_jsonl

from kit.errors import DataError, RecipeError
from kit.evaluation.benchmarks import load_benchmark
from kit.evaluation.engine import Engine
from kit.evaluation.lm_eval import KitLM

ARC = {"query": "Question: What is hot?", "choices": ["ice", "fire", "snow"], "gold": 1}
ARC_HUB = {
    "id": "1",
    "question": "What is hot?",
    "choices": {"text": ["ice", "fire", "snow"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
SWAG = {"query": "Baking: A man stirs. He", "choices": ["eats.", "runs."], "gold": 0}
SWAG_HUB = {
    "activity_label": "Baking",
    "ctx_a": "A man stirs.",
    "ctx_b": "he",
    "endings": ["eats.", "runs."],
    "label": "0",
}
GRANDE = {
    "context_options": ["Ann thanked Eve because Ann", "Ann thanked Eve because Eve"],
    "continuation": "had helped.",
    "gold": 1,
}
GRANDE_HUB = {
    "sentence": "Ann thanked Eve because _ had helped.",
    "option1": "Ann",
    "option2": "Eve",
    "answer": "2",
}
MMLU = {"question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1}


@pytest.fixture(scope="module")
def engine():
    model = pico_model(max_position_embeddings=8192)
    return Engine(model, pico_tokenizer(chat=True), batch_size=4, max_length=256)


def requests(name, folder, engine, **options) -> list[list[tuple]]:
    """What a benchmark asks, item by item."""
    task = load_benchmark(name, data_dir=folder, **options)
    task._prepare(KitLM(engine))
    return [[instance.args for instance in group] for group in task._instances]


@pytest.mark.parametrize(
    ("name", "file", "plain", "hub", "wanted"),
    [
        (
            "arc_easy",
            "arc/arc_easy.jsonl",
            ARC,
            ARC_HUB,
            [("Question: What is hot?\nAnswer:", f" {c}") for c in ("ice", "fire", "snow")],
        ),
        (
            "hellaswag",
            "hellaswag/validation.jsonl",
            SWAG,
            SWAG_HUB,
            [("Baking: A man stirs. He", f" {c}") for c in ("eats.", "runs.")],
        ),
        (
            "winogrande",
            "winogrande/winogrande.jsonl",
            GRANDE,
            GRANDE_HUB,
            [(f"Ann thanked Eve because {who}", " had helped.") for who in ("Ann", "Eve")],
        ),
    ],
)
def test_plain_rows_ask_what_the_hubs_ask(tmp_path, engine, name, file, plain, hub, wanted):
    for kind, row in (("plain", plain), ("hub", hub)):
        write_jsonl(tmp_path / kind / file, [row])
        assert requests(name, tmp_path / kind, engine) == [wanted]
        rows = load_benchmark(name, data_dir=tmp_path / kind).run(engine, [0])
        assert rows[0].status in ("correct", "wrong")
    texts = [load_benchmark(name, data_dir=tmp_path / k).item_text(0) for k in ("plain", "hub")]
    assert texts[0] == texts[1]
    assert ("fire" in texts[0]) or ("eats." in texts[0]) or ("because Eve had" in texts[0])


def test_mmlu_is_read_by_subject_with_examples_from_dev(tmp_path, engine):
    subjects = [{"subject": name, **MMLU} for name in ("anatomy", "virology")]
    write_jsonl(tmp_path / "mmlu/test.jsonl", subjects)
    shown = [{**row, "question": f"{n} + {n}?"} for row in subjects for n in range(5)]
    write_jsonl(tmp_path / "mmlu/dev.jsonl", shown)
    [asked] = requests("mmlu_anatomy", tmp_path, engine, num_fewshot=5)
    context = asked[0][0]
    assert context.startswith("The following are multiple choice questions (with answers) about a")
    assert [f"{n} + {n}?\nA. 1" in context for n in range(6)] == [True] * 5 + [False]
    assert [continuation for _, continuation in asked] == [" A", " B", " C", " D"]
    with pytest.raises(DataError, match="no row of the subject astronomy"):
        load_benchmark("mmlu_astronomy", data_dir=tmp_path)
    with pytest.raises(RecipeError, match="no local form of mmlu_anatomy_generative"):
        load_benchmark("mmlu_anatomy_generative", data_dir=tmp_path)


def test_examples_come_from_the_train_file_or_from_other_rows(tmp_path, engine):
    asked = [{"question": f"Q{n}?", "answer": f"so #### {n}"} for n in range(8)]
    write_jsonl(tmp_path / "gsm8k/test.jsonl", asked)
    notes: list[str] = []
    found = requests("gsm8k", tmp_path, engine, decide=notes.append, max_new_tokens=9)
    assert len(notes) == 1 and "taken from the rows that are asked" in notes[0]
    for n, [(context, settings)] in enumerate(found):
        assert context.endswith(f"Question: Q{n}?\nAnswer:") and f"#### {n}" not in context
        assert context.count("####") == 5 and settings["max_gen_toks"] == 9
    write_jsonl(tmp_path / "gsm8k/train.jsonl", [{**r, "question": "Train?"} for r in asked])
    notes.clear()
    found = requests("gsm8k", tmp_path, engine, decide=notes.append)
    assert not notes and all(context.count("Train?") == 5 for [(context, _)] in found)
    first = requests("gsm8k", tmp_path, engine, fewshot="first_n")
    starts = {context.rpartition("Question:")[0] for [(context, _)] in first}
    assert len(starts) == 1 and "#### 4" in starts.pop()


def test_rows_that_were_edited_are_read_again(tmp_path, engine):
    path = write_jsonl(tmp_path / "arc/arc_easy.jsonl", [ARC])
    assert len(load_benchmark("arc_easy", data_dir=tmp_path).item_ids) == 1
    write_jsonl(path, [ARC, {**ARC, "query": "Question: What is cold?"}])
    assert len(load_benchmark("arc_easy", data_dir=tmp_path).item_ids) == 2


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("arc_easy", None, "the data of arc_easy is not in the data folder"),
        ("arc_easy", [{"query": "Question: x", "choices": ["a"], "gold": 4}], "other columns"),
        ("arc_easy", [], "there is no row"),
        ("gsm8k", [{"question": "x"}], "other columns"),
        ("hellaswag", [{"query": "x", "choices": ["a"]}], "other columns"),
        ("winogrande", [{"sentence": "x"}], "other columns"),
        ("mmlu_anatomy", None, "the data of mmlu_anatomy is not in the data folder"),
    ],
)
def test_files_that_cannot_be_used_say_what_is_wanted(tmp_path, name, rows, message):
    files = {
        "arc_easy": "arc/arc_easy.jsonl",
        "gsm8k": "gsm8k/test.jsonl",
        "hellaswag": "hellaswag/validation.jsonl",
        "winogrande": "winogrande/winogrande.jsonl",
        "mmlu_anatomy": "mmlu/test.jsonl",
    }
    if rows is not None:
        write_jsonl(tmp_path / files[name], rows)
    with pytest.raises(DataError, match=message) as caught:
        load_benchmark(name, data_dir=tmp_path)
    assert rows is not None or files[name] in str(caught.value.fix)


def test_a_broken_line_is_named(tmp_path):
    path = write_jsonl(tmp_path / "arc/arc_easy.jsonl", [ARC])
    path.write_text(path.read_text() + "{\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2 is no JSON"):
        load_benchmark("arc_easy", data_dir=tmp_path)


def test_the_real_files_serve_every_benchmark(real_data, engine):
    counts = {
        "arc_easy": 2376,
        "arc_challenge": 1172,
        "hellaswag": 10042,
        "winogrande": 1267,
        "gsm8k": 1319,
        "mmlu": 14042,
    }
    for name, count in counts.items():
        task = load_benchmark(name, data_dir=real_data)
        assert len(task.item_ids) == len(set(task.item_ids)) == count
        assert all(task.item_text(n) for n in range(0, count, 97))
    part = load_benchmark("mmlu", data_dir=real_data, limit=228, num_fewshot=5)
    leaves = [item.partition("/")[0] for item in part.item_ids]
    assert len(set(leaves)) == 57 and all(leaves.count(leaf) == 4 for leaf in leaves)
    assert part.info.title == "MMLU, 5-shot" and part.info.chance == 0.25


def test_real_winogrande_rows_are_put_together_again(real_data):
    lines = (real_data / "winogrande" / "winogrande.jsonl").read_text("utf-8").splitlines()
    task = load_benchmark("winogrande", data_dir=real_data)
    theirs = task._tasks["winogrande"]
    for line, (_, doc) in zip(lines, task._docs, strict=True):
        row = json.loads(line)
        assert theirs.doc_to_choice(doc) == row["context_options"]
        assert theirs.doc_to_target(doc) == row["continuation"].strip()
        assert theirs.doc_to_text(doc) == row["gold"]
