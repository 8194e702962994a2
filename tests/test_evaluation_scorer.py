"""Shared prefixes change no score: against the plain way, and the plain way against the model."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from conftest import pico_model

from kit.adapters.attach import mounted
from kit.adapters.tensors import Adapter, LowRank
from kit.evaluation.prefixes import Budget, common, make_plan
from kit.evaluation.scorer import Request, score, sharing_problem

SIZES = dict(
    vocab_size=262,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
BUDGETS = [
    None,
    Budget(pass_tokens=80, row_tokens=24, overhead=0.0),
    Budget(pass_tokens=4000, row_tokens=64, overhead=1.0),
    Budget(pass_tokens=16, row_tokens=8, overhead=0.0),
]


def loud(model):
    """Weights large enough for every token to matter: a wrong mask must show."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25 if "embed" in name else 0.15)
    return model.eval()


def made(kind: str):
    import transformers as hf

    windowed = dict(sliding_window=6, head_dim=16)
    if kind == "llama":
        return loud(pico_model())
    if kind == "eager":
        return loud(pico_model(attn_implementation="eager"))
    if kind == "mistral":
        return loud(hf.MistralForCausalLM(hf.MistralConfig(**SIZES, **windowed)))
    if kind == "gemma2":
        return loud(hf.Gemma2ForCausalLM(hf.Gemma2Config(**SIZES, **windowed)))
    if kind == "gemma3":
        return loud(hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**SIZES, **windowed)))
    config = hf.Qwen2Config(**SIZES, sliding_window=6, use_sliding_window=True, max_window_layers=1)
    return loud(hf.Qwen2ForCausalLM(config))


KINDS = ["llama", "eager", "mistral", "gemma2", "gemma3", "qwen2"]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return made(request.param)


def requests(seed: int = 0) -> list[Request]:
    """Headers, questions and choices; one input inside another; the same one twice; alone."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(250) for _ in range(rng.randrange(low, high)))

    found = []
    headers = [ids(30, 50), ids(30, 50), ()]
    for _ in range(12):
        context = rng.choice(headers) + ids(1, 20)
        found += [Request(context, ids(1, 7)) for _ in range(3)]
        found += [Request(context, (token,)) for token in (5, 6, 7)]
    found.append(Request(headers[0][:10], headers[0][10:30]))
    found.append(Request(headers[0][:1], headers[0][1:2]))
    found.append(found[0])
    rng.shuffle(found)
    return found


def by_hand(model, request: Request) -> tuple[float, bool]:
    ids = request.context + request.continuation
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    start = len(request.context) - 1
    places = list(enumerate(request.continuation, start=start))
    nats = sum(float(log_p[place, token]) for place, token in places)
    return nats, all(int(log_p[place].argmax()) == token for place, token in places)


def test_the_plain_way_is_what_the_model_says(model):
    asked = requests()
    for request, found in zip(asked, score(model, asked, share=False), strict=True):
        nats, is_greedy = by_hand(model, request)
        assert found.logprob == pytest.approx(nats, abs=1e-3)
        assert found.is_greedy == is_greedy


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_sharing_changes_nothing(model, budget):
    asked = requests()
    plain = score(model, asked, share=False)
    shared = score(model, asked, budget=budget)
    for a, b in zip(plain, shared, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=2e-4)
        assert a.is_greedy == b.is_greedy
    assert sharing_problem(model) == ""


def test_a_wrong_mask_would_show(monkeypatch):
    """The comparisons above can fail: without the trees' masks scores move by far more."""
    from kit.evaluation import passes

    model, asked = made("llama"), requests()
    plain = score(model, asked, share=False)
    causal = lambda row, *, width, window: torch.ones(width, width).tril().bool().numpy()  # noqa: E731
    monkeypatch.setattr(passes, "tree_mask", causal)
    shared = score(model, asked, budget=BUDGETS[2])
    assert max(abs(a.logprob - b.logprob) for a, b in zip(plain, shared, strict=True)) > 0.05
    assert "differ" in sharing_problem(model)


def test_greedy_continuations_are_told():
    model, context, after = made("llama"), (3, 1, 4, 1, 5), []
    for _ in range(4):
        with torch.no_grad():
            after.append(int(model(torch.tensor([[*context, *after]])).logits[0, -1].argmax()))
    other = (after[0], (after[1] + 1) % 262, *after[2:])
    [best, worse] = score(model, [Request(context, tuple(after)), Request(context, other)])
    assert best.is_greedy and not worse.is_greedy


def test_adapters_on_and_off():
    model, asked = made("llama"), requests()
    before = score(model, asked)
    generator = torch.Generator().manual_seed(0)
    pairs = {
        f"model.layers.{layer}.self_attn.q_proj": LowRank(
            a_RI=torch.randn(4, 64, generator=generator),
            b_OR=torch.randn(64, 4, generator=generator),
            scale=0.05,
        )
        for layer in range(2)
    }
    with mounted(model, Adapter(deltas=pairs)):
        shared, plain = score(model, asked), score(model, asked, share=False)
    gaps = [abs(a.logprob - b.logprob) for a, b in zip(shared, plain, strict=True)]
    moved = [abs(a.logprob - b.logprob) for a, b in zip(shared, before, strict=True)]
    assert max(gaps) < 2e-4 < 1e-2 < max(moved)
    assert score(model, asked) == before


def test_not_a_number_stays_with_the_request_that_read_it():
    model = made("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = math.nan  # token 9 poisons what comes after it
    model.lm_head.weight = torch.nn.Parameter(torch.nan_to_num(model.lm_head.weight.detach()))
    bad, good = Request((1, 9, 2), (3,)), Request((1, 8, 2), (3,))
    [a, b, c] = score(model, [good, bad, good])
    assert math.isnan(b.logprob)
    assert a == c == score(model, [good], share=False)[0]
    assert math.isfinite(a.logprob)


def test_models_without_keys_are_scored_the_plain_way():
    import transformers as hf

    config = hf.MambaConfig(vocab_size=262, hidden_size=32, num_hidden_layers=2, state_size=8)
    model, request = hf.MambaForCausalLM(config).eval(), Request((1, 2, 3), (4, 5))
    assert "keep no keys" in sharing_problem(model)
    [found] = score(model, [request], share=False)
    assert found.logprob == pytest.approx(by_hand(model, request)[0], abs=1e-3)


def test_out_of_memory_halves_the_passes():
    model, asked = made("llama"), requests()
    wanted, sizes = score(model, asked), []

    def check(module, inputs, kwargs):
        size = kwargs["input_ids"].numel()
        sizes.append(size)
        if size > 200:
            raise torch.OutOfMemoryError(f"{size} tokens")

    hook = model.model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        found = score(model, asked)
    finally:
        hook.remove()
    assert max(sizes) > 200
    for a, b in zip(wanted, found, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=2e-4)


def plan_of(asked, budget=None):
    import numpy as np

    inputs = sorted({r.context + r.continuation[:-1] for r in asked})
    arrays = [np.asarray(ids, dtype=np.int64) for ids in inputs]
    return make_plan(arrays, budget or Budget(pass_tokens=1024, row_tokens=512)), arrays


def test_the_arithmetic_of_mmlu():
    """A header of 600 tokens, 16 questions of 100, four choices of one token: 4.9 times less."""
    rng = random.Random(0)
    header = tuple(rng.randrange(250) for _ in range(600))
    questions = [(q, *(rng.randrange(250) for _ in range(99))) for q in range(16)]
    asked = [Request(header + q, (choice,)) for q in questions for choice in range(4)]
    plan, _ = plan_of(asked)
    assert plan.plain_tokens == 16 * 700
    assert plan.tokens == 600 + 16 * 100
    assert [group.stem for group in plan.groups] == [600]


def test_a_short_common_beginning_is_no_stem():
    rng = random.Random(0)
    questions = [(1, 2, 3, *(rng.randrange(250) for _ in range(400))) for _ in range(5)]
    asked = [Request(q, (choice,)) for q in questions for choice in range(4)]
    plan, _ = plan_of(asked)
    assert [group.stem for group in plan.groups] == [0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", BUDGETS[1:], ids=str)
def test_every_input_is_in_exactly_one_row(seed, budget):
    plan, inputs = plan_of(requests(seed), budget)
    numbers = [n for group in plan.groups for row in group.rows for n in row]
    assert sorted(numbers) == list(range(len(inputs)))
    for group in plan.groups:
        members = [inputs[n] for row in group.rows for n in row]
        if group.stem:
            assert all(common(a, b) >= group.stem for a, b in pairwise(members))
    assert plan.tokens <= plan.plain_tokens
