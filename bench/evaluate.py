"""The kit's engine against lm-eval's own `hf` model: the same requests, ratios and scores.

    python bench/evaluate.py SmolLM2-135M-Instruct.Q4_1.gguf --data ../shared/data --json out.json

Every work is done by both sides one after the other, each in a process of its own: the same
checkpoint, dtype, threads and items, requests built by lm-eval. lm-eval runs with the best of
several batch sizes, found on a sample of the same requests beforehand. Timed is what a user waits
for after loading: tokenising, scoring, generating; for the work `adapters`, loading too, which is
its point. Memory is the largest resident size of a process (on CUDA the largest reserved).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUBJECTS = (
    "abstract_algebra",
    "clinical_knowledge",
    "high_school_geography",
    "international_law",
    "philosophy",
    "sociology",
)
BATCH_SIZES = {"cpu": (1, 4, 8, 16, 32, 64), "cuda": (8, 32, 64, 128, 256)}


@dataclass(frozen=True)
class Work:
    """One row of the table."""

    tasks: tuple[str, ...]
    items: int
    """Of each task, spread evenly."""
    bar: float
    """The ratio to reach."""
    num_fewshot: int | None = None
    fewshot: str = "default"
    max_new_tokens: int | None = None


MMLU = tuple(f"mmlu_{subject}" for subject in SUBJECTS)
WORKS = {
    "mmlu-16": Work(MMLU, 16, bar=4.5, num_fewshot=5),
    "mmlu-4": Work(MMLU, 4, bar=2.7, num_fewshot=5),
    "arc-easy": Work(("arc_easy",), 200, bar=2.5),
    "arc-challenge": Work(("arc_challenge",), 200, bar=2.5),
    "arc-25-first": Work(("arc_challenge",), 24, bar=20, num_fewshot=25, fewshot="first_n"),
    "arc-25-default": Work(("arc_challenge",), 12, bar=3.2, num_fewshot=25),
    "hellaswag": Work(("hellaswag",), 100, bar=2),
    "gsm8k": Work(("gsm8k",), 32, bar=1.5, num_fewshot=5, max_new_tokens=64),
    "gsm8k-first": Work(
        ("gsm8k",), 32, bar=1.5, num_fewshot=5, fewshot="first_n", max_new_tokens=64
    ),
    "ifeval": Work(("ifeval",), 64, bar=1.5, max_new_tokens=128),
    "adapters": Work(("arc_easy",), 500, bar=2.5),
}
ADAPTERS = 4


def main() -> None:
    """Run every work on both sides and print the table."""
    options = _options()
    if options.side:
        _child(options)
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found, scratch = {}, Path(tempfile.mkdtemp())
    print(_about(options), flush=True)
    print(f"{'work':16}{'lm-eval':>10}{'kit':>10}{'ratio':>8}{'bar':>6}   same scores, memory")
    for name in options.works.split(","):
        sides = {}
        for side in ("lm-eval", "kit"):
            file = scratch / f"{name}-{side}.json"
            command = [sys.executable, *sys.argv, "--side", side, "--works", name]
            subprocess.run([*command, "--out", str(file)], check=True)
            sides[side] = json.loads(file.read_text())
        found[name] = _compared(name, sides["lm-eval"], sides["kit"])
        print(_line(name, found[name]), flush=True)
    if options.json:
        about = {"command": " ".join(sys.argv), "machine": _about(options), "works": found}
        options.json.write_text(json.dumps(about, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="hub id, folder or .gguf")
    parser.add_argument("--data", type=Path, required=True, help="folder with the tasks' jsonl")
    parser.add_argument("--works", default=",".join(WORKS), help="some of the table's rows")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--scale", type=float, default=1.0, help="times as many items")
    parser.add_argument("--json", type=Path, help="write everything there too")
    parser.add_argument("--side", choices=("lm-eval", "kit"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _about(options: argparse.Namespace) -> str:
    from importlib.metadata import version

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    names = ("torch", "transformers", "lm-eval", "bitsandbytes")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    threads = f"{torch.get_num_threads()} threads"
    return f"{device or 'CPU'}, {threads}, {options.dtype}, {versions}"


def _child(options: argparse.Namespace) -> None:
    from kit.cli.console import quiet_libraries

    quiet_libraries()
    work = WORKS[options.works]
    run = _adapters if options.works == "adapters" else _plain
    result = run(options, work)
    result["peak_bytes"] = _peak_bytes()
    options.out.write_text(json.dumps(result))


def _plain(options: argparse.Namespace, work: Work) -> dict[str, Any]:
    """One loaded model, timed on the requests of a work."""
    from kit.models.loading import resolve_source

    folder = resolve_source(options.checkpoint)
    model, tokenizer = _load(folder, options.dtype)
    tasks = _tasks(options, work)
    requests = [request for task in tasks for request in task.instances]
    batch_size = _best_batch_size(model, tokenizer, requests) if options.side == "lm-eval" else None
    lm = _lm(options.side, model, tokenizer, batch_size)
    seconds, answers = _answered(lm, requests)
    return {
        "seconds": seconds,
        "answers": answers,
        "scores": _scores(tasks, answers),
        "batch_size": batch_size,
    }


def _adapters(options: argparse.Namespace, work: Work) -> dict[str, Any]:
    """Four adapters of one 4-bit model, loading included."""
    from kit.models.loading import resolve_source

    folder = resolve_source(options.checkpoint)
    paths = _make_adapters(folder, options.out.parent)
    requests = [request for task in _tasks(options, work) for request in task.instances]
    side = _adapters_of_kit if options.side == "kit" else _adapters_of_lm_eval
    batch_size = None
    if options.side == "lm-eval":
        model, tokenizer = _load_4bit(folder, options.dtype)
        batch_size = _best_batch_size(model, tokenizer, requests)
        del model
    started = time.perf_counter()
    answers = side(folder, paths, requests, options.dtype, batch_size)
    return {
        "seconds": time.perf_counter() - started,
        "answers": answers,
        "scores": _scores(_tasks(options, work) * ADAPTERS, answers),
        "batch_size": batch_size,
    }


def _adapters_of_lm_eval(
    folder: Path, paths: list[Path], requests: list[Any], dtype: str, batch_size: int | None
) -> list[Any]:
    from peft import PeftModel

    answers = []
    for path in paths:
        model, tokenizer = _load_4bit(folder, dtype)
        model = PeftModel.from_pretrained(model, str(path)).eval()
        answers += _answered(_lm("lm-eval", model, tokenizer, batch_size), requests)[1]
    return answers


def _adapters_of_kit(
    folder: Path, paths: list[Path], requests: list[Any], dtype: str, batch_size: int | None
) -> list[Any]:
    import torch

    from kit.adapters.attach import mounted
    from kit.adapters.tensors import read_adapter
    from kit.models.loading import dequantize

    model, tokenizer = _load_4bit(folder, dtype)
    dequantize(model, dtype=getattr(torch, dtype))
    lm, answers = _lm("kit", model, tokenizer, None), []
    for path in paths:
        with mounted(model, read_adapter(path)):
            answers += _answered(lm, requests)[1]
    return answers


def _make_adapters(folder: Path, out: Path) -> list[Path]:
    """LoRAs of rank 16 on all linear layers, with weights that change what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    paths = [out / f"adapter{number}" for number in range(ADAPTERS)]
    for number, path in enumerate(paths):
        if path.is_dir():
            continue
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        config = LoraConfig(
            r=16, lora_alpha=16, target_modules="all-linear", init_lora_weights=False
        )
        lora = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in lora.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(0.05)
        lora.save_pretrained(str(path))
    return paths


def _load(folder: Path, dtype: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


def _load_4bit(folder: Path, dtype: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        quantization_config=config,
        device_map="cuda" if torch.cuda.is_available() else "cpu",
    )
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _tasks(options: argparse.Namespace, work: Work) -> list[Any]:
    """lm-eval's tasks with the requests of some items."""
    from kit.evaluation.harness import load_tasks, reseed
    from kit.evaluation.ifeval import spread

    found = []
    for name in work.tasks:
        task = _ifeval(options) if name == "ifeval" else None
        if task is None:
            loaded = load_tasks(
                name, num_fewshot=work.num_fewshot, fewshot=work.fewshot, data_dir=options.data
            )
            task = loaded.tasks[name]
            reseed(task)
        count = max(1, round(work.items * options.scale))
        chosen = spread(len(list(task.eval_docs)), count)
        task.build_all_requests(samples=chosen, rank=0, world_size=1)
        for request in task.instances if work.max_new_tokens else ():
            settings = {**request.arguments[1], "max_gen_toks": work.max_new_tokens}
            request.arguments = (request.arguments[0], settings)
        found.append(task)
    return found


def _scores(tasks: list[Any], answers: list[Any]) -> list[dict[str, Any]]:
    """lm-eval's metrics of every item, from answers in the order of the requests."""
    from langdetect import DetectorFactory

    random.seed(0)
    DetectorFactory.seed = 0
    scores, left = [], iter(answers)
    for task in tasks:
        by_doc: dict[int, list[Any]] = {}
        for request in task.instances:
            request.resps = [next(left)]
            by_doc.setdefault(request.doc_id, []).append(request)
        task.apply_filters()
        for requests in by_doc.values():
            for name in requests[0].filtered_resps:
                replies = [request.filtered_resps[name] for request in requests]
                found = task.process_results(requests[0].doc, replies)
                scores.append({f"{metric},{name}": value for metric, value in found.items()})
    return scores


def _ifeval(options: argparse.Namespace) -> Any:
    from kit.evaluation.ifeval import IFEval
    from kit.evaluation.local_data import ifeval_file

    return IFEval(data=ifeval_file(options.data), prompts=None, max_new_tokens=1)._task


def _lm(side: str, model: Any, tokenizer: Any, batch_size: int | None) -> Any:
    if side == "kit":
        from kit.evaluation.lm_eval import KitLM

        return KitLM.of(model, tokenizer)
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def _answered(lm: Any, requests: list[Any]) -> tuple[float, list[Any]]:
    """Seconds, and what lm-eval's own metrics would be given."""
    ask = getattr(lm, requests[0].request_type)
    started = time.perf_counter()
    answers = ask(requests, disable_tqdm=True)
    return time.perf_counter() - started, list(answers)


def _best_batch_size(model: Any, tokenizer: Any, requests: list[Any]) -> int:
    """The fastest on every sixth request (choices of a question stay together)."""
    import torch

    groups: dict[int, list[Any]] = {}
    for request in requests:
        groups.setdefault(id(request.doc), []).append(request)
    # A sample smaller than a batch would say nothing about that batch.
    sample = [r for group in list(groups.values())[:: max(1, len(groups) // 16)] for r in group]
    best, fastest = 1, math.inf
    for size in BATCH_SIZES["cuda" if torch.cuda.is_available() else "cpu"]:
        if size > 2 * len(sample):
            break
        seconds, _ = _answered(_lm("lm-eval", model, tokenizer, size), sample)
        if seconds > 1.3 * fastest:
            break
        if seconds < fastest:
            best, fastest = size, seconds
    return best


def _peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _compared(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    pairs = list(zip(theirs.pop("answers"), ours.pop("answers"), strict=True))
    if isinstance(pairs[0][0], str):
        same: dict[str, Any] = {"equal_replies": sum(a == b for a, b in pairs) / len(pairs)}
    else:
        gap = max(abs(a[0] - b[0]) for a, b in pairs)
        flags = sum(a[1] == b[1] for a, b in pairs) / len(pairs)
        same = {"largest_difference": gap, "equal_greedy_flags": flags}
    ratio = theirs["seconds"] / ours["seconds"]
    memory = ours["peak_bytes"] / theirs["peak_bytes"]
    scores = theirs.pop("scores"), ours.pop("scores")
    same["equal_scores"] = sum(a == b for a, b in zip(*scores, strict=True)) / len(scores[0])
    same["items"] = len(scores[0])
    return {
        "lm_eval": theirs,
        "kit": ours,
        "ratio": ratio,
        "bar": WORKS[name].bar,
        "requests": len(pairs),
        **same,
        "memory_ratio": memory,
    }


def _line(name: str, found: dict[str, Any]) -> str:
    theirs, ours = found["lm_eval"], found["kit"]
    if "equal_replies" in found:
        same = f"{found['equal_replies']:.1%} of replies equal"
    else:
        same = f"largest difference {found['largest_difference']:.1e}"
        same += f", greedy flags {found['equal_greedy_flags']:.1%} equal"
    same += f", {found['equal_scores']:.1%} of {found['items']} items score the same"
    mark = "" if found["ratio"] >= found["bar"] else "  BELOW THE BAR"
    return (
        f"{name:16}{theirs['seconds']:9.1f}s{ours['seconds']:9.1f}s{found['ratio']:7.2f}x"
        f"{found['bar']:5.3g}x   {same}; memory {found['memory_ratio']:.2f}x, "
        f"batch {theirs['batch_size']}{mark}"
    )


if __name__ == "__main__":
    main()
