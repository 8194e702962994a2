"""Replies in slots are the replies of the definition, whatever comes and goes beside them."""

from __future__ import annotations

import random

import pytest
import torch
from conftest import pico_tokenizer
from test_evaluation_scorer import KINDS, made

from kit.adapters.attach import mounted
from kit.adapters.tensors import Adapter, LowRank
from kit.evaluation.engine import Engine
from kit.evaluation.generation import refilling_problem


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return made(request.param)


def engine(model, slots: int = 3) -> Engine:
    return Engine(model, pico_tokenizer(chat=True), batch_size=slots)


def prompts(count: int = 11) -> tuple[list[list[int]], list[int]]:
    """Prompts of very different lengths, two thirds with one beginning; and limits."""
    rng = random.Random(0)
    head = [rng.randrange(250) for _ in range(30)]
    tails = [[rng.randrange(250) for _ in range(rng.randrange(1, 40))] for _ in range(count)]
    asked = [(head if n % 3 else []) + tail for n, tail in enumerate(tails)]
    return asked, [rng.randrange(1, 25) for _ in asked]


def by_definition(model, prompt: list[int], limit: int, ends: frozenset[int]) -> tuple[int, ...]:
    """Without a cache: the most probable token after everything so far, again and again."""
    ids = list(prompt)
    while len(ids) < len(prompt) + limit and (len(ids) == len(prompt) or ids[-1] not in ends):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_rows_that_come_and_go_change_no_reply(model):
    asked, (given, limits) = engine(model), prompts()
    assert refilling_problem(model) == ""
    replies = asked.generate(given, max_new_tokens=limits)
    for prompt, limit, reply in zip(given, limits, replies, strict=True):
        assert reply.ids == by_definition(model, prompt, limit, asked.end_ids)
    assert asked.generate(given, max_new_tokens=limits) == replies


def test_no_step_computes_more_rows_than_are_alive():
    model, rows = made("llama"), []
    asked, (given, limits) = engine(model), prompts()
    hook = model.model.register_forward_pre_hook(
        lambda module, inputs, kwargs: rows.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        replies = asked.generate(given, max_new_tokens=limits)
    finally:
        hook.remove()
    steps = sum(count for count, width in rows if width == 1)
    assert steps <= sum(len(reply.ids) for reply in replies)
    assert sum(count * width for count, width in rows) < sum(map(len, given)) + steps


@pytest.mark.parametrize("slots", [1, 2, 16])
def test_a_stop_string_ends_a_reply_before_it(slots):
    model = made("llama")
    with torch.no_grad():  # letters alone: the first 94 ids are printable ASCII
        head = model.lm_head.weight.clone()
        head[94:] = 0
        model.lm_head.weight = torch.nn.Parameter(head)
    asked, (given, _) = engine(model, slots), prompts()
    whole = asked.generate(given, max_new_tokens=24)
    # Taken out of the middle of replies, so that it straddles the tokens (bytes) of them.
    stops = [text[5:8] for text in (reply.text for reply in whole[:4]) if len(text) > 8]
    assert stops
    cut = asked.generate(given, max_new_tokens=24, stop_strings=stops)
    for full, short in zip(whole, cut, strict=True):
        places = [full.text.find(stop) for stop in stops if stop in full.text]
        if places:
            assert short.text == full.text[: min(places)] and short.stopped
            assert len(short.ids) <= len(full.ids)
        else:
            assert short == full


def test_adapters_are_on_in_every_row():
    model = made("llama")
    asked, (given, limits) = engine(model), prompts()
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 64, generator=generator)
    b = torch.randn(64, 4, generator=generator)
    delta = {"model.layers.1.self_attn.q_proj": LowRank(a_RI=a, b_OR=b, scale=0.3)}
    before = asked.generate(given, max_new_tokens=limits)
    with mounted(model, Adapter(deltas=delta)):
        replies = asked.generate(given, max_new_tokens=limits)
        for prompt, limit, reply in zip(given, limits, replies, strict=True):
            assert reply.ids == by_definition(model, prompt, limit, asked.end_ids)
    assert replies != before == asked.generate(given, max_new_tokens=limits)


def test_out_of_memory_halves_the_slots_and_loses_nothing():
    model, most = made("llama"), []
    given, limits = prompts()
    wanted = engine(model, 8).generate(given, max_new_tokens=limits)

    def check(module, inputs, kwargs):
        most.append(kwargs["input_ids"].shape[0])
        if most[-1] > 3:
            raise torch.OutOfMemoryError(f"{most[-1]} rows")

    hook = model.model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        assert engine(model, 8).generate(given, max_new_tokens=limits) == wanted
    finally:
        hook.remove()
    assert max(most) > 3


def test_models_with_a_state_are_decoded_in_plain_batches():
    import transformers as hf

    torch.manual_seed(0)
    config = hf.MambaConfig(vocab_size=262, hidden_size=32, num_hidden_layers=2, state_size=8)
    model = hf.MambaForCausalLM(config).eval()
    assert "no keys" in refilling_problem(model)
    [reply] = engine(model).generate([[1, 2, 3]], max_new_tokens=4)
    assert len(reply.ids) >= 1 and not reply.error
