"""The kit's engine answers lm-eval as lm-eval's own model does."""

from __future__ import annotations

import math

import pytest
import torch
from adapter_tools import random_lora
from conftest import pico_tokenizer, save_pico
from lm_eval.api.instance import Instance
from lm_eval_tools import WORDS, evaluated, hflm, lively_model, make_tasks, numbers_of

from kit.errors import DataError, RecipeError
from kit.evaluation.engine import Engine
from kit.evaluation.lm_eval import KitLM


def kit_lm(model, tokenizer, **options) -> KitLM:
    return KitLM(Engine(model, tokenizer, batch_size=3, max_length=256), **options)


def llama_like_tokenizer():
    """Adds a BOS by itself, as Gemma's and Llama's do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = pico_tokenizer(chat=True)
    tokenizer.bos_token = "<|system|>"
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", bos)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model():
    return lively_model(max_position_embeddings=2048)


def answers(results: dict, name: str) -> list:
    return [sample["resps"] for sample in results["samples"][name]]


def likelihoods(results: dict, name: str) -> list[tuple[float, bool]]:
    return [tuple(one[0]) for resps in answers(results, name) for one in resps]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_choices_and_replies_are_those_of_hflm(tasks, model, chat, side):
    tokenizer = pico_tokenizer(chat=True)
    tokenizer.padding_side = side
    model.generation_config.eos_token_id = [256, 260]
    names = ["pico_choose", "pico_reply", "pico_group"]
    options = {"num_fewshot": 2, "apply_chat_template": chat}
    theirs = evaluated(hflm(model, tokenizer), tasks, names[:2], **options)
    ours = evaluated(kit_lm(model, tokenizer), tasks, names[:2], **options)
    for name in names[:2]:
        assert numbers_of(ours, name) == numbers_of(theirs, name)
        asked = [[s["arguments"] for s in r["samples"][name]] for r in (ours, theirs)]
        assert asked[0] == asked[1]
    pairs = zip(likelihoods(ours, "pico_choose"), likelihoods(theirs, "pico_choose"), strict=True)
    for (nats, greedy), (nats_theirs, greedy_theirs) in pairs:
        assert nats == pytest.approx(nats_theirs, abs=1e-3) and greedy == greedy_theirs
    assert answers(ours, "pico_reply") == answers(theirs, "pico_reply")
    replies = [resps[0][0] for resps in answers(ours, "pico_reply")]
    assert len(set(replies)) > 3 and any(replies)


def test_text_is_scored_in_lm_evals_windows(tasks):
    small = lively_model(max_position_embeddings=64)
    tokenizer = pico_tokenizer(chat=True)
    theirs = evaluated(hflm(small, tokenizer), tasks, ["pico_read"])
    lm = kit_lm(small, tokenizer)
    ours = evaluated(lm, tasks, ["pico_read"])
    for mine, his in zip(answers(ours, "pico_read"), answers(theirs, "pico_read"), strict=True):
        assert mine[0][0] == pytest.approx(his[0][0], abs=1e-3)
    assert [fact.output_tokens > 64 for fact in lm.facts] == [False, True, True, True]
    assert numbers_of(ours, "pico_read") == pytest.approx(numbers_of(theirs, "pico_read"), rel=1e-4)


def test_mounted_adapters_are_measured(tasks, model, tmp_path):
    from kit.adapters.attach import mounted
    from kit.adapters.tensors import read_adapter

    base = save_pico(tmp_path / "base", model, chat=True)
    adapter = read_adapter(random_lora(base, tmp_path / "adapter"))
    tokenizer = pico_tokenizer(chat=True)
    ours, theirs = kit_lm(model, tokenizer), hflm(model, tokenizer)
    plain = evaluated(ours, tasks, ["pico_choose"])
    with mounted(model, adapter):
        changed = evaluated(ours, tasks, ["pico_choose"])
        wanted = evaluated(theirs, tasks, ["pico_choose"])
    after = evaluated(ours, tasks, ["pico_choose"])
    nats = [[v for v, _ in likelihoods(r, "pico_choose")] for r in (plain, changed, wanted, after)]
    assert nats[1] == pytest.approx(nats[2], abs=1e-3)
    assert max(abs(a - b) for a, b in zip(nats[0], nats[1], strict=True)) > 0.1
    assert nats[0] == nats[3]


TEXTS = [
    ("Question: which tree?\nAnswer:", " oak"),
    ("Blanks at the end  ", "oak"),
    ("", "oak and elm"),
    ("", "<|endoftext|>oak"),
    ("<|endoftext|>begins with the prefix", " oak"),
    ("<|system|>begins with a BOS", " oak"),
    ("<|user|>a turn<|end|><|assistant|>", "oak"),
    ("naïve ✓", "\noak"),
    (" \n", "oak"),
]


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("adds_bos", [False, True], ids=["no BOS", "BOS"])
def test_requests_are_tokenised_as_hflm_does(model, adds_bos, add_bos_token):
    tokenizer = llama_like_tokenizer() if adds_bos else pico_tokenizer(chat=True)
    theirs = hflm(model, tokenizer, add_bos_token=add_bos_token)
    ours = kit_lm(model, tokenizer, add_bos_token=add_bos_token)
    assert (ours.prefix_token_id, ours.eot_token_id) == (theirs.prefix_token_id, 256)
    assert (ours.max_length, ours.tokenizer_name) == (theirs.max_length, theirs.tokenizer_name)
    seen = []
    theirs._loglikelihood_tokens = lambda requests, **_: seen.extend(requests)
    theirs.loglikelihood([asked(*pair) for pair in TEXTS], disable_tqdm=True)
    wanted = [(list(context), list(after)) for _, context, after in seen]
    assert [(list(a), list(b)) for a, b in ours.encode(TEXTS)] == wanted
    for text in {text for pair in TEXTS for text in pair}:
        for special in (None, True, False):
            given = {"add_special_tokens": special}
            assert ours.tok_encode(text, **given) == theirs.tok_encode(text, **given)
    turns = [{"role": "user", "content": "oak?"}, {"role": "assistant", "content": "El"}]
    for ask in (True, False):
        text = ours.apply_chat_template(turns[: 1 if ask else 2], add_generation_prompt=ask)
        assert text == theirs.apply_chat_template(turns[: 1 if ask else 2], ask)
    assert ours.chat_template(True) == theirs.chat_template(True) == tokenizer.chat_template


def asked(context: str, continuation: str) -> Instance:
    return Instance("loglikelihood", {}, (context, continuation), 0)


def test_a_prompt_that_is_too_long_is_cut_on_the_left_and_counted():
    small = lively_model(max_position_embeddings=48)
    tokenizer = pico_tokenizer(chat=True)
    long, short = " ".join(WORDS * 3), "oak"
    pairs = [(long, " elm"), (short, " elm"), ("x" * 45, " elm"), ("x" * 46, " elm")]
    ours, theirs = kit_lm(small, tokenizer), hflm(small, tokenizer)
    requests = [asked(*pair) for pair in pairs]
    nats = [value for value, _ in ours.loglikelihood(requests)]
    assert nats == pytest.approx([v for v, _ in theirs.loglikelihood(requests)], abs=1e-3)
    assert [fact.prompt_cut for fact in ours.facts] == [True, False, False, True]
    assert [fact.prompt_tokens for fact in ours.facts] == [45, 3, 45, 45]
    # The very text that is left gives the same: nothing was cut on the right.
    assert ours.loglikelihood([asked(long[-45:], " elm")])[0][0] == pytest.approx(nats[0], abs=1e-4)
    settings = {"until": [], "max_gen_toks": 8}
    replying = [Instance("generate_until", {}, (text, settings), 0) for text in (long, short)]
    assert ours.generate_until(replying) == theirs.generate_until(replying)
    assert [fact.prompt_cut for fact in ours.facts] == [True, False]
    assert ours.facts[0].prompt_tokens == 40


def test_what_cannot_be_scored_is_refused():
    tokenizer = pico_tokenizer(chat=True)
    ours = kit_lm(lively_model(max_position_embeddings=48), tokenizer)
    for context, continuation in (("oak", "x" * 49), ("oak", "")):
        with pytest.raises(DataError, match="continuation"):
            ours.loglikelihood([asked("oak", " elm"), asked(context, continuation)])
        answers = ours.score(ours.encode([("oak", " elm"), (context, continuation)]))
        assert math.isfinite(answers[0][0]) and math.isnan(answers[1][0])
        assert not ours.facts[0].error and "continuation" in ours.facts[1].error
    assert ours.loglikelihood([]) == []


def test_nan_is_an_answer_with_a_reason():
    broken = lively_model()
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    ours = kit_lm(broken, pico_tokenizer(chat=True))
    [(nats, _)] = ours.loglikelihood([asked("oak", " elm")])
    assert math.isnan(nats) and "NaN" in ours.facts[0].error
    request = Instance("generate_until", {}, ("oak", {"until": []}), 0)
    with pytest.raises(DataError, match="not finite"):
        ours.generate_until([request])


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.7},
        {"temperature": 0.7},
        {"num_beams": 3},
        {"repetition_penalty": 1.2},
        {"max_gen_toks": 512},
    ],
)
def test_other_ways_to_generate_are_refused(model, settings):
    ours = kit_lm(lively_model(), pico_tokenizer(chat=True))
    request = Instance("generate_until", {}, ("oak", settings), 0)
    with pytest.raises(RecipeError):
        ours.generate_until([request])


def test_a_stop_that_is_a_special_token_ends_a_reply():
    """Its text never holds the token, so the engine must know the id."""
    tokenizer = pico_tokenizer(chat=True)
    model = lively_model(seed=3)
    lm = kit_lm(model, tokenizer)
    with torch.no_grad():
        # "oak" is followed by <|user|> from now on.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        direction = model.model(torch.tensor([tokenizer("oak")["input_ids"]]))[0][0, -1]
        model.lm_head.weight[258] = 10 * direction / direction.norm()
    [reply] = lm.reply([("oak", {"until": ["<|user|>"], "max_gen_toks": 20})])
    assert (reply, lm.facts[0].output_tokens, lm.facts[0].reply_cut) == ("", 1, False)


def test_lm_eval_knows_the_name_and_keeps_its_own():
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    assert get_model("kit") is KitLM and get_model("hf") is HFLM


def test_lm_eval_makes_it_from_plain_arguments(tasks, model, tmp_path):
    folder = save_pico(tmp_path / "model", model, chat=True)
    ours = evaluated(
        "kit",
        tasks,
        ["pico_choose"],
        model_args={"pretrained": str(folder), "quantization": "32bit"},
        batch_size=4,
    )
    direct = evaluated(kit_lm(model, pico_tokenizer(chat=True)), tasks, ["pico_choose"])
    nats = [[v for v, _ in likelihoods(r, "pico_choose")] for r in (ours, direct)]
    assert nats[0] == pytest.approx(nats[1], abs=1e-3)
    with pytest.raises(RecipeError, match="leave out peft"):
        KitLM.create_from_arg_string(f"pretrained={folder},peft=x")
