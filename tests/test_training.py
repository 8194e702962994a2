"""Training on packed blocks and on chats: gradients, tokens, schedule, precision."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import pico_tokenizer

from kit.adapters.attach import attach_lora, check_gradients
from kit.data.batches import BlockDataset, collate
from kit.data.budget import blocks_for_budget
from kit.data.packing import pack
from kit.errors import DataError, TrainingError
from kit.hardware import Hardware
from kit.models.loading import load_model
from kit.models.logprobs import chunked_cross_entropy, final_hidden, projector, token_nll
from kit.models.tokenizer import load_tokenizer
from kit.runs.records import read_jsonl
from kit.training.cpt import train_cpt
from kit.training.options import BatchSize, LoraOptions, Schedule
from kit.training.sft import train_sft

TEXTS = [f"Document {n} says that number {n} is followed by {n + 1}." * 2 for n in range(40)]
CHATS = [
    [
        {"role": "user", "content": f"What follows {n}?"},
        {"role": "assistant", "content": f"{n + 1} follows {n}."},
    ]
    for n in range(24)
]


def hardware(dtype="float32"):
    return Hardware(
        device="cpu", name="CPU", memory_bytes=1 << 33, compute_dtype=dtype, reason="a test"
    )


@pytest.fixture(scope="module")
def blocks():
    tokenizer = pico_tokenizer(chat=False)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    return pack(ids, seq_len=128, eos_id=256, pad_id=257, seed=0)


def train(folder, out, blocks, *, seed=0, tokens=6000, quantization="nf4", dtype="float32", **how):
    plan = blocks_for_budget(blocks, tokens=tokens, order_seed=seed)
    dataset = BlockDataset(blocks, plan=plan)
    per_block = blocks.loss_tokens()
    rows = [int(per_block[dataset.block_index(i)]) for i in range(len(dataset) - 1)]
    out.mkdir(parents=True)
    return train_cpt(
        load_model(folder, quantization=quantization, hardware=hardware(dtype)),
        dataset,
        out,
        collate=collate,
        row_tokens=[*rows, plan.last_block_loss_tokens],
        hardware=hardware(dtype),
        seed=seed,
        lora=LoraOptions(rank=8),
        schedule=Schedule(learning_rate=how.pop("learning_rate", 5e-3)),
        batch=BatchSize(micro_batch_size=2, tokens_per_step=512, **how),
    )


@pytest.mark.parametrize("quantization", ["nf4", "16bit", "32bit"])
def test_the_loss_falls_and_every_token_is_counted(tmp_path, pico_pair, blocks, quantization):
    dtype = "bfloat16" if quantization == "16bit" else "float32"
    result = train(pico_pair.base, tmp_path / "a", blocks, quantization=quantization, dtype=dtype)
    assert result.loss_tokens == 6000, "the budget is met exactly"
    assert result.last_loss < result.first_loss - 0.5
    rows = read_jsonl(tmp_path / "a" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, result.num_steps + 1))
    assert rows[-1]["train/tokens"] == 6000
    assert rows[0]["train/learning_rate"] > 0, "the first update does something"


def test_the_first_logged_loss_is_the_models_own(tmp_path, pico_pair, blocks):
    result = train(pico_pair.base, tmp_path / "a", blocks, tokens=500, quantization="32bit")
    model = load_model(pico_pair.base, quantization="32bit", hardware=hardware())
    dataset = BlockDataset(blocks, plan=blocks_for_budget(blocks, tokens=500, order_seed=0))
    total, count = 0.0, 0
    for index in range(len(dataset)):
        row = collate([dataset[index]])
        nll = token_nll(model, row["input_ids"], position_ids_BT=row["position_ids"])
        mask = row["labels"] != -100
        total, count = total + float(nll[mask].sum()), count + int(mask.sum())
    assert count == 500
    assert result.num_steps == 1
    assert result.first_loss == pytest.approx(total / count, abs=2e-4)


def test_same_seed_same_adapter_other_seed_another(tmp_path, pico_pair, blocks):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)  # the caller's random state must not matter
        train(pico_pair.base, tmp_path / name, blocks, seed=seed, tokens=1500)
    read = [(tmp_path / n / "adapter" / "adapter_model.safetensors").read_bytes() for n in "abc"]
    assert read[0] == read[1]
    assert read[0] != read[2]


def test_micro_batch_and_accumulation_do_not_change_the_loss(tmp_path, pico_pair, blocks):
    plan = blocks_for_budget(blocks, tokens=2000, order_seed=0)
    dataset = BlockDataset(blocks, plan=plan)
    per_block = blocks.loss_tokens()
    rows = [int(per_block[dataset.block_index(i)]) for i in range(len(dataset) - 1)]
    found = []
    for micro in (1, 4):
        out = tmp_path / str(micro)
        out.mkdir()
        result = train_cpt(
            load_model(pico_pair.base, quantization="32bit", hardware=hardware()),
            dataset,
            out,
            collate=collate,
            row_tokens=[*rows, plan.last_block_loss_tokens],
            hardware=hardware(),
            seed=0,
            lora=LoraOptions(rank=8),
            batch=BatchSize(micro_batch_size=micro, tokens_per_step=512),
        )
        found.append((result.first_loss, result.last_loss))
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_activation_checkpointing_is_the_same_training(tmp_path, pico_pair, blocks):
    plain = train(pico_pair.base, tmp_path / "a", blocks, tokens=1500)
    again = train(
        pico_pair.base, tmp_path / "b", blocks, tokens=1500, activation_checkpointing=True
    )
    assert again.last_loss == pytest.approx(plain.last_loss, abs=1e-4)


def test_trained_weights_are_float32_whatever_the_base(tmp_path, pico_pair, blocks):
    from safetensors.torch import load_file

    train(pico_pair.base, tmp_path / "a", blocks, tokens=600, dtype="bfloat16")
    tensors = load_file(tmp_path / "a" / "adapter" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert len(tensors) == 2 * 14
    rounded = [torch.equal(t, t.bfloat16().float()) for t in tensors.values()]
    assert not any(rounded), "an update was rounded to 16 bit"


def test_gradients_flow_at_the_right_times_and_after_an_evaluation(pico_pair):
    """lora_B at the first backward, lora_A after the first update, both after an evaluation."""
    model = load_model(pico_pair.base, quantization="nf4", hardware=hardware("bfloat16"))
    peft_model = attach_lora(
        model, rank=4, alpha=8, rslora=False, dropout=0.0, target_modules="all-linear", seed=0
    )
    ids_BT = torch.randint(0, 256, (2, 32))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def backward():
        optimizer.zero_grad()
        causal = peft_model.get_base_model()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total, _ = chunked_cross_entropy(
                final_hidden(causal, ids_BT), ids_BT, project=projector(causal)
            )
        total.backward()

    backward()
    check_gradients(peft_model, first_update_done=False)
    with pytest.raises(TrainingError, match="exactly 0"):
        check_gradients(peft_model, first_update_done=True)  # B is still 0, so A has none
    optimizer.step()
    backward()
    check_gradients(peft_model, first_update_done=True)
    for _ in range(2):
        peft_model.eval()
        token_nll(peft_model.get_base_model(), ids_BT)
        peft_model.train()
        backward()
        check_gradients(peft_model, first_update_done=True)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path, pico_pair, blocks):
    with pytest.raises(TrainingError, match="loss is"):
        train(pico_pair.base, tmp_path / "a", blocks, quantization="32bit", learning_rate=1e30)


def test_schedule():
    schedule = Schedule(warmup_share=0.1, shape="cosine")
    factors = [schedule.factor(step, num_steps=100) for step in range(100)]
    assert factors[0] > 0 and factors[10] == 1.0 and 0 < factors[-1] < 0.01
    assert all(a < b for a, b in itertools.pairwise(factors[:11]))
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert Schedule(warmup_share=0, shape="constant").factor(0, num_steps=5) == 1.0
    assert Schedule(warmup_share=0, shape="linear").factor(4, num_steps=5) == pytest.approx(0.2)


def tune(pico_pair, out, start_from=None, **how):
    out.mkdir(parents=True)
    return train_sft(
        load_model(pico_pair.base, quantization="nf4", hardware=hardware()),
        load_tokenizer(pico_pair.instruct),
        CHATS,
        out,
        hardware=hardware(),
        seed=0,
        start_from=start_from,
        lora=LoraOptions(rank=8),
        schedule=Schedule(learning_rate=5e-3),
        **how,
    )


def test_sft_counts_the_replys_tokens_and_keeps_float32(tmp_path, pico_pair):
    from safetensors.torch import load_file

    result = tune(pico_pair, tmp_path / "a", epochs=3)
    replies = [len(chat[-1]["content"]) + 1 for chat in CHATS]  # bytes, and the end of turn
    assert result.loss_tokens == 3 * sum(replies)
    assert result.num_steps == 9
    assert result.last_loss < result.first_loss - 0.5
    tensors = load_file(tmp_path / "a" / "adapter" / "adapter_model.safetensors")
    assert not any(torch.equal(t, t.bfloat16().float()) for t in tensors.values())


def test_sft_goes_on_with_an_adapter_bit_for_bit(tmp_path, pico_pair, blocks):
    """With a rate that changes nothing, what comes out is what went in: no cast on the way."""
    from safetensors.torch import load_file

    train(pico_pair.base, tmp_path / "cpt", blocks, tokens=1500)
    before = tmp_path / "cpt" / "adapter"
    out = tmp_path / "sft"
    out.mkdir()
    train_sft(
        load_model(pico_pair.base, quantization="nf4", hardware=hardware()),
        load_tokenizer(pico_pair.instruct),
        CHATS,
        out,
        hardware=hardware(),
        seed=0,
        start_from=before,
        schedule=Schedule(learning_rate=1e-30),
    )
    old = load_file(before / "adapter_model.safetensors")
    new = load_file(out / "adapter" / "adapter_model.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_chats_that_do_not_fit_are_left_out_never_cut(tmp_path, pico_pair, caplog):
    with pytest.raises(DataError, match="none of the 24 chats"):
        tune(pico_pair, tmp_path / "a", max_length=10)
    longest = max(len(c[0]["content"] + c[1]["content"]) for c in CHATS) + 4
    result = tune(pico_pair, tmp_path / "b", max_length=longest - 1)
    assert "were left out" in caplog.text
    kept = [
        len(c[1]["content"]) + 1
        for c in CHATS
        if len(c[0]["content"] + c[1]["content"]) < longest - 4
    ]
    assert result.loss_tokens == sum(kept)
