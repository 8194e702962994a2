"""IFEval scored through the kit gives the published responses' known scores."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
from conftest import pico_model, pico_tokenizer

from kit.errors import DataError
from kit.evaluation.engine import Engine
from kit.evaluation.ifeval import IFEval, spread
from kit.evaluation.measure import check_rows

KNOWN = {
    "prompt_strict": 0.770795,
    "instruction_strict": 0.836930,
    "prompt_loose": 0.794824,
    "instruction_loose": 0.854916,
}


@pytest.fixture(scope="module")
def sentence_data(real_data, tmp_path_factory) -> Path:
    """NLTK wants a plain copy that nobody else can write."""
    folder = tmp_path_factory.mktemp("nltk") / "nltk_data"
    shutil.copytree(real_data / "nltk_data", folder, copy_function=shutil.copyfile)
    for path in [folder.parent, folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture
def sentences(sentence_data, monkeypatch):
    monkeypatch.setenv("NLTK_DATA", str(sentence_data))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def prompts_file(real_data) -> Path:
    return real_data / "ifeval" / "input_data_20231215.jsonl"


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def gpt4(real_data) -> dict[str, str]:
    rows = read_jsonl(real_data / "ifeval" / "input_response_data_gpt4_20231107_145030.jsonl")
    return {row["prompt"]: row["response"] for row in rows}


def shares(verdicts) -> dict[str, float]:
    return {
        name: round(
            sum(v.scores[name][0] for v in verdicts) / sum(v.scores[name][1] for v in verdicts), 6
        )
        for name in KNOWN
    }


def test_gpt4_responses_score_as_published_in_any_order(sentences, prompts_file, gpt4):
    task = IFEval(data=prompts_file, prompts=None, max_new_tokens=8)
    docs = {str(row["key"]): row["prompt"] for row in read_jsonl(prompts_file)}
    replies = [gpt4[docs[item]] for item in task.item_ids]
    random.seed(11)
    before = random.getstate()
    verdicts = [task.judge(n, reply) for n, reply in enumerate(replies)]
    assert random.getstate() == before
    assert shares(verdicts) == KNOWN
    assert sum(v.scores["instruction_strict"][1] for v in verdicts) == 834
    for number in random.Random(0).sample(range(len(replies)), 60):
        assert task.judge(number, replies[number]) == verdicts[number]
    for key in ("1122", "1129"):
        number = task.item_ids.index(key)
        assert len({str(task.judge(number, replies[number])) for _ in range(5)}) == 1


def test_a_slice_is_asked_through_the_engine(sentences, prompts_file):
    task = IFEval(data=prompts_file, prompts=5, max_new_tokens=6)
    rows = read_jsonl(prompts_file)
    assert list(task.item_ids) == [str(rows[i]["key"]) for i in (0, 108, 216, 324, 432)]
    asked = Engine(
        pico_model(max_position_embeddings=4096),
        pico_tokenizer(chat=True),
        batch_size=2,
        max_length=64,
    )
    numbers = range(len(task.item_ids))
    measured = task.run(asked, numbers)
    check_rows(task, numbers, measured)
    assert task.run(asked, [3, 1]) == [measured[3], measured[1]]
    cost = task.cost(asked)
    assert cost.read == sum(row.prompt_tokens for row in measured) and cost.written == 5 * 6
    assert task.item_text(1) == rows[108]["prompt"]
    for row in measured:
        assert row.status in ("truncated", "wrong", "correct")
        assert row.scores["instruction_strict"][1] >= 1.0
    prompt = f"<|user|>{rows[0]['prompt']}<|end|><|assistant|>"
    assert measured[0].prompt_tokens == len(asked.tokenizer(prompt)["input_ids"])


def test_a_data_folder_has_the_prompts(sentences, prompts_file, tmp_path):
    with pytest.raises(DataError, match="not in the data folder") as caught:
        IFEval(data=None, data_dir=tmp_path, prompts=None, max_new_tokens=8)
    assert "ifeval/input_data_20231215.jsonl" in str(caught.value.fix)
    (tmp_path / "ifeval").mkdir()
    shutil.copyfile(prompts_file, tmp_path / "ifeval" / prompts_file.name)
    task = IFEval(data=None, data_dir=tmp_path, prompts=None, max_new_tokens=8)
    assert len(task.item_ids) == 541


def test_an_empty_reply_follows_nothing(sentences, prompts_file):
    task = IFEval(data=prompts_file, prompts=3, max_new_tokens=6)
    verdict = task.judge(0, "")
    assert not verdict.passed and not verdict.error
    assert all(numerator == 0 for numerator, _ in verdict.scores.values())


def test_a_checker_that_fails_is_an_error_of_its_item(sentences, prompts_file, tmp_path):
    row = {
        **read_jsonl(prompts_file)[0],
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"relation": "at least", "num_words": "many"}],
    }
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    task = IFEval(data=path, prompts=None, max_new_tokens=6)
    assert "TypeError" in task.judge(0, "Some words.").error
    model = pico_model(max_position_embeddings=4096)
    asked = Engine(model, pico_tokenizer(chat=True), batch_size=2, max_length=64)
    [measured] = task.run(asked, [0])
    assert measured.status == "error" and "checker" in measured.note
    check_rows(task, [0], [measured])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": None}, "has no key"),
        ({"instruction_id_list": ["no:such"], "kwargs": [{"a": 1}]}, "no:such"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "kwargs"),
    ],
)
def test_other_data_is_refused(sentences, prompts_file, tmp_path, change, message):
    row = {**read_jsonl(prompts_file)[1], **change}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        IFEval(data=path, prompts=None, max_new_tokens=6)


def test_a_key_twice_and_a_file_that_is_no_json_are_refused(sentences, prompts_file, tmp_path):
    path = tmp_path / "x.jsonl"
    row = json.dumps(read_jsonl(prompts_file)[1])
    path.write_text(f"{row}\n{row}\n", encoding="utf-8")
    with pytest.raises(DataError, match="an earlier row"):
        IFEval(data=path, prompts=None, max_new_tokens=6)
    path.write_text("no json\n", encoding="utf-8")
    with pytest.raises(DataError, match="could not be read"):
        IFEval(data=path, prompts=None, max_new_tokens=6)
    with pytest.raises(DataError, match="no such file"):
        IFEval(data=tmp_path / "none.jsonl", prompts=None, max_new_tokens=6)


@pytest.mark.parametrize("way", ["missing", "hard links", "group-writable"])
def test_sentence_data_that_cannot_be_read_says_what_to_do(
    way, sentence_data, tmp_path, monkeypatch
):
    if way != "missing" and sys.platform == "win32":
        pytest.skip("NLTK refuses these on POSIX only")
    folder = tmp_path / "nltk_data"
    if way == "missing":
        folder.mkdir()
    else:
        link = os.link if way == "hard links" else shutil.copyfile
        shutil.copytree(sentence_data, folder, copy_function=link)
    if way == "group-writable":
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o775)
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setenv("NLTK_DATA", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nltk.data.clear_cache()
    with pytest.raises(DataError, match="punkt_tab") as caught:
        IFEval(data=None, prompts=None, max_new_tokens=6)
    assert caught.value.fix and "NLTK_DATA" in caught.value.fix and "chmod" in caught.value.fix


@pytest.mark.parametrize(
    ("total", "count", "wanted"),
    [(5, None, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (10, 4, [0, 2, 5, 7]), (3, 1, [0])],
)
def test_spread(total, count, wanted):
    assert spread(total, count) == wanted
