"""Placing adapters: PEFT parity, bit-exact restoring, NF4, and gradients that flow."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from adapter_tools import IDS, load, logits, random_lora
from conftest import pico_model
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from kit.adapters.attach import (
    attach_lora,
    check_gradients,
    keep_canonical_4bit_layout,
    mount,
    mounted,
    unmount,
)
from kit.adapters.tensors import Adapter, LowRank, read_adapter
from kit.errors import AdapterError, TrainingError

LORA = {"rank": 4, "alpha": 8.0, "rslora": True, "dropout": 0.0, "target_modules": "all-linear"}


def load_nf4(folder, dtype=torch.float32):
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=dtype, device_map="cpu"
    ).eval()


def dequantised_copy(model, folder):
    """A plain model with the numbers of an NF4 one."""
    from bitsandbytes.functional import dequantize_4bit

    plain = load(folder)
    modules = dict(model.named_modules())
    for name, module in plain.named_modules():
        source = modules[name]
        if isinstance(module, nn.Linear) and hasattr(source.weight, "quant_state"):
            value = dequantize_4bit(source.weight.data, source.weight.quant_state)
            module.weight.data = value.float()
    return plain


def loss_of(model):
    return model(input_ids=IDS, labels=IDS, use_cache=False).loss


def test_attach_draws_from_its_seed_alone():
    torch.manual_seed(11)
    first = attach_lora(pico_model(), **LORA, seed=5)
    torch.manual_seed(12)
    model = pico_model()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = attach_lora(model, **LORA, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    third = attach_lora(pico_model(), **LORA, seed=6)
    weights = [
        {n: p for n, p in m.named_parameters() if "lora_A" in n} for m in (first, second, third)
    ]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert not any(torch.equal(weights[0][n], weights[2][n]) for n in weights[0])


def test_attach_trains_float32_and_nothing_else():
    model = attach_lora(pico_model().to(torch.bfloat16), **LORA, seed=0)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert len(trainable) == 2 * 7 * 2
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters() if not p.requires_grad)


def test_every_pattern_must_match():
    chosen = {**LORA, "target_modules": ["q_proj", "layers.1.mlp.up_proj"]}
    model = attach_lora(pico_model(), **chosen, seed=0)
    adapted = {n.split(".lora_A")[0] for n, _ in model.named_parameters() if "lora_A" in n}
    assert len(adapted) == 3
    for wrong in (["q_proj", "gate_prj"], [], "all"):
        with pytest.raises(AdapterError) as caught:
            attach_lora(pico_model(), **{**LORA, "target_modules": wrong}, seed=0)
    with pytest.raises(AdapterError, match="gate_proj") as caught:
        attach_lora(pico_model(), **{**LORA, "target_modules": ["gate_prj"]}, seed=0)
    assert "gate_prj" in caught.value.what
    with pytest.raises(AdapterError, match="already"):
        attach_lora(model, **LORA, seed=0)


def test_mount_equals_peft_and_unmount_restores_every_bit(pico_pair, tmp_path):
    folder = random_lora(pico_pair.base, tmp_path / "a", modules_to_save=["norm"])
    theirs = logits(PeftModel.from_pretrained(load(pico_pair.base), folder))
    model = load(pico_pair.base)
    before, weights = logits(model), copy.deepcopy(model.state_dict())
    for _ in range(2):
        assert mount(model, read_adapter(folder)) == 14 + 5
        assert torch.allclose(logits(model), theirs, atol=1e-5)
        assert not torch.equal(logits(model), before)
        with pytest.raises(AdapterError, match="mounted already"):
            mount(model, None)
        unmount(model)
        assert torch.equal(logits(model), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(AdapterError, match="nothing is mounted"):
        unmount(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mount_rounds_as_peft_does(pico_pair, tmp_path, dtype):
    folder = random_lora(pico_pair.base, tmp_path / "a")
    theirs = logits(PeftModel.from_pretrained(load(pico_pair.base).to(dtype), folder))
    with mounted(load(pico_pair.base).to(dtype), read_adapter(folder)) as model:
        found = logits(model)
    assert torch.allclose(found, theirs, atol=1e-5 if dtype == torch.float32 else 1e-2)


def test_a_tied_embedding_goes_with_its_head(pico_pair):
    model = load(pico_pair.base)
    before = logits(model)
    change = 0.1 * torch.ones_like(model.model.embed_tokens.weight)
    with mounted(model, Adapter(added={"model.embed_tokens.weight": change})):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert not torch.equal(logits(model), before)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model), before)


def test_a_new_adapter_can_be_trained_on_a_mounted_one(pico_pair, tmp_path):
    adapter = read_adapter(random_lora(pico_pair.base, tmp_path / "a"))
    with mounted(load(pico_pair.base), adapter) as model:
        before = logits(model)
        wrapped = attach_lora(model, **LORA, seed=0)
        assert torch.equal(logits(wrapped), before)
        wrapped.train()
        loss_of(wrapped).backward()
        check_gradients(wrapped, first_update_done=False)


@pytest.mark.parametrize("init", [True, False, "gaussian"])
def test_plain_inits_leave_the_frozen_weight_alone(init):
    from peft import LoraConfig, get_peft_model

    model = pico_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    config = LoraConfig(target_modules="all-linear", init_lora_weights=init)
    for name, parameter in get_peft_model(model, config).named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, before[plain])


def pair_of(out: int, inner: int) -> LowRank:
    return LowRank(torch.ones(2, inner), torch.ones(out, 2))


@pytest.mark.parametrize(
    "adapter",
    [
        Adapter(deltas={"model.layers.9.self_attn.q_proj": pair_of(64, 64)}),
        Adapter(deltas={"model.layers.0.self_attn.q_proj": pair_of(64, 32)}),
        Adapter(deltas={"model.norm": pair_of(64, 64)}),
        Adapter(replaced={"model.norm.bias": torch.ones(64)}),
        Adapter(added={"model.norm.weight": torch.ones(65)}),
    ],
)
def test_a_key_that_does_not_fit_changes_nothing(pico_pair, adapter):
    model = load(pico_pair.base)
    before = logits(model)
    with pytest.raises(AdapterError, match="do not fit"):
        mount(model, adapter)
    assert torch.equal(logits(model), before)
    mount(model, None)
    unmount(model)


def test_mount_on_nf4_equals_mount_on_its_dequantised_copy(pico_pair, tmp_path):
    adapter = read_adapter(random_lora(pico_pair.base, tmp_path / "a"))
    model = load_nf4(pico_pair.base)
    keep_canonical_4bit_layout(model)
    plain = dequantised_copy(model, pico_pair.base)
    before = logits(model)
    with mounted(model, adapter), mounted(plain, adapter):
        assert torch.allclose(logits(model), logits(plain), atol=1e-4)
        assert (logits(model) - before).abs().max() > 1e-2
    assert torch.equal(logits(model), before)
    with pytest.raises(AdapterError, match="quantised"):
        mount(model, Adapter(added={"model.layers.0.mlp.up_proj.weight": torch.ones(4096, 1)}))


def test_training_gradients_survive_an_evaluation_on_nf4(pico_pair):
    model = attach_lora(load_nf4(pico_pair.base, torch.bfloat16), **LORA, seed=0)
    assert keep_canonical_4bit_layout(model) == 14

    def gradients():
        model.zero_grad()
        loss_of(model).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    # The trap is in eval mode, where some evaluate between training steps without switching back.
    first = gradients()
    check_gradients(model, first_update_done=False)
    model.eval()
    logits(model)
    second = gradients()
    check_gradients(model, first_update_done=False)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_packed_layer_is_unpacked(pico_pair):
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes packs on CPUs with AVX512-BF16 alone")
    model = load_nf4(pico_pair.base, torch.bfloat16)
    layer = model.model.layers[0].self_attn.q_proj
    canonical = layer.weight.data.clone()
    logits(model)
    assert layer.weight.quant_state.packing_format_for_cpu
    keep_canonical_4bit_layout(model)
    logits(model)
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    assert torch.equal(layer.weight.data.reshape(-1), canonical.reshape(-1))


def test_without_the_guard_the_trap_is_real_and_is_caught(pico_pair):
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes packs on CPUs with AVX512-BF16 alone")
    model = attach_lora(load_nf4(pico_pair.base, torch.bfloat16), **LORA, seed=0)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    model.eval()
    logits(model)
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch may warn, once, of the operator without autograd
        loss_of(model).backward()
    with pytest.raises(TrainingError, match="do not learn"):
        check_gradients(model, first_update_done=False)


def test_check_gradients_before_and_after_the_first_update():
    model = attach_lora(pico_model(), **LORA, seed=0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss_of(model).backward()
    check_gradients(model, first_update_done=False)
    with pytest.raises(TrainingError, match="lora_A"):
        check_gradients(model, first_update_done=True)
    optimizer.step()
    optimizer.zero_grad()
    loss_of(model).backward()
    check_gradients(model, first_update_done=True)


@pytest.mark.parametrize("how", ["frozen", "zero", "missing", "nan"])
def test_check_gradients_names_the_module(how):
    model = attach_lora(pico_model(), **LORA, seed=0)
    loss_of(model).backward()
    name, parameter = next((n, p) for n, p in model.named_parameters() if "lora_B" in n)
    if how == "frozen":
        parameter.requires_grad_(False)
    elif how == "missing":
        parameter.grad = None
    else:
        parameter.grad.fill_(0.0 if how == "zero" else float("nan"))
    with pytest.raises(TrainingError, match="1 of 14") as caught:
        check_gradients(model, first_update_done=False)
    assert name in str(caught.value)
    with pytest.raises(TrainingError, match="no adapter"):
        check_gradients(pico_model(), first_update_done=False)
