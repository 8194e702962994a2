"""Loading, tokenizers, chat, and the loss: packed is alone, chunked is whole."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import pico_model, pico_tokenizer, save_pico

from kit.errors import CheckpointError, RecipeError
from kit.hardware import Hardware, detect
from kit.models.chat import chat_prompt, check_chat_template, end_of_turn_ids
from kit.models.loading import dequantize, load_model, resolve_source
from kit.models.logprobs import (
    IGNORE,
    chunked_cross_entropy,
    final_hidden,
    projector,
    token_nll,
)
from kit.models.tokenizer import document_end, load_tokenizer, padding_id


def cpu(dtype="float32"):
    return Hardware(
        device="cpu", name="CPU", memory_bytes=1 << 33, compute_dtype=dtype, reason="a test"
    )


def ids_of(text):
    return pico_tokenizer(chat=False)(text, add_special_tokens=False)["input_ids"]


def test_chunked_loss_is_the_whole_loss_and_so_are_its_gradients():
    model = pico_model()
    ids_BT = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(0))
    labels_BT = ids_BT.clone()
    labels_BT[0, 5:9] = IGNORE
    labels_BT[2] = IGNORE

    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    whole = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1),
        labels_BT[:, 1:].flatten(),
        ignore_index=IGNORE,
        reduction="sum",
    )
    whole.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    total, count = chunked_cross_entropy(
        final_hidden(model, ids_BT), labels_BT, project=projector(model), chunk_tokens=5
    )
    total.backward()

    assert count == int((labels_BT[:, 1:] != IGNORE).sum())
    torch.testing.assert_close(total, whole, rtol=1e-6, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


def test_the_loss_never_holds_all_logits():
    model = pico_model()
    hidden_BTH = torch.randn(2, 50, 64, requires_grad=True)
    labels_BT = torch.randint(0, 256, (2, 50))
    head = projector(model)
    seen = []

    def project(hidden_CH):
        seen.append(hidden_CH.shape[0])
        return head(hidden_CH)

    chunked_cross_entropy(hidden_BTH, labels_BT, project=project, chunk_tokens=8)[0].backward()
    assert max(seen) == 8


def test_softcapped_and_scaled_logits_are_those_of_the_models_own_forward():
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    sizes = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=0.5)).eval()
    sizes.pop("head_dim")
    scaled = GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=8.0)).eval()
    ids_BT = torch.randint(0, 64, (1, 9))
    for model in (capped, scaled):
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        expected = torch.nn.functional.cross_entropy(
            logits_BTV[0, :-1], ids_BT[0, 1:], reduction="none"
        )
        torch.testing.assert_close(token_nll(model, ids_BT)[0, 1:], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_is_alone(checkpointing):
    """Documents in one block get the losses that they get alone, under checkpointing too."""
    model = pico_model()
    if checkpointing:
        newer = getattr(model, "activation_checkpointing_enable", None)
        (newer or model.gradient_checkpointing_enable)()
        model.train()
    texts = [ids_of("the first document"), ids_of("another"), ids_of("and a third one, longer")]
    packed = torch.tensor([[i for text in texts for i in text]])
    positions = torch.tensor([[p for text in texts for p in range(len(text))]])
    together = token_nll(model, packed, position_ids_BT=positions)[0]
    start = 0
    for text in texts:
        alone = token_nll(model, torch.tensor([text]))[0]
        inside = together[start + 1 : start + len(text)]
        torch.testing.assert_close(inside, alone[1:], rtol=0, atol=3e-5)
        start += len(text)
    leaky = token_nll(model, packed)[0]
    assert (leaky - together).abs().max() > 1e-3, "without position ids the documents must leak"


def test_right_padding_changes_nothing():
    model = pico_model()
    short, long = ids_of("abc def"), ids_of("a longer piece of text")
    padded = short + [257] * (len(long) - len(short))
    together = token_nll(model, torch.tensor([padded, long]))
    alone = token_nll(model, torch.tensor([short]))
    torch.testing.assert_close(together[:1, : len(short)], alone, rtol=0, atol=1e-5)


def test_dequantised_copy_is_the_same_model(pico_pair):
    model = load_model(pico_pair.base, quantization="nf4", hardware=cpu())
    ids_BT = torch.tensor([ids_of("the same numbers")])
    four_bit = token_nll(model, ids_BT)
    assert dequantize(model, dtype=torch.float32) == 14
    assert dequantize(model, dtype=torch.float32) == 0
    torch.testing.assert_close(token_nll(model, ids_BT), four_bit, rtol=0, atol=1e-5)
    plain = load_model(pico_pair.base, quantization="32bit", hardware=cpu())
    assert (token_nll(plain, ids_BT) - four_bit).abs().max() > 1e-3, "NF4 must have rounded"


def test_loaded_models_are_frozen(pico_pair):
    for quantization, dtype in (
        ("nf4", torch.float32),
        ("16bit", torch.bfloat16),
        ("32bit", torch.float32),
    ):
        compute = "bfloat16" if quantization == "16bit" else "float32"
        model = load_model(pico_pair.base, quantization=quantization, hardware=cpu(compute))
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.training
        assert model.get_input_embeddings().weight.dtype == dtype


def test_gguf_becomes_a_16_bit_folder_once(tmp_path, monkeypatch):
    gguf = write_pico_gguf(tmp_path / "pico.gguf")
    monkeypatch.setenv("KIT_CACHE", str(tmp_path / "cache"))
    folder = resolve_source(str(gguf))
    assert (folder / "model.safetensors").exists()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_source(str(gguf)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    model = load_model(folder, quantization="nf4", hardware=cpu())
    assert model.config.num_hidden_layers == 1


def write_pico_gguf(path):
    """A one-layer Llama in float32, as llama.cpp's converters write it."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(260)
    tokens = [bytes([b]) for b in range(256)]
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*alphabet, "<|endoftext|>", "<|pad|>", "ab", "cd"])
    writer.add_token_types([1] * 256 + [3, 3, 1, 1])
    writer.add_token_merges(["a b", "c d"])
    writer.add_eos_token_id(256)
    writer.add_pad_token_id(257)
    writer.add_bos_token_id(256)
    shapes = {
        "token_embd": (260, 64),
        "output_norm": (64,),
        "blk.0.attn_norm": (64,),
        "blk.0.attn_q": (64, 64),
        "blk.0.attn_k": (32, 64),
        "blk.0.attn_v": (32, 64),
        "blk.0.attn_output": (64, 64),
        "blk.0.ffn_norm": (64,),
        "blk.0.ffn_gate": (128, 64),
        "blk.0.ffn_up": (128, 64),
        "blk.0.ffn_down": (64, 128),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.05, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_sources_that_cannot_be_used(tmp_path, pico_pair):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    for source, words in {
        str(pickled): "pickle",
        str(empty): "config.json",
        str(tmp_path / "nowhere"): "no such folder",
        str(tmp_path / "notes.txt"): ".gguf",
        "lilliput:giant": "Lilliput",
        "nobody/there-is-no-such-model": "fetched",
    }.items():
        with pytest.raises(CheckpointError, match=words) as caught:
            resolve_source(source)
        assert caught.value.fix
    assert resolve_source(str(pico_pair.base)) == pico_pair.base


def test_pad_is_never_an_end():
    tokenizer = pico_tokenizer(chat=True)
    assert document_end(tokenizer)[0] == 256
    assert padding_id(tokenizer, end_id=256)[0] == 257
    tokenizer.pad_token = tokenizer.eos_token
    chosen, why = padding_id(tokenizer, end_id=256)
    assert chosen == 257 and "end" in why
    tokenizer.eos_token = "<|end|>"
    assert document_end(tokenizer)[0] == 256, "an instruct tokenizer's EOS ends turns"


def test_no_token_left_to_pad_with():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    bare.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>", pad_token="</s>")
    with pytest.raises(CheckpointError, match="fill up"):
        padding_id(tokenizer, end_id=1)


def test_chat_prompt_and_ends(pico_pair):
    tokenizer = load_tokenizer(pico_pair.instruct)
    ids = chat_prompt(tokenizer, [{"role": "user", "content": "hi"}])
    assert tokenizer.decode(ids) == "<|user|>hi<|end|><|assistant|>"
    assert end_of_turn_ids(tokenizer, [256, 260]) == {256, 260}
    assert end_of_turn_ids(tokenizer, None) == {256, 260}, "the template shows the end of a turn"


def test_a_base_tokenizer_cannot_chat(pico_pair):
    with pytest.raises(CheckpointError, match="chat template"):
        check_chat_template(load_tokenizer(pico_pair.base))


def test_dtype_policy_on_this_machine():
    hardware = detect()
    assert hardware.reason
    if hardware.device == "cpu":
        assert detect("float32").compute_dtype == "float32"
        with pytest.raises(RecipeError, match="float16"):
            detect("float16")


def test_saving_a_pico_pair_is_what_the_fixture_says(tmp_path):
    folder = save_pico(tmp_path / "m", pico_model(), chat=True)
    assert load_tokenizer(folder).chat_template
