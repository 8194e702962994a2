"""The engine gives what a batch of one and the full logits give."""

from __future__ import annotations

import math
import random

import pytest
import torch
from conftest import pico_model, pico_tokenizer

from kit.errors import RecipeError
from kit.evaluation.engine import Engine, windows


def engine(model, *, batch_size: int = 4, max_length: int = 64) -> Engine:
    return Engine(model, pico_tokenizer(chat=True), batch_size=batch_size, max_length=max_length)


def random_prompts(count: int, *, longest: int = 40, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def full_logits(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double()


def plain_greedy(model, prompt: list[int], *, limit: int, stops: set[int]) -> list[int]:
    """No cache, no batch, no mask: the definition."""
    ids = list(prompt)
    while len(ids) - len(prompt) < limit:
        ids.append(int(full_logits(model, ids)[-1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def model():
    return pico_model()


@pytest.fixture(scope="module")
def loud_model():
    """Larger weights, so that replies vary and end tokens do occur."""
    changed = pico_model(3)
    with torch.no_grad():
        for parameter in changed.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return changed


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_replies_are_those_of_the_definition(loud_model, batch_size):
    prompts = random_prompts(13)
    asked = engine(loud_model, batch_size=batch_size)
    stops = set(range(40))
    replies = asked.generate(prompts, max_new_tokens=12, stop_ids=stops)
    ends = stops | asked.end_ids
    for prompt, reply in zip(prompts, replies, strict=True):
        assert list(reply.ids) == plain_greedy(loud_model, prompt, limit=12, stops=ends)
        assert reply.stopped == (reply.ids[-1] in ends)
        assert not reply.error
    assert {reply.stopped for reply in replies} == {True, False}
    assert len({len(reply.ids) for reply in replies}) > 3


def test_replies_agree_with_transformers_generate(loud_model):
    prompts = random_prompts(6, seed=5)
    replies = engine(loud_model).generate(prompts, max_new_tokens=10)
    for prompt, reply in zip(prompts, replies, strict=True):
        theirs = loud_model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=10,
            eos_token_id=[256, 260],
            pad_token_id=257,
        )
        assert list(reply.ids) == theirs[0, len(prompt) :].tolist()


def other_models():
    """Sliding windows, logit caps, absolute positions, recurrent states."""
    from transformers import Gemma2Config, GPT2Config, Lfm2Config, MistralConfig

    shape = dict(
        vocab_size=262,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=256,
        pad_token_id=257,
        bos_token_id=None,
    )
    ends = dict(eos_token_id=256, bos_token_id=256)
    return {
        "mistral": MistralConfig(**shape, sliding_window=8),
        "gemma2": Gemma2Config(**shape, head_dim=16, sliding_window=8),
        "gpt2": GPT2Config(vocab_size=262, n_embd=64, n_layer=2, n_head=4, **ends),
        "lfm2": Lfm2Config(**shape, layer_types=["conv", "full_attention"]),
    }


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt2", "lfm2"])
def test_other_architectures(kind):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(other_models()[kind]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
    asked, prompts, stops = engine(model), random_prompts(6, seed=1), set(range(30))
    replies = asked.generate(prompts, max_new_tokens=10, stop_ids=stops)
    ends = stops | asked.end_ids
    for prompt, reply, losses in zip(prompts, replies, asked.nll(prompts), strict=True):
        assert list(reply.ids) == plain_greedy(model, prompt, limit=10, stops=ends)
        log_p = full_logits(model, prompt).log_softmax(-1)
        wanted = [-float(log_p[t - 1, prompt[t]]) for t in range(1, len(prompt))]
        assert losses == pytest.approx(wanted, abs=1e-5)
    assert len({len(reply.ids) for reply in replies}) > 1


def test_end_ids_come_from_tokenizer_generation_config_and_template(model):
    changed = pico_model()
    changed.generation_config.eos_token_id = [261]
    assert engine(changed).end_ids == {256, 260, 261}
    assert engine(model).end_ids == {256, 260}
    turns = pico_tokenizer(chat=True)
    turns.eos_token = "<|end|>"
    changed.generation_config.eos_token_id = 260
    assert Engine(changed, turns, batch_size=1, max_length=8).end_ids == {256, 260}


def test_text_leaves_out_the_end_and_keeps_the_stop(loud_model):
    asked = engine(loud_model)
    [reply] = asked.generate([[65, 66]], max_new_tokens=8)
    second = reply.ids[1]
    [stopped] = asked.generate([[65, 66]], max_new_tokens=8, stop_ids=[second])
    assert stopped.stopped and stopped.ids[-1] == second
    assert stopped.text == asked.tokenizer.decode(stopped.ids, skip_special_tokens=True)
    asked.end_ids = frozenset({second})
    [ended] = asked.generate([[65, 66]], max_new_tokens=8)
    assert ended.ids == stopped.ids
    assert ended.text == asked.tokenizer.decode(ended.ids[:-1], skip_special_tokens=True)
    assert ended.text != stopped.text


def test_a_reply_ends_where_the_context_does():
    asked = engine(pico_model(max_position_embeddings=16), max_length=16)
    asked.end_ids = frozenset()
    short, full, empty = asked.generate([[1] * 12, [1] * 16, []], max_new_tokens=50)
    assert len(short.ids) == 4 and not short.stopped and not short.error
    assert "no room" in full.error and "is empty" in empty.error


def test_newline_ids(model):
    asked = engine(model)
    assert [asked.tokenizer.decode([i]) for i in asked.newline_ids] == ["\n"]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_nll_is_that_of_the_full_logits(model, batch_size):
    texts = random_prompts(9, longest=60, seed=2)
    losses = engine(model, batch_size=batch_size).nll(texts)
    for ids, found in zip(texts, losses, strict=True):
        log_p = full_logits(model, ids).log_softmax(-1)
        wanted = [-float(log_p[t - 1, ids[t]]) for t in range(1, len(ids))]
        assert found == pytest.approx(wanted, abs=1e-5)


def test_long_texts_are_scored_in_windows_by_the_stated_rule(model):
    ids = [n * n % 256 for n in range(53)]
    [found] = engine(model, max_length=16, batch_size=3).nll([ids])
    wanted: list[float] = []
    for start, stop, first in windows(53, 16):
        log_p = full_logits(model, ids[start:stop]).log_softmax(-1)
        wanted += [-float(log_p[t - start - 1, ids[t]]) for t in range(first, stop)]
    assert found == pytest.approx(wanted, abs=1e-5)
    [whole] = engine(model, max_length=64).nll([ids])
    assert found[:15] == pytest.approx(whole[:15], abs=1e-5)


@pytest.mark.parametrize("length", range(1, 40))
@pytest.mark.parametrize("size", [2, 3, 8, 9, 64])
def test_windows_score_each_token_once_with_half_a_window_before_it(length, size):
    spans = windows(length, size)
    scored = [t for _, stop, first in spans for t in range(first, stop)]
    assert scored == list(range(1, length))
    for number, (start, stop, first) in enumerate(spans):
        assert 0 < stop - start <= size
        assert number == 0 or first - start >= size / 2


def test_length_is_lowered_to_the_context():
    small = pico_model(max_position_embeddings=32)
    assert engine(small, max_length=500).max_length == 32
    assert engine(small, max_length=20).max_length == 20


def test_not_a_number_is_reported_row_by_row(model):
    broken = pico_model()
    with torch.no_grad():
        broken.model.embed_tokens.weight[7] = math.nan
    broken.config.tie_word_embeddings = False
    broken.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    asked = engine(broken)
    fine, bad = asked.generate([[1, 2, 3], [1, 7, 3]], max_new_tokens=4)
    assert fine.ids and not fine.error
    assert "token 1" in bad.error and not bad.ids
    good, nan = asked.nll([[1, 2, 3, 4], [1, 7, 3, 4]])
    assert all(math.isfinite(v) for v in good)
    assert math.isnan(nan[-1])


def test_a_training_model_is_measured_in_eval_mode_and_given_back():
    model = pico_model(attention_dropout=0.5)
    quiet = engine(model).nll([[1, 2, 3, 4, 5]])
    model.train()
    assert engine(model).nll([[1, 2, 3, 4, 5]]) == quiet
    assert model.training
    loss = model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
    loss.backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_mounted_adapter_changes_both(loud_model):
    from peft import LoraConfig, get_peft_model

    model = pico_model(3)
    model.load_state_dict(loud_model.state_dict())
    prompts = random_prompts(4, seed=9)
    plain = engine(model)
    replies, losses = plain.generate(prompts, max_new_tokens=6), plain.nll(prompts)
    mounted = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    asked = engine(mounted)
    changed = asked.nll(prompts)
    assert asked.generate(prompts, max_new_tokens=6) != replies
    assert changed != losses
    with mounted.disable_adapter():
        assert asked.nll(prompts) == losses
        assert asked.generate(prompts, max_new_tokens=6) == replies


def test_advance_adds_up(model):
    told: list[int] = []
    asked = engine(model, batch_size=2, max_length=8)
    asked.generate([[1], [2], [3], []], max_new_tokens=2, advance=lambda n, note="": told.append(n))
    assert sum(told) == 4
    told.clear()
    asked.nll([[1] * 30, [2] * 5, [3]], advance=lambda n, note="": told.append(n))
    assert sum(told) == 3


def test_sizes_that_mean_nothing_are_refused(model):
    with pytest.raises(RecipeError, match="batch size 0"):
        engine(model, batch_size=0)
    with pytest.raises(RecipeError, match="seq_len"):
        engine(model, max_length=1)
