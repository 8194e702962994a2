"""Plans: what a recipe comes to, its warnings, and its text counted without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kit.data.sources import Document
from kit.errors import DataError, RecipeError
from kit.planning.corpus import CorpusCount, count_corpus, count_tokens
from kit.planning.plan import make_plan
from kit.planning.work import count_measurements, count_trainings
from kit.recipe.schema import Recipe


def recipe(**changes):
    sections = {
        "name": "r",
        "models": {
            "base": "meta-llama/Llama-3.2-3B",
            "instruct": "meta-llama/Llama-3.2-3B-Instruct",
        },
        "corpus": {"sources": ["pydoc:topics"]},
        "study": {"arms": ["instruct", "cpt-instruct", "residual"]},
        "evaluate": {"ifeval": {}},
    }
    return Recipe.model_validate({**sections, **changes})


def corpus(tokens):
    return CorpusCount(documents=9, heldout_documents=1, text_bytes=99, tokens=tokens, how="-")


def test_a_plan_counts_updates_warm_up_and_passes():
    train = {"tokens": 1_000_000, "seq_len": 1000, "micro_batch_size": 2, "tokens_per_step": 10_000}
    budget = make_plan(recipe(train=train), corpus=corpus(500_000), hardware="t4").budget
    assert (budget.accumulation, budget.num_steps, budget.warmup_steps) == (5, 100, 5)
    assert budget.epochs == 2.0


def test_the_updates_are_those_of_the_training():
    options = pytest.importorskip("kit.training.options")
    for micro, per_step, seq_len in ((1, 16_384, 1024), (3, 10_000, 700), (2, 1400, 512)):
        train = {
            "tokens": 123_456,
            "seq_len": seq_len,
            "micro_batch_size": micro,
            "tokens_per_step": per_step,
        }
        budget = make_plan(recipe(train=train), hardware="t4").budget
        size = options.BatchSize(micro_batch_size=micro, tokens_per_step=per_step)
        assert budget.accumulation == size.accumulation(seq_len)


def test_lines_and_dict_say_the_same():
    plan = make_plan(
        recipe(), corpus=corpus(100_000), hardware="RTX 3060", stages=["first", "last"]
    )
    text = "\n".join(plan.lines())
    for word in ("RTX 3060", "3.21B parameters", "computed, not measured", "NF4", "first", "last"):
        assert word in text, word
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["budget"]["num_steps"] == plan.budget.num_steps
    assert data["stages"] == ["first", "last"]


def test_trainings_and_measurements():
    arms = ["instruct", "base", "cpt-instruct", "cpt-base", "residual", "residual-lowrank"]
    arms += ["residual-only", "cpt-sft"]
    study = {
        "arms": arms,
        "cpt_weights": [0.0, 0.5, 1.0],
        "residual_ranks": [8, 16],
        "residual_weights": [0.5, 1.0],
        "seeds": [0, 1],
    }
    full = recipe(study=study, sft={"sources": ["lilliput:chats"]})
    assert count_trainings(full) == 2 * 3
    assert count_measurements(full) == 1 + 1 + 2 + 2 + 2 * 2 + 2 * 2 + 4 + 2
    controls = recipe(study={"arms": ["instruct", "residual-only"], "residual_ranks": [4]})
    assert count_trainings(controls) == 0 and count_measurements(controls) == 2
    plan = make_plan(controls, hardware="t4")
    assert plan.memory is None and plan.verdict is None and plan.lines()


def test_measurements_are_the_catalogues():
    catalog = pytest.importorskip("kit.strategies.catalog")
    from kit.strategies.stages import Measure, TrainCpt, TrainSft

    for arms in (["instruct", "residual"], ["base", "residual", "cpt-sft", "residual-lowrank"]):
        study = {"arms": arms, "control": arms[0], "residual_ranks": [4, 8]}
        made = recipe(study=study, sft={"sources": ["lilliput:chats"]})
        stages = catalog.stages(made)
        assert count_measurements(made) == sum(isinstance(s, Measure) for s in stages)
        assert count_trainings(made) == sum(isinstance(s, TrainCpt | TrainSft) for s in stages)


WARNINGS = {
    "small": ({"models": {"base": "Qwen/Qwen2.5-1.5B", "instruct": "x/y"}}, "1.5B parameters"),
    "gated": ({}, "is gated"),
    "few updates": ({"train": {"tokens": 20_000}}, "updates are few"),
    "passes": ({"train": {"tokens": 900_000}}, "9.0 passes"),
    "context": (
        {
            "models": {"base": "Qwen/Qwen2.5-3B", "instruct": "x/y"},
            "train": {"seq_len": 40_000, "tokens_per_step": 40_000},
        },
        "longer than the model's context",
    ),
    "one seed": ({"study": {"arms": ["instruct", "cpt-instruct"], "seeds": [0]}}, "1 seed:"),
    "no naive arm": ({"study": {"arms": ["instruct", "residual"]}}, "without cpt-instruct"),
    "no rules": ({"evaluate": {}}, "instruction following is not measured"),
    "no questions": ({}, "no questions about the new text"),
    "targets": ({"lora": {"target_modules": ["q_prj"]}}, "no linear is called 'q_prj'"),
    "rate": ({"train": {"tokens": 200_000_000}}, "5e-5"),
    "memory": ({"train": {"micro_batch_size": 16}}, "does not fit T4"),
    "gguf": (
        {
            "models": {"instruct": "SmolLM2-135M-Instruct.Q4_1.gguf"},
            "study": {"arms": ["instruct"]},
        },
        "quantised already",
    ),
    "bfloat16": (
        {"models": {"instruct": "a/b", "base": "a/c", "compute_dtype": "bfloat16"}},
        "no bfloat16 units",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_warnings(name):
    changes, said = WARNINGS[name]
    plan = make_plan(recipe(**changes), corpus=corpus(100_000), hardware="t4")
    assert any(said in warning for warning in plan.warnings), plan.warnings
    assert said in "\n".join(plan.lines())


def test_a_sound_study_has_no_warning():
    sound = recipe(
        models={"base": "Qwen/Qwen2.5-7B", "instruct": "Qwen/Qwen2.5-7B-Instruct"},
        evaluate={"ifeval": {}, "questions": {"new": {"sources": ["lilliput:new-chat"]}}},
    )
    plan = make_plan(sound, corpus=corpus(1_000_000), hardware="rtx 3090")
    assert plan.warnings == () or all("does not fit" in w for w in plan.warnings)


def test_unknown_models_are_planned_without_memory():
    plan = make_plan(recipe(models={"base": "a/b", "instruct": "a/c"}), hardware="t4")
    assert plan.memory is None and plan.training_time is None
    assert "not known" in "\n".join(plan.lines())


def test_unknown_hardware_is_an_error():
    with pytest.raises(RecipeError, match="Voodoo"):
        make_plan(recipe(), hardware="Voodoo")


def test_files_that_are_missing_are_all_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    asked = recipe(
        corpus={"sources": ["there", "gone.txt"], "heldout": {"sources": ["out.txt"]}},
        evaluate={"ifeval": {"data": "p.jsonl"}, "questions": {"q": {"sources": ["q.jsonl"]}}},
    )
    with pytest.raises(DataError, match="4 files are not there"):
        count_corpus(asked)
    with pytest.raises(DataError) as caught:
        make_plan(asked, hardware="t4")
    message = str(caught.value)
    for name in ("corpus.sources: gone.txt", "heldout.sources: out.txt", "ifeval.data: p.jsonl"):
        assert name in message
    assert "questions.q.sources: q.jsonl" in message and "there;" not in message
    assert str(tmp_path) in message and caught.value.exit_code == 2


def test_the_corpus_is_counted_with_a_tokenizer_file(tmp_path, pico_pair):
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("ten bytes!" * (number + 1))
    asked = recipe(corpus={"sources": [str(tmp_path)], "heldout": {"every": 5}})
    file = pico_pair.base / "tokenizer.json"
    counted = count_corpus(asked, tokenizer_file=file)
    assert counted is not None and counted.how == "counted with the tokenizer"
    assert (counted.documents, counted.heldout_documents) == (8, 2)
    kept = [n + 1 for n in range(10) if n not in (4, 9)]
    assert counted.text_bytes == 10 * sum(kept)
    assert counted.tokens == counted.text_bytes + 8  # a byte a token, and the ends
    guessed = count_corpus(asked)
    assert guessed is not None and "estimated" in guessed.how


def test_a_large_corpus_is_sampled(pico_pair, monkeypatch):
    monkeypatch.setattr("kit.planning.corpus.COUNTED_BYTES", 100)
    documents = [Document(id=str(n), text="x" * 10, date=None, source="s") for n in range(50)]
    file = pico_pair.base / "tokenizer.json"
    tokens, how = count_tokens(documents, tokenizer_file=file)
    assert tokens == 500 and "every 5th" in how


def test_a_corpus_on_the_hub_is_not_downloaded():
    assert count_corpus(recipe(corpus={"sources": ["hub:a/b"]})) is None


def test_planning_loads_nothing_heavy():
    code = (
        "import sys, kit.planning.plan, kit.planning.doctor\n"
        "from kit.planning.corpus import count_corpus\n"
        "from kit.recipe.schema import Recipe\n"
        "r = Recipe.model_validate({'name': 'a', 'models': {'instruct': 'Qwen/Qwen2.5-0.5B'},\n"
        "  'corpus': {'sources': ['pydoc:topics']}})\n"
        "kit.planning.plan.make_plan(r, corpus=count_corpus(r), hardware='t4').lines()\n"
        "kit.planning.doctor.examine()\n"
        "heavy = ('torch', 'transformers', 'datasets', 'peft', 'bitsandbytes')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
