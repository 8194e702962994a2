"""PEFT's files in and out, and the arithmetic of low-rank deltas."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from adapter_tools import load, logits, random_lora
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file

from kit.adapters.algebra import concatenated, dense_delta, scaled, squared_norm, truncated
from kit.adapters.tensors import (
    Adapter,
    LowRank,
    Sidecar,
    adapter_fingerprint,
    read_adapter,
    read_sidecar,
    write_adapter,
    write_sidecar,
)
from kit.errors import AdapterError


def random_pair(seed: int, *, out: int = 12, inner: int = 9, rank: int = 3, scale: float = 0.7):
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(rank, inner, generator=generator),
        torch.randn(out, rank, generator=generator),
        scale,
    )


PATTERNS = {"rank_pattern": {"q_proj": 2, r"layers\.1.*up_proj": 6}, "alpha_pattern": {"k_proj": 3}}


@pytest.mark.parametrize("rslora", [False, True])
def test_reading_gives_peft_s_own_delta(pico_pair, tmp_path, rslora):
    folder = random_lora(pico_pair.base, tmp_path / "a", use_rslora=rslora, **PATTERNS)
    adapter = read_adapter(folder)
    theirs = PeftModel.from_pretrained(load(pico_pair.base), folder)
    modules = {
        name.removeprefix("base_model.model."): module
        for name, module in theirs.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(modules) == set(adapter.deltas)
    for name, module in modules.items():
        found = dense_delta(adapter.deltas[name])
        assert torch.allclose(found, module.get_delta_weight("default"), atol=1e-6)
    assert adapter.deltas["model.layers.1.mlp.up_proj"].rank == 6


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_reads_what_is_written(pico_pair, tmp_path, rslora):
    folder = random_lora(pico_pair.base, tmp_path / "a", use_rslora=rslora, **PATTERNS)
    write_adapter(tmp_path / "b", read_adapter(folder), base_model=str(pico_pair.base))
    first = logits(PeftModel.from_pretrained(load(pico_pair.base), folder))
    second = logits(PeftModel.from_pretrained(load(pico_pair.base), tmp_path / "b"))
    assert (first - logits(load(pico_pair.base))).abs().max() > 1e-2
    assert torch.allclose(first, second, atol=1e-5)
    again = read_adapter(tmp_path / "b")
    assert all(pair.scale == 1.0 for pair in again.deltas.values())


def test_peft_reads_replaced_tensors(pico_pair, tmp_path):
    folder = random_lora(pico_pair.base, tmp_path / "a", modules_to_save=["norm"])
    adapter = read_adapter(folder)
    # PEFT matches the end of a name: `norm` is every layer norm too.
    assert len(adapter.replaced) == 5 and "model.norm.weight" in adapter.replaced
    write_adapter(tmp_path / "b", adapter, base_model=str(pico_pair.base))
    first = logits(PeftModel.from_pretrained(load(pico_pair.base), folder))
    second = logits(PeftModel.from_pretrained(load(pico_pair.base), tmp_path / "b"))
    assert torch.allclose(first, second, atol=1e-5)


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "LOHA"},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "lora_ga"},
        {"init_lora_weights": "something-new"},
        {"bias": "all"},
        {"lora_bias": True},
        {"trainable_token_indices": [1]},
        {"r": 5},
    ],
)
def test_what_is_no_plain_delta_is_refused(pico_pair, tmp_path, changes):
    folder = random_lora(pico_pair.base, tmp_path / "a")
    edit_config(folder, **changes)
    with pytest.raises(AdapterError):
        read_adapter(folder)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva"])
def test_inits_that_leave_the_weight_alone_are_read(pico_pair, tmp_path, init):
    folder = random_lora(pico_pair.base, tmp_path / "a")
    edit_config(folder, init_lora_weights=init)
    assert read_adapter(folder).info.init == str(init).lower()


@pytest.mark.parametrize("spoil", ["drop_b", "rename", "prefix", "shape", "none", "pickle"])
def test_spoiled_tensors_are_refused(pico_pair, tmp_path, spoil):
    folder = random_lora(pico_pair.base, tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(k for k in tensors if "lora_B" in k)
    value = tensors.pop(key)
    if spoil == "rename":
        tensors[key.replace("lora_B", "lora_embedding_B")] = value
    elif spoil == "prefix":
        tensors[key.removeprefix("base_model.")] = value
    elif spoil == "shape":
        tensors[key] = value[:, :2].contiguous()
    save_file({} if spoil == "none" else tensors, path)
    if spoil == "pickle":
        path.unlink()
        torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(AdapterError):
        read_adapter(folder)


def test_sidecar_round_trip_and_fingerprint(pico_pair, tmp_path):
    folder = random_lora(pico_pair.base, tmp_path / "a", sidecar=False)
    assert read_sidecar(folder) is None
    sidecar = Sidecar(
        base_name="b", base_fingerprint="f", quantization="nf4", init_seed=3, extra={"x": 1}
    )
    write_sidecar(folder, sidecar)
    assert read_sidecar(folder) == sidecar
    (folder / "kit_adapter.json").write_text('{"schema_version": 99}')
    with pytest.raises(AdapterError, match="schema_version"):
        read_sidecar(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert adapter_fingerprint(tmp_path / "copy") == adapter_fingerprint(folder)
    edit_config(tmp_path / "copy", lora_alpha=9)
    assert adapter_fingerprint(tmp_path / "copy") != adapter_fingerprint(folder)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.integers(1, 12), st.floats(-2, 2, allow_subnormal=False)),
        min_size=1,
        max_size=4,
    )
)
def test_concatenated_is_the_sum_of_the_deltas(parts):
    pairs = [(random_pair(seed, rank=rank), weight) for seed, rank, weight in parts]
    adapters = [(Adapter(deltas={"m": pair}), weight) for pair, weight in pairs]
    total = sum(weight * dense_delta(pair) for pair, weight in pairs)
    joined = concatenated(adapters)
    kept = [pair for pair, weight in pairs if weight != 0]
    if not kept:
        assert not joined.deltas
        return
    assert joined.deltas["m"].rank == sum(pair.rank for pair in kept)
    assert torch.allclose(dense_delta(joined.deltas["m"]), total, atol=1e-4)


def test_concatenated_keeps_modules_apart_and_refuses_other_shapes():
    first = Adapter(deltas={"m": random_pair(0), "n": random_pair(1)})
    second = Adapter(deltas={"n": random_pair(2)})
    joined = concatenated([(first, 1.0), (second, -1.0)])
    assert torch.equal(dense_delta(joined.deltas["m"]), dense_delta(first.deltas["m"]))
    with pytest.raises(AdapterError, match="shapes"):
        concatenated([(first, 1.0), (Adapter(deltas={"m": random_pair(0, out=5)}), 1.0)])


def test_weights_on_replaced_tensors():
    adapter = Adapter(deltas={"m": random_pair(0)}, replaced={"t": torch.ones(3)})
    assert scaled(adapter, 1.0).replaced
    assert not scaled(adapter, 0.0).replaced and not scaled(adapter, 0.0).deltas
    with pytest.raises(AdapterError, match="replaced"):
        scaled(adapter, 0.5)
    with pytest.raises(AdapterError, match="two adapters replace"):
        concatenated([(adapter, 1.0), (adapter, 1.0)])
    with pytest.raises(AdapterError, match="weight"):
        scaled(adapter, float("nan"))
    summed = concatenated([(Adapter(added={"t": torch.ones(3)}), 0.5)] * 2)
    assert torch.equal(summed.added["t"], torch.ones(3))


def test_truncation_is_exact_at_full_rank_and_best_below():
    pair = random_pair(0, rank=6)
    adapter = Adapter(deltas={"m": pair})
    dense = dense_delta(pair)
    wide = concatenated([(adapter, 0.5), (adapter, 0.5)])
    assert wide.deltas["m"].rank == 12
    assert torch.allclose(dense_delta(truncated(wide, 6).deltas["m"]), dense, atol=1e-5)
    assert truncated(adapter, 6).deltas["m"] is pair
    u, s, vh = torch.linalg.svd(dense.double())
    best = (u[:, :2] * s[:2]) @ vh[:2]
    cut = truncated(adapter, 2).deltas["m"]
    assert cut.rank == 2
    assert torch.allclose(dense_delta(cut).double(), best, atol=1e-5)
    assert squared_norm(cut) == pytest.approx(float(s[:2].square().sum()), rel=1e-5)
    with pytest.raises(AdapterError):
        truncated(adapter, 0)


def test_differences_have_no_peft_form(tmp_path):
    with pytest.raises(AdapterError, match="differences"):
        write_adapter(tmp_path, Adapter(added={"t": torch.ones(2)}), base_model="b")
