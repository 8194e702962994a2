"""Ready sets of measurements: what to ask when minutes, an hour, or a night are there for it.

quick      minutes on a T4 for a model of 1 to 3 billion parameters: tells large losses
standard   about an hour there: tells losses of some points
full       every item, for numbers to publish
"""

from __future__ import annotations

from kit.recipe.schema import Benchmark, Evaluate, IFEval, SuiteName

SUITES: dict[SuiteName, Evaluate] = {
    "quick": Evaluate(
        benchmarks={
            "mmlu": Benchmark(limit=228, num_fewshot=5),
            "arc_challenge": Benchmark(limit=100),
            "hellaswag": Benchmark(limit=100),
            "gsm8k": Benchmark(limit=50, max_new_tokens=256),
        },
        ifeval=IFEval(prompts=60, max_new_tokens=512),
    ),
    "standard": Evaluate(
        benchmarks={
            "mmlu": Benchmark(limit=912, num_fewshot=5),
            "arc_challenge": Benchmark(limit=500),
            "arc_easy": Benchmark(limit=500),
            "hellaswag": Benchmark(limit=500),
            "winogrande": Benchmark(limit=500),
            "gsm8k": Benchmark(limit=200, max_new_tokens=256),
        },
        ifeval=IFEval(prompts=None, max_new_tokens=1024),
    ),
    "full": Evaluate(
        benchmarks={
            "mmlu": Benchmark(limit=None, num_fewshot=5),
            "arc_challenge": Benchmark(limit=None, num_fewshot=25),
            "arc_easy": Benchmark(limit=None),
            "hellaswag": Benchmark(limit=None, num_fewshot=10),
            "winogrande": Benchmark(limit=None, num_fewshot=5),
            "gsm8k": Benchmark(limit=None),
        },
        ifeval=IFEval(prompts=None, max_new_tokens=1280),
    ),
}


def with_suite(evaluate: Evaluate) -> Evaluate:
    """The section with its suite filled in; what it says itself wins."""
    if evaluate.suite is None:
        return evaluate
    ready = SUITES[evaluate.suite]
    return evaluate.model_copy(
        update={
            "benchmarks": {**ready.benchmarks, **evaluate.benchmarks},
            "ifeval": evaluate.ifeval or ready.ifeval,
        }
    )
