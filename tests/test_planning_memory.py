"""Memory and time: the arithmetic by hand, and the verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kit.models.pairs import known_pair
from kit.models.shapes import ModelShape
from kit.planning.cards import CARDS, find_card, local_hardware
from kit.planning.memory import (
    NF4_BITS,
    Load,
    estimate_measuring,
    estimate_training,
    judge,
    saved_bytes,
)
from kit.planning.time import generation_time, training_flops, training_time
from kit.units import GIB

LOAD = Load(
    quantization="nf4",
    compute_bytes=2,
    rank=16,
    target_modules=("all-linear",),
    seq_len=1024,
    micro_batch_size=1,
    activation_checkpointing=False,
)


def shape(name="meta-llama/Llama-3.2-1B"):
    pair = known_pair(name)
    assert pair is not None
    return pair.shape


def part(estimate, name):
    (found,) = [p for p in estimate.parts if p.name == name]
    return found.size_bytes


def test_nf4_with_double_quantisation_takes_4_127_bits():
    assert pytest.approx(4.127, abs=0.0005) == NF4_BITS


def test_weights_and_adapter_by_hand():
    model = shape()
    estimate = estimate_training(model, LOAD)
    linears = 16 * (2048 * 2048 * 2 + 512 * 2048 * 2 + 3 * 8192 * 2048)
    assert model.linear_parameters == linears
    assert part(estimate, "frozen linears") == int(linears * NF4_BITS / 8)
    others = 128_256 * 2048 + (16 * 2 + 1) * 2048
    assert part(estimate, "embeddings, norms") == 2 * others
    sizes = 2 * (2048 + 2048) + 2 * (512 + 2048) + 3 * (8192 + 2048)
    assert part(estimate, "adapter") == 16 * 16 * sizes * 18
    assert part(estimate, "loss") == 1024 * 128_256 * 12
    assert part(estimate, "dequantisation") == 8192 * 2048 * 2
    assert estimate.total_bytes == sum(p.size_bytes for p in estimate.parts)


def test_nf4_weights_are_what_bitsandbytes_makes():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")

    weight = torch.randn(512, 1024)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    tensors = [packed, state.absmax, state.state2.absmax]
    held = sum(t.numel() * t.element_size() for t in tensors)
    assert held == int(weight.numel() * NF4_BITS / 8)


def test_logits_never_grow_with_the_batch():
    many = replace(LOAD, micro_batch_size=8)
    assert part(estimate_training(shape(), many), "loss") == 1024 * 128_256 * 12
    few = replace(LOAD, seq_len=256)
    assert part(estimate_training(shape(), few), "loss") == 256 * 128_256 * 12


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_activations_are_what_autograd_saves(micro_batch_size):
    """Counts the tensors that a real forward pass keeps, packed documents' mask included."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
    options = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, options).train()
    adapted.enable_input_require_grads()
    weights = {p.untyped_storage().data_ptr() for p in adapted.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.zeros(micro_batch_size, 256, dtype=torch.long)
    positions = (torch.arange(256) % 100).repeat(micro_batch_size, 1)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16), hooks:
        model.model(input_ids=ids, position_ids=positions, use_cache=False)
    measured = sum(nbytes for nbytes, _ in saved.values())
    load = replace(LOAD, rank=8, seq_len=256, micro_batch_size=micro_batch_size)
    computed = saved_bytes(ModelShape.from_config(config.to_dict()), load, device="cpu")
    assert computed == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"activation_checkpointing": True}, "activations"),
        ({"seq_len": 512}, "activations"),
        ({"rank": 8}, "adapter"),
        ({"target_modules": ("q_proj",)}, "adapter"),
    ],
)
def test_what_saves_memory(change, name):
    before = estimate_training(shape(), LOAD)
    after = estimate_training(shape(), replace(LOAD, **change))
    assert part(after, name) < part(before, name)
    assert after.total_bytes < before.total_bytes


def test_other_precisions():
    model = shape()
    half = estimate_training(model, replace(LOAD, quantization="16bit"))
    assert part(half, "frozen weights") == 2 * model.parameters
    full = replace(LOAD, quantization="32bit", compute_bytes=4)
    estimate = estimate_training(model, full)
    assert part(estimate, "frozen weights") == 4 * model.parameters
    assert part(estimate, "adapter") == model.adapter_parameters(16) * 16


def test_a_verdict_names_the_cheapest_change():
    model, t4 = shape("meta-llama/Llama-3.1-8B"), CARDS["t4"]
    assert judge(model, replace(LOAD, activation_checkpointing=True), t4).fits
    tight = judge(model, LOAD, t4)
    assert not tight.fits and tight.change == "it fits with train.activation_checkpointing=true"
    assert "does not fit T4" in tight.line() and tight.change in tight.line()
    wide = judge(shape(), replace(LOAD, micro_batch_size=32), t4)
    assert wide.change == "it fits with train.micro_batch_size=4"
    sft = replace(LOAD, section="sft", micro_batch_size=32)
    assert judge(shape(), sft, t4).change == "it fits with sft.micro_batch_size=4"
    plain = judge(model, replace(LOAD, quantization="16bit", micro_batch_size=8), t4)
    assert "models.quantization=nf4" in plain.change and " and " in plain.change
    tiny = judge(model, LOAD, replace(t4, usable_bytes=GIB))
    assert "smaller model" in tiny.change


def test_each_change_that_is_advised_is_enough():
    import re

    model = shape("meta-llama/Llama-3.2-3B")
    for gib in range(4, 24):
        card = replace(CARDS["t4"], usable_bytes=gib * GIB)
        load = replace(LOAD, quantization="16bit", micro_batch_size=4, rank=128, seq_len=2048)
        verdict = judge(model, load, card)
        for key, value in re.findall(r"\w+\.(\w+)=(\w+)", verdict.change):
            typed = {"true": True, "nf4": "nf4"}.get(value) or int(value)
            load = replace(load, **{key: typed})
        if "no setting" not in verdict.change:
            assert judge(model, load, card).fits, (gib, verdict.change)


def test_measuring_needs_keys_and_values():
    model = shape()
    estimate = estimate_measuring(
        model, quantization="16bit", compute_bytes=2, batch_size=4, row_tokens=100
    )
    assert part(estimate, "keys and values") == 400 * 2 * 16 * 8 * 64 * 2


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("T4", "T4"),
        ("Tesla T4, 15.0 GiB", "T4"),
        ("NVIDIA GeForce RTX 3060, 12.0 GiB", "RTX 3060"),
        ("3060", "RTX 3060"),
        ("NVIDIA GeForce RTX 4060 Ti, 16.0 GiB", "RTX 4060 Ti 16 GB"),
        ("rtx4090", "RTX 4090"),
        ("rtx-4060-ti 16gb", "RTX 4060 Ti 16 GB"),
        ("4060ti", "RTX 4060 Ti 16 GB"),
        ("4090", "RTX 4090"),
        ("NVIDIA L4, 22.5 GiB", "L4"),
        ("NVIDIA A100-SXM4-80GB, 80.0 GiB", "A100 80 GB"),
        ("a100-40gb", "A100 40 GB"),
        ("A100", "A100 40 GB"),
        ("NVIDIA H100 80GB HBM3", "H100 80 GB"),
    ],
)
def test_cards_are_told_by_name(text, name):
    assert find_card(text).name == name


def test_a_card_of_the_table_with_other_memory_is_another_card():
    assert find_card("NVIDIA GeForce RTX 4060 Ti, 8.0 GiB").usable_bytes < 8 * GIB
    assert find_card("NVIDIA GeForce RTX 3060 Laptop GPU, 6.0 GiB").usable_bytes < 6 * GIB


def test_other_devices():
    cpu = find_card("cpu 4 cores, 8 GiB")
    assert cpu.device == "cpu" and cpu.usable_bytes == 8 * GIB and "guess" in cpu.assumed
    assert find_card("CPU, 2 threads").flops == 2 * 60e9
    unknown = find_card("NVIDIA H200, 139.8 GiB")
    assert unknown.rate is None and unknown.usable_bytes > 130 * GIB
    assert find_card("24 GB").usable_bytes > 23 * GIB
    with pytest.raises(ValueError, match="names no size"):
        find_card("Voodoo 2")
    assert find_card(local_hardware()).usable_bytes > 0


def test_flops_by_hand():
    model = shape()
    per_token = training_flops(model, LOAD, tokens=1)
    weights = model.linear_parameters + 128_256 * 2048
    attention = 4 * 1024 * 2048 * 16
    expected = 4 * weights + 6 * model.adapter_parameters(16) + 3 * attention
    assert per_token == expected + 2 * 128_256 * 2048
    again = training_flops(model, replace(LOAD, activation_checkpointing=True), tokens=1)
    extra = 2 * model.linear_parameters + 2 * model.adapter_parameters(16) + attention
    assert again - per_token == extra


def test_time_grows_with_tokens_and_needs_a_rate():
    one = training_time(shape(), LOAD, CARDS["t4"], tokens=1_000_000)
    two = training_time(shape(), LOAD, CARDS["t4"], tokens=2_000_000)
    assert one is not None and two is not None
    assert two.seconds == pytest.approx(2 * one.seconds)
    assert 60 < one.seconds < 3600 and "assumed" in one.how
    assert training_time(shape(), LOAD, find_card("48 GiB"), tokens=1) is None
    reply = generation_time(shape(), CARDS["t4"], rows=33, new_tokens=10, batch_size=16)
    assert reply is not None and "30 steps" in reply.how
