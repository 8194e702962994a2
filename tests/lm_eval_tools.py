"""What the tests of the lm-eval side share: small local tasks, and lm-eval's own model."""

from __future__ import annotations

import json
import random
from pathlib import Path

from conftest import pico_model, pico_tokenizer

WORDS = [
    "ash",
    "beech",
    "cedar",
    "elm",
    "fir",
    "hazel",
    "larch",
    "maple",
    "oak",
    "pine",
    "rowan",
    "willow",
]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lively_model(seed: int = 0, **changes):
    """Large random weights: replies that vary, and likelihoods that differ."""
    return pico_model(seed, initializer_range=0.2, **changes)


def make_tasks(folder: Path, *, rows: int = 12) -> Path:
    """A folder of lm-eval tasks with own data: choices, replies, text, and a group of two."""
    rnd = random.Random(5)
    questions = [
        {
            "question": f"Which tree is number {n}, {' '.join(rnd.sample(WORDS, 3))}?",
            "choices": rnd.sample(WORDS, 3 + n % 3),
            "label": n % 3,
        }
        for n in range(rows)
    ]
    asked = write_jsonl(folder / "asked.jsonl", questions[: rows - 4])
    shown = write_jsonl(folder / "shown.jsonl", questions[rows - 4 :])
    texts = [{"text": " ".join(rnd.choices(WORDS, k=8 * n))} for n in (1, 3, 20, 30)]
    text_file = write_jsonl(folder / "texts.jsonl", texts)
    choosing = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "cache_dir": str(folder / "cache"),
            "data_files": {"test": str(asked), "train": str(shown)},
        },
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": "choices",
        "output_type": "multiple_choice",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    numbers = {"function": "regex", "regex_pattern": "([a-z]+)"}
    replying = {
        **choosing,
        "doc_to_choice": None,
        "doc_to_target": "{{choices[label]}}",
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
        "filter_list": [
            {"name": "strict", "filter": [numbers, {"function": "take_first"}]},
            {"name": "plain", "filter": [{"function": "take_first"}]},
        ],
    }
    reading = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "cache_dir": str(folder / "cache"),
            "data_files": {"test": str(text_file)},
        },
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "output_type": "loglikelihood_rolling",
        "metric_list": [
            {"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        ],
    }
    defined = {
        "pico_choose": choosing,
        "pico_reply": replying,
        "pico_read": reading,
        "pico_other": {**choosing, "doc_to_text": "{{question}} "},
    }
    for name, definition in defined.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **definition}))
    group = {"group": "pico_group", "task": ["pico_choose", "pico_other"]}
    group["aggregate_metric_list"] = [{"metric": "acc", "weight_by_size": True}]
    (folder / "pico_group.yaml").write_text(json.dumps(group))
    return folder


def hflm(model, tokenizer, **options):
    """lm-eval's own model over the same weights, one row at a time."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, **options)


def evaluated(lm, folder: Path, names: list[str], **options) -> dict:
    """lm-eval's own results of tasks in a folder."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=lm, tasks=names, task_manager=manager, bootstrap_iters=0, **options
    )


def numbers_of(results: dict, name: str) -> dict[str, float]:
    """A task's or group's metrics by lm-eval's names."""
    return {
        key: value
        for key, value in results["results"][name].items()
        if "," in key and "stderr" not in key
    }


__all__ = ["evaluated", "hflm", "lively_model", "make_tasks", "numbers_of", "pico_tokenizer"]
