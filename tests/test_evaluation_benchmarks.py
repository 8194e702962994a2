"""lm-eval's tasks, measured item by item, have the means that lm-eval itself prints."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from conftest import pico_tokenizer
from lm_eval_tools import evaluated, lively_model, make_tasks, numbers_of

from kit.errors import DataError, RecipeError
from kit.evaluation.benchmarks import load_benchmark
from kit.evaluation.engine import Engine
from kit.evaluation.harness import load_tasks
from kit.evaluation.harness_task import Benchmark, even_shares
from kit.evaluation.lm_eval import KitLM
from kit.evaluation.measure import check_rows


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def engine():
    model = lively_model(max_position_embeddings=2048)
    return Engine(model, pico_tokenizer(chat=True), batch_size=3, max_length=256)


class Told:
    items = 0

    def __call__(self, done: int, note: str = "") -> None:
        self.items += done


def benchmark(tasks, name, *, limit=None, chat=False, **options) -> Benchmark:
    return Benchmark(name, load_tasks(name, include=tasks, **options), limit=limit, chat=chat)


def measured(task, engine):
    numbers = range(len(task.item_ids))
    rows = task.run(engine, numbers)
    check_rows(task, numbers, rows)
    return rows


def means(rows) -> dict[str, float]:
    return {
        name: sum(r.scores[name][0] for r in rows) / sum(r.scores[name][1] for r in rows)
        for name in rows[0].scores
    }


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("name", ["pico_choose", "pico_reply", "pico_group"])
def test_means_are_lm_evals(tasks, engine, name, chat):
    task = benchmark(tasks, name, chat=chat, num_fewshot=2)
    ours = means(measured(task, engine))
    options = {"num_fewshot": 2, "apply_chat_template": chat}
    theirs = numbers_of(evaluated(KitLM(engine), tasks, [name], **options), name)
    named = {key if key in ours else key.partition(",")[0]: v for key, v in theirs.items()}
    assert {key: ours[key] for key in named} == pytest.approx(named)
    assert set(ours) == set(task.info.metrics)
    assert next(iter(ours)) == ("exact_match,strict" if name == "pico_reply" else "acc")
    assert task.info.title == f"{name}, 2-shot" + (", chat" if chat else "")


def test_bits_per_byte_are_lm_evals(tasks):
    small = lively_model(max_position_embeddings=64)
    asked = Engine(small, pico_tokenizer(chat=True), batch_size=3, max_length=64)
    task = benchmark(tasks, "pico_read")
    rows = measured(task, asked)
    theirs = numbers_of(evaluated(KitLM(asked), tasks, ["pico_read"]), "pico_read")
    assert means(rows) == pytest.approx({"bits_per_byte": theirs["bits_per_byte,none"]})
    assert (task.info.unit, task.info.better, task.info.chance) == ("bits per byte", "lower", None)
    assert {row.status for row in rows} == {"scored"}
    assert "byte_perplexity, word_perplexity" in task.notes[0]


def test_a_part_is_asked_as_lm_eval_asks_the_same_part(tasks, engine):
    task = benchmark(tasks, "pico_choose", limit=3, num_fewshot=2)
    assert task.item_ids == ("pico_choose/0", "pico_choose/2", "pico_choose/5")
    samples = {"pico_choose": [0, 2, 5]}
    theirs = evaluated(KitLM(engine), tasks, ["pico_choose"], num_fewshot=2, samples=samples)
    contexts = [sample["arguments"][0][0] for sample in theirs["samples"]["pico_choose"]]
    measured(task, engine)
    assert [group[0].args[0] for group in task._instances] == contexts
    assert len({context.split("Question")[1] for context in contexts}) > 1


def test_rows_do_not_depend_on_what_is_asked_beside_them(tasks, engine):
    for name in ("pico_group", "pico_reply"):
        task = benchmark(tasks, name, num_fewshot=1)
        rows = measured(task, engine)
        told = Told()
        again = task.run(engine, [5, 2], advance=told)
        assert again == [rows[5], rows[2]] and told.items == 2
        fresh = benchmark(tasks, name, num_fewshot=1)
        assert fresh.run(engine, [5, 2]) == again


def test_requests_are_built_once_for_a_tokenizer(tasks, engine):
    plain, chat = (benchmark(tasks, "pico_choose", chat=c) for c in (False, True))
    other = Engine(lively_model(seed=1), engine.tokenizer, batch_size=2, max_length=64)
    foreign = Engine(other.model, pico_tokenizer(chat=True), batch_size=2, max_length=64)
    foreign.tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    for task in (plain, chat):
        first = measured(task, engine)
        built = task._instances
        second = measured(task, other)
        assert task._instances is built
        assert [r.prompt_hash for r in first] == [r.prompt_hash for r in second]
        assert [r.scores for r in first] != [r.scores for r in second]
        assert (task.run(foreign, [0])[0].prompt_hash == first[0].prompt_hash) is (task is plain)


def test_status_counts_what_was_cut_and_what_failed(tasks, engine):
    loaded = load_tasks("pico_reply", include=tasks)
    loaded.tasks["pico_reply"].set_config("generation_kwargs", {"max_gen_toks": 2}, update=True)
    replies = Benchmark("pico_reply", loaded, limit=None, chat=False)
    cut = [row for row in measured(replies, engine) if row.status == "truncated"]
    assert cut and all("cut off after 2 tokens" in row.note for row in cut)
    small = Engine(
        lively_model(max_position_embeddings=64), engine.tokenizer, batch_size=3, max_length=64
    )
    shots = benchmark(tasks, "pico_choose", num_fewshot=2)
    rows = measured(shots, small)
    assert {row.status for row in rows} == {"truncated"} and "beginning" in rows[0].note
    assert all(row.scores for row in rows)
    with torch.no_grad():
        small.model.model.norm.weight.fill_(math.nan)
    for name in ("pico_choose", "pico_reply", "pico_read"):
        rows = measured(benchmark(tasks, name), small)
        assert {row.status for row in rows} == {"error"} and all(row.note for row in rows)


def test_what_an_item_shows(tasks, engine):
    task = benchmark(tasks, "pico_choose", num_fewshot=2)
    docs = [json.loads(line) for line in (tasks / "asked.jsonl").read_text().splitlines()]
    right = docs[1]["choices"][docs[1]["label"]]
    assert task.item_text(1) == f"Question: {docs[1]['question']}\nAnswer:\n{right}"
    assert task.info.chance == pytest.approx(
        sum(1 / len(doc["choices"]) for doc in docs) / len(docs)
    )
    rows = measured(task, engine)
    for row, doc in zip(rows, docs, strict=True):
        is_right = row.prediction == doc["choices"][doc["label"]]
        assert (row.status == "correct") is is_right is (row.scores["acc"][0] == 1)
    cost = task.cost(engine)
    assert cost.read == sum(row.prompt_tokens + row.output_tokens for row in rows)
    replies = benchmark(tasks, "pico_reply")
    assert replies.cost(engine).written == 12 * len(docs)
    assert (task.chunk, replies.chunk, replies.info.chance) == (512, 128, None)


def test_the_process_keeps_its_own_chance(tasks, engine):
    random.seed(3)
    before = random.getstate()
    measured(benchmark(tasks, "pico_choose", num_fewshot=2), engine)
    assert random.getstate() == before


def test_first_n_shows_every_question_the_same_examples(tasks, engine):
    task = benchmark(tasks, "pico_choose", num_fewshot=2, fewshot="first_n")
    measured(task, engine)
    contexts = [group[0].args[0] for group in task._instances]
    starts = {"\n\n".join(context.split("\n\n")[:2]) for context in contexts}
    assert len(starts) == 1 and len(set(contexts)) == len(contexts)


def test_settings_that_cannot_be_meant_are_refused(tasks, engine):
    with pytest.raises(DataError, match="4 rows to take 5 examples"):
        benchmark(tasks, "pico_choose", num_fewshot=5)
    path = tasks / "pico_choose.yaml"
    own = json.loads(path.read_text())
    other = tasks.parent / "changed"
    other.mkdir(exist_ok=True)

    def changed(**changes) -> None:
        (other / "changed.yaml").write_text(json.dumps({**own, "task": "changed", **changes}))
        from kit.evaluation.harness import _indexed

        _indexed.cache_clear()

    changed(num_fewshot=0)
    with pytest.raises(RecipeError, match="fixes this task at 0"):
        benchmark(other, "changed", num_fewshot=2)
    changed(metric_list=[{"metric": "f1"}, {"metric": "mcc"}])
    with pytest.raises(RecipeError, match="no metric of changed is a mean") as caught:
        benchmark(other, "changed")
    assert "KitLM" in str(caught.value.fix)
    changed(metric_list=[{"metric": "f1"}, {"metric": "acc"}])
    assert benchmark(other, "changed").info.metrics == ("acc",)
    assert "f1" in benchmark(other, "changed").notes[0]
    changed(unsafe_code=True)
    with pytest.raises(RecipeError, match="runs code"):
        benchmark(other, "changed")


@pytest.mark.parametrize(
    ("sizes", "limit", "wanted"),
    [
        ([5, 5], None, [5, 5]),
        ([5, 5], 99, [5, 5]),
        ([9, 9, 9], 6, [2, 2, 2]),
        ([1, 9, 9], 9, [1, 4, 4]),
        ([9, 9, 9, 9], 2, [1, 0, 1, 0]),
        ([9, 9, 9], 7, [3, 2, 2]),
        ([2, 100], 50, [2, 48]),
    ],
)
def test_even_shares(sizes, limit, wanted):
    assert even_shares(sizes, limit) == wanted


def test_an_unknown_name_gets_the_nearest_ones():
    with pytest.raises(RecipeError, match="arc_eazy") as caught:
        load_benchmark("arc_eazy")
    assert "arc_easy" in str(caught.value.fix)


def test_data_that_cannot_be_fetched_names_the_file():
    # The tests run with the hub switched off, and nothing of this is in its cache.
    with pytest.raises(DataError, match="the data of hellaswag could not be read") as caught:
        load_benchmark("hellaswag")
    assert "hellaswag/validation.jsonl" in str(caught.value.fix)


def test_ifeval_is_the_kits_own(tmp_path):
    with pytest.raises(RecipeError, match="without examples"):
        load_benchmark("ifeval", num_fewshot=3)
    with pytest.raises(DataError, match="data of ifeval"):
        load_benchmark("ifeval", data_dir=tmp_path)
