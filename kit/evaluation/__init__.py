"""Measuring a stack: one engine that asks the model, tasks that judge, rows that add up.

    task.py          Task, and what the status of an item means
    engine.py        Engine: greedy replies and token losses, in batches
    generation.py    the decoding loop
    perplexity.py    TextTask: bits per byte of documents
    instructions.py  LilliputRules: format instructions of the embedded pair
    ifeval.py        IFEval: lm-eval's task, this engine's replies
    questions.py     QuestionTask: short answers
    measure.py       measure: run tasks, check that every item was counted once

A tokenizer here is always the instruct model's, so every arm is asked with the same prompts.
"""
