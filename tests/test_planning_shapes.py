"""Sizes from configurations, against published counts and against the real classes."""

from __future__ import annotations

import json

import pytest

from kit.errors import CheckpointError
from kit.models.pairs import PAIRS, find_shape, known_pair
from kit.models.shapes import FAMILIES, ModelShape


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.base)
def test_published_parameter_counts(pair):
    assert pair.shape.parameters == pair.published_parameters
    assert not pair.shape.note


def test_pairs_are_told_by_either_name_and_by_files():
    assert known_pair("Qwen/Qwen2.5-0.5B") is known_pair("Qwen/Qwen2.5-0.5B-Instruct")
    assert known_pair("Qwen/Qwen2.5-0.5B-Base") is None
    names = ["SmolLM2-135M-Instruct.Q4_1", "smollm2-135m-instruct-q8_0", "SmolLM2-135M-F16"]
    for name in names:
        pair = known_pair(f"models/{name}.gguf")
        assert pair is not None and pair.base.endswith("SmolLM2-135M"), name
    assert known_pair("SmolLM2-Q4_1.gguf") is None
    ids = [name for pair in PAIRS for name in (pair.base, pair.instruct)]
    assert len(ids) == len(set(ids))


SIZES = dict(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
CHANGES = [
    {},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False},
    {"attention_bias": True, "mlp_bias": True},
]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_counts_are_those_of_the_real_classes(kind, changes):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if "mlp_bias" in changes and kind not in ("llama", "granite"):
        changes = {"attention_bias": True} if kind in ("qwen3", "olmo2", "smollm3") else {}
    sizes = dict(SIZES)
    if kind in ("olmo2", "phi3", "granite"):
        sizes.pop("head_dim")  # these derive it
    config = CONFIG_MAPPING[kind](**sizes, **changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stored = json.loads(config.to_json_string())
    shape = ModelShape.from_config(stored)
    assert shape.parameters == model.num_parameters(), kind
    linears = {
        name.rsplit(".", 1)[-1]: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers.0." in name
    }
    assert {t.name: (t.out_features, t.in_features) for t in shape.linears} == linears


def test_adapter_parameters_are_pefts(pico_pair):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    for names in ("all-linear", ["q_proj", "down_proj"]):
        model = AutoModelForCausalLM.from_pretrained(pico_pair.base)
        shape = ModelShape.from_folder(pico_pair.base)
        assert shape.parameters == model.num_parameters()
        options = peft.LoraConfig(r=8, target_modules=names, task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, options)
        trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert trainable == shape.adapter_parameters(8, names)


def test_adapter_targets():
    shape = PAIRS[0].shape
    assert shape.targets("all-linear") == shape.linears
    assert [t.name for t in shape.targets(["q_proj", "self_attn.v_proj"])] == ["q_proj", "v_proj"]
    assert shape.targets(["nothing"]) == () and shape.adapter_parameters(8, ["nothing"]) == 0


def test_unknown_architectures_are_estimated_and_say_so():
    shape = ModelShape.from_config({**SIZES, "model_type": "newthing"})
    assert "newthing is not known" in shape.note
    assert shape.parameters == ModelShape.from_config({**SIZES, "model_type": "llama"}).parameters


def test_text_part_of_a_larger_model():
    config = {"model_type": "gemma3", "text_config": {**SIZES, "model_type": "gemma3_text"}}
    shape = ModelShape.from_config(config)
    assert shape.tied and "text part" in shape.note


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_local_experts": 8}, "mixture of experts"),
    ],
)
def test_configurations_that_cannot_be_used(changes, said):
    with pytest.raises(CheckpointError, match=said):
        ModelShape.from_config({"model_type": "llama", **SIZES, **changes})


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        ModelShape.from_folder(tmp_path)
    for text, said in (("{", "no JSON"), ("[]", "no mapping"), ('{"model_type": "bert"}', "bert")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=said):
            ModelShape.from_folder(tmp_path)


def test_a_gguf_header(tmp_path):
    gguf = pytest.importorskip("gguf")
    import numpy as np

    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tensor("token_embd.weight", np.zeros((99, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shape = ModelShape.from_gguf(path)
    config = {**SIZES, "head_dim": 8, "model_type": "llama", "tie_word_embeddings": True}
    assert shape == ModelShape.from_config(config)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no GGUF"):
        ModelShape.from_gguf(path)


def test_shapes_are_found_without_a_download(tmp_path, pico_pair):
    found = find_shape("Qwen/Qwen2.5-3B")
    assert found is not None and found.shape.layers == 36
    assert "published" in found.how
    assert find_shape("someone/else") is None
    assert find_shape("no-such-folder") is None
    here = find_shape(str(pico_pair.base))
    assert here is not None and here.shape.hidden == 64
    snapshot = tmp_path / "models--someone--else" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({**SIZES, "model_type": "llama"}))
    cached = find_shape("someone/else", hub_cache=tmp_path)
    assert cached is not None and cached.shape.hidden == 32 and "cache" in cached.how
    with pytest.raises(CheckpointError, match="lilliput:base"):
        find_shape("lilliput:other")
