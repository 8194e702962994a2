"""Checkpoints: what is written is what is read, in one file or in shards; pickles are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import pico_model, save_pico
from safetensors.torch import load_file, save_file

from kit.errors import CheckpointError
from kit.models.weights import Checkpoint, weights_fingerprint, write_checkpoint


def copy_of(folder, out, **options):
    source = Checkpoint(folder)
    tensors = ((name, source.tensor(name)) for name in source.names())
    write_checkpoint(out, tensors, like=source, **options)
    return Checkpoint(out)


def test_reads_what_safetensors_reads(pico_pair):
    checkpoint = Checkpoint(pico_pair.base)
    dense = load_file(pico_pair.base / "model.safetensors")
    assert checkpoint.names() == tuple(sorted(dense))
    for name, value in dense.items():
        assert checkpoint.shape(name) == tuple(value.shape)
        assert torch.equal(checkpoint.tensor(name), value)


def test_a_head_that_is_not_stored_is_the_embedding(pico_pair):
    checkpoint = Checkpoint(pico_pair.base)
    assert checkpoint.tied
    assert "lm_head.weight" not in checkpoint
    head = checkpoint.tensor("lm_head.weight")
    assert torch.equal(head, checkpoint.tensor("model.embed_tokens.weight"))
    with pytest.raises(CheckpointError, match="no tensor"):
        checkpoint.tensor("lm_head.bias")


def test_an_untied_head_is_its_own(tmp_path):
    model = pico_model(tie_word_embeddings=False)
    checkpoint = Checkpoint(save_pico(tmp_path / "m", model, chat=False))
    assert not checkpoint.tied
    assert checkpoint.head_name == "lm_head.weight"
    assert checkpoint.distinct_names() == checkpoint.names()


def test_shards_hold_the_same_numbers_and_load(pico_pair, tmp_path):
    from transformers import AutoModelForCausalLM

    out = copy_of(pico_pair.instruct, tmp_path / "out", max_shard_bytes=100_000)
    shards = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    source = Checkpoint(pico_pair.instruct)
    assert out.names() == source.names()
    assert all(torch.equal(out.tensor(n), source.tensor(n)) for n in source.names())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.model.norm.weight, source.tensor("model.norm.weight"))


def test_metadata_is_copied_and_the_config_tells_the_new_dtype(pico_pair, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(pico_pair.instruct, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": {"quant_method": "gguf"}, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("about another model")
    (folder / "optimizer.pt").write_bytes(b"")
    out = copy_of(folder, tmp_path / "out", dtype=torch.bfloat16)
    assert out.config["dtype"] == "bfloat16"
    assert not {"quantization_config", "torch_dtype"} & set(out.config)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    assert not {"README.md", "optimizer.pt"} & names
    assert all(out.dtype(name) == torch.bfloat16 for name in out.names())


def test_without_a_dtype_each_tensor_keeps_its_own(tmp_path):
    model = pico_model().to(torch.bfloat16)
    folder = save_pico(tmp_path / "m", model, chat=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    out = copy_of(folder, tmp_path / "out")
    assert out.dtype("model.norm.weight") == torch.float32
    assert out.dtype("model.embed_tokens.weight") == torch.bfloat16
    assert out.config["dtype"] == "bfloat16"


def test_pickles_are_refused_with_the_reason(pico_pair, tmp_path):
    shutil.copy(pico_pair.base / "config.json", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle.*can run any code"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("spoil", ["nothing", "config", "shard", "cut"])
def test_broken_folders_are_refused(pico_pair, tmp_path, spoil):
    folder = tmp_path / "m"
    copy_of(pico_pair.base, folder, max_shard_bytes=100_000)
    if spoil == "nothing":
        shutil.rmtree(folder)
    elif spoil == "config":
        (folder / "config.json").write_text("{")
    else:
        shard = sorted(folder.glob("*.safetensors"))[0]
        data = shard.read_bytes()
        shard.unlink()
        if spoil == "cut":
            shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError):
        Checkpoint(folder)


def test_a_failed_write_leaves_nothing(pico_pair, tmp_path):
    source = Checkpoint(pico_pair.base)

    def tensors():
        yield "a", torch.ones(3)
        yield "b", torch.tensor([70000.0])

    with pytest.raises(CheckpointError, match="float16"):
        write_checkpoint(tmp_path / "out", tensors(), like=source, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused(pico_pair, tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(CheckpointError, match="in use"):
        copy_of(pico_pair.base, tmp_path)


def test_fingerprint_tells_two_checkpoints_of_one_shape_apart(pico_pair, tmp_path):
    shutil.copytree(pico_pair.base, tmp_path / "copy")
    assert weights_fingerprint(tmp_path / "copy") == weights_fingerprint(pico_pair.base)
    assert weights_fingerprint(pico_pair.base) != weights_fingerprint(pico_pair.instruct)


def test_quantised_weights_are_seen(tmp_path, pico_pair):
    assert not Checkpoint(pico_pair.base).quantised
    shutil.copy(pico_pair.base / "config.json", tmp_path)
    packed = {"model.layers.0.mlp.up_proj.weight": torch.zeros(8, 1, dtype=torch.uint8)}
    save_file(packed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert Checkpoint(tmp_path).quantised
