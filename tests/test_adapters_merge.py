"""A merge is the stack's arithmetic, verified from disk, done once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from adapter_tools import load, logits, random_lora
from conftest import pico_model, save_pico

from kit.adapters.attach import mounted
from kit.adapters.merge import _verify, merge, read_marker
from kit.adapters.residual import extract_residual
from kit.adapters.stack import Stack, Weighted
from kit.errors import AdapterError, CheckpointError
from kit.models.weights import Checkpoint


@pytest.fixture
def stack(pico_pair, tmp_path):
    cpt = random_lora(pico_pair.base, tmp_path / "cpt", seed=1)
    other = random_lora(pico_pair.base, tmp_path / "other", seed=2, target_modules=["q_proj"])
    return Stack("instruct", (Weighted("cpt@base", cpt, 0.5), Weighted("other", other, -0.25)))


def listing(folder):
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.iterdir()}


def test_merged_equals_mounted(pico_pair, tmp_path, stack):
    seen = []
    report = merge(
        stack,
        checkpoint=pico_pair.instruct,
        out=tmp_path / "m",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (report.changed, report.tensors, report.already_done) == (14, 20, False)
    assert seen[-1] == (20, 20) and report.max_rounding < 1e-6
    assert len(report.warnings) == 2 and "that is a graft" in report.warnings[0]
    with mounted(load(pico_pair.instruct), stack.combined()) as model:
        assert torch.allclose(logits(load(tmp_path / "m")), logits(model), atol=1e-5)
    source, merged = Checkpoint(pico_pair.instruct), Checkpoint(tmp_path / "m")
    assert torch.equal(merged.tensor("model.norm.weight"), source.tensor("model.norm.weight"))
    assert not list(tmp_path.glob(".*"))
    json.dumps(report.to_dict())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_one_cast(pico_pair, tmp_path, stack, dtype):
    exact = merge(stack, checkpoint=pico_pair.instruct, out=tmp_path / "e", dtype="float32")
    report = merge(stack, checkpoint=pico_pair.instruct, out=tmp_path / "m", dtype=dtype)
    wide, narrow = Checkpoint(tmp_path / "e"), Checkpoint(tmp_path / "m")
    kind = getattr(torch, dtype)
    for name in wide.names():
        assert torch.equal(narrow.tensor(name, None), wide.tensor(name).to(kind))
    assert 0 < report.max_rounding <= torch.finfo(kind).eps / 2
    assert exact.max_rounding < 1e-6 and narrow.config["dtype"] == dtype


def test_a_second_merge_does_nothing_and_another_is_refused(pico_pair, tmp_path, stack):
    out = tmp_path / "m"
    first = merge(stack, checkpoint=pico_pair.instruct, out=out)
    before = listing(out)
    second = merge(stack, checkpoint=pico_pair.instruct, out=out)
    assert second == replace(first, already_done=True)
    other = Stack("instruct", stack.adapters[:1])
    for options in (
        {"stack": other, "checkpoint": pico_pair.instruct},
        {"stack": stack, "checkpoint": pico_pair.base},
        {"stack": stack, "checkpoint": pico_pair.instruct, "dtype": "bfloat16"},
    ):
        with pytest.raises(CheckpointError, match="another merge"):
            merge(options.pop("stack"), out=out, **options)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="something else"):
        merge(stack, checkpoint=pico_pair.instruct, out=tmp_path / "used")
    assert listing(out) == before


def test_the_same_adapter_is_not_merged_twice(pico_pair, tmp_path, stack):
    merge(stack, checkpoint=pico_pair.instruct, out=tmp_path / "m1")
    with pytest.raises(AdapterError, match=r"already merged.*other"):
        again = Stack("instruct", stack.adapters[1:])
        merge(again, checkpoint=tmp_path / "m1", out=tmp_path / "m2")
    new = random_lora(pico_pair.base, tmp_path / "new", seed=3)
    merge(
        Stack("instruct", (Weighted("new", new),)),
        checkpoint=tmp_path / "m1",
        out=tmp_path / "m2",
    )
    assert len(read_marker(tmp_path / "m2")["merged_before"]) == 2
    with pytest.raises(AdapterError, match="already merged"):
        merge(stack, checkpoint=tmp_path / "m2", out=tmp_path / "m3")
    assert not (tmp_path / "m3").exists()


def test_base_plus_full_rank_residual_is_instruct_on_linear_layers(pico_pair, tmp_path):
    extract_residual(
        pico_pair.base, pico_pair.instruct, ranks=[64], out=lambda rank: tmp_path / "r"
    )
    residual = Stack("base", (Weighted("residual-r64", tmp_path / "r"),))
    report = merge(residual, checkpoint=pico_pair.base, out=tmp_path / "m")
    assert report.warnings == ()
    merged, instruct = Checkpoint(tmp_path / "m"), Checkpoint(pico_pair.instruct)
    for name in (n for n in merged.names() if "_proj" in n):
        assert torch.allclose(merged.tensor(name), instruct.tensor(name), atol=1e-7)


def test_a_trained_embedding_is_merged_into_the_tied_tensor(pico_pair, tmp_path):
    folder = random_lora(
        pico_pair.base, tmp_path / "a", modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    stack = Stack("instruct", (Weighted("cpt@base", folder, 0.5),))
    folders = {"base": pico_pair.base, "instruct": pico_pair.instruct}
    merge(stack, checkpoint=pico_pair.instruct, out=tmp_path / "m", checkpoints=folders)
    with mounted(load(pico_pair.instruct), stack.combined(folders)) as model:
        assert torch.allclose(logits(load(tmp_path / "m")), logits(model), atol=1e-5)


@pytest.mark.parametrize("case", ["nothing", "keys", "head", "overflow"])
def test_refusals_leave_no_folder(pico_pair, tmp_path, case, stack):
    checkpoint, dtype = pico_pair.instruct, None
    if case == "nothing":
        stack = Stack("instruct", (replace(stack.adapters[0], weight=0.0),))
    elif case == "keys":
        checkpoint = save_pico(tmp_path / "w", pico_model(intermediate_size=96), chat=True)
    elif case == "head":
        folder = random_lora(pico_pair.base, tmp_path / "h", target_modules=["lm_head"])
        stack = Stack("instruct", (Weighted("head", folder),))
    else:
        stack, dtype = Stack("instruct", (replace(stack.adapters[0], weight=1e7),)), "float16"
    with pytest.raises((AdapterError, CheckpointError)):
        merge(stack, checkpoint=checkpoint, out=tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_tied_head_that_is_stored_goes_along(pico_pair, tmp_path):
    from safetensors.torch import load_file, save_file

    both = save_pico(tmp_path / "both", pico_model(), chat=True)
    tensors = load_file(both / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, both / "model.safetensors", metadata={"format": "pt"})
    folder = random_lora(
        both, tmp_path / "a", modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    merge(Stack("base", (Weighted("a", folder),)), checkpoint=both, out=tmp_path / "m")
    merged = Checkpoint(tmp_path / "m")
    assert torch.equal(merged.tensor("lm_head.weight"), merged.tensor("model.embed_tokens.weight"))
    assert not torch.equal(merged.tensor("lm_head.weight"), tensors["lm_head.weight"])


def test_verifying_sees_one_wrong_number(pico_pair, tmp_path, stack):
    from safetensors.torch import load_file, save_file

    merge(stack, checkpoint=pico_pair.instruct, out=tmp_path / "m", dtype="bfloat16")
    source, adapter = Checkpoint(pico_pair.instruct), stack.combined()
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    assert _verify(tmp_path / "m", source, adapter, torch.bfloat16) > 0
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] *= 1.02  # about two units in the last place
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=name):
        _verify(tmp_path / "m", source, adapter, torch.bfloat16)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not those of the source"):
        _verify(tmp_path / "m", source, adapter, torch.bfloat16)
