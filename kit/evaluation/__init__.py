"""Measuring a stack: one engine that asks the model, tasks that judge, rows that add up.

    task.py          Task, and what the status of an item means
    measure.py       run tasks chunk by chunk, check that every item was counted once
    estimate.py      how long that will take

    engine.py        Engine: log-likelihoods, greedy replies, token losses
    scorer.py        log-likelihoods with common prefixes computed once
    prefixes.py      which prefixes those are; passes.py: how rows of them go through a model
    generation.py    replies; cache.py: their keys and values; stops.py: what ends them

    perplexity.py    TextTask: bits per byte of documents
    instructions.py  LilliputRules: format instructions of the embedded pair
    questions.py     QuestionTask: short answers
    ifeval.py        IFEval: lm-eval's task, this engine's replies
    benchmarks.py    any lm-eval task by name: harness.py loads it, harness_task.py asks it,
                     local_data.py has its rows from a folder, scales.py its metrics
    lm_eval.py       KitLM: the engine as a model of lm-eval; encoding.py, greedy.py: its manners

A tokenizer here is always the instruct model's, so every arm is asked with the same prompts.
"""
