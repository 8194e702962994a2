"""A graft is the residual, added exactly; and every case in which it is not is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from adapter_tools import load, logits, random_lora
from conftest import pico_model, save_pico
from peft import PeftModel
from safetensors.torch import load_file, save_file

from kit.adapters.algebra import dense_delta
from kit.adapters.attach import mounted
from kit.adapters.graft import as_differences, check_graft, graft, kept_rows, on_checkpoint
from kit.adapters.stack import Stack, Weighted, read_stack, write_stack
from kit.adapters.tensors import read_adapter, write_adapter
from kit.errors import AdapterError, GraftError, RecipeError
from kit.models.weights import Checkpoint

EMBEDDING = "model.embed_tokens.weight"


def test_graft_is_the_residual_added(pico_pair, tmp_path):
    """logits(base + BA merged + residual) == logits(instruct + adapter)."""
    folder = random_lora(pico_pair.base, tmp_path / "a", use_rslora=True)
    base, instruct = Checkpoint(pico_pair.base), Checkpoint(pico_pair.instruct)
    dense = load(pico_pair.base)
    with torch.no_grad():
        for module, pair in read_adapter(folder).deltas.items():
            dense.get_submodule(module).weight.add_(dense_delta(pair))
        for name, parameter in dense.named_parameters():
            parameter.add_(instruct.tensor(name) - base.tensor(name))
    stack = Stack("instruct", (Weighted("cpt@base", folder),))
    with mounted(load(pico_pair.instruct), stack.combined()) as model:
        assert torch.allclose(logits(model), logits(dense), atol=1e-5)


def test_the_report_names_every_condition(pico_pair, tmp_path):
    folder = random_lora(pico_pair.base, tmp_path / "a")
    report = check_graft(folder, base=pico_pair.base, instruct=pico_pair.instruct)
    assert report.modules == 14 and not report.replaced and not report.warnings
    assert len(report.reasons) == 4
    (folder / "kit_adapter.json").unlink()
    report = check_graft(folder, base=pico_pair.base, instruct=pico_pair.instruct)
    assert "on trust" in report.warnings[0]


def test_weight_zero_is_the_plain_model_and_weights_scale(pico_pair, tmp_path):
    folder = random_lora(pico_pair.base, tmp_path / "a")
    model = load(pico_pair.instruct)
    before = logits(model)
    assert Stack("instruct", (Weighted("cpt@base", folder, 0.0),)).combined() is None
    with mounted(model, None):
        assert torch.equal(logits(model), before)
    half = Stack("instruct", (Weighted("cpt@base", folder, 0.5),) * 2).combined()
    whole = Stack("instruct", (Weighted("cpt@base", folder),)).combined()
    with mounted(model, half):
        first = logits(model)
    with mounted(model, whole):
        assert torch.allclose(logits(model), first, atol=1e-5)


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "DoRA renormalises"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_no_plain_delta_is_refused(pico_pair, tmp_path, changes, said):
    folder = random_lora(pico_pair.base, tmp_path / "a")
    edit_config(folder, **changes)
    with pytest.raises(GraftError, match=said):
        check_graft(folder, base=pico_pair.base, instruct=pico_pair.instruct)


def test_a_real_dora_and_a_real_pissa_are_refused(pico_pair, tmp_path):
    dora = random_lora(pico_pair.base, tmp_path / "dora", use_dora=True)
    pissa = random_lora(pico_pair.base, tmp_path / "pissa", init_lora_weights="pissa")
    for folder in (dora, pissa):
        with pytest.raises(GraftError):
            check_graft(folder, base=pico_pair.base, instruct=pico_pair.instruct)


def test_another_base_is_refused(pico_pair, tmp_path):
    folder = random_lora(pico_pair.instruct, tmp_path / "a")
    with pytest.raises(GraftError, match="trained on another checkpoint"):
        check_graft(folder, base=pico_pair.base, instruct=pico_pair.instruct)


def test_another_vocabulary_is_refused(pico_pair, tmp_path):
    folder = random_lora(pico_pair.base, tmp_path / "a")
    wide = save_pico(tmp_path / "wide", pico_model(vocab_size=320), chat=True)
    with pytest.raises(GraftError, match="vocab_size"):
        check_graft(folder, base=pico_pair.base, instruct=wide)


def test_a_key_without_a_module_is_refused(pico_pair, tmp_path):
    folder = random_lora(pico_pair.base, tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    tensors = {key.replace("layers.1.", "layers.7."): v for key, v in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(GraftError, match=r"7 of 14 adapter keys"):
        check_graft(folder, base=pico_pair.base, instruct=pico_pair.instruct)


@pytest.fixture
def tied_embeddings(pico_pair, tmp_path):
    """An adapter that trained the tied embedding as well."""
    return random_lora(
        pico_pair.base, tmp_path / "a", modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )


def test_a_tied_embedding_is_added_once_and_chat_rows_stay(pico_pair, tied_embeddings):
    base, instruct = Checkpoint(pico_pair.base), Checkpoint(pico_pair.instruct)
    adapter = read_adapter(tied_embeddings)
    trained = adapter.replaced[EMBEDDING]
    grafted = graft(adapter, base=base, instruct=instruct)
    assert set(grafted.added) == {EMBEDDING} and not grafted.replaced
    kept = list(kept_rows(pico_pair.base, pico_pair.instruct))
    assert kept == [257, 258, 259, 260, 261]  # every special token but the base's own eos
    wanted = instruct.tensor(EMBEDDING) + trained - base.tensor(EMBEDDING)
    wanted[kept] = instruct.tensor(EMBEDDING)[kept]
    with mounted(load(pico_pair.instruct), grafted) as model:
        assert torch.allclose(model.model.embed_tokens.weight, wanted, atol=1e-6)
        assert torch.equal(model.model.embed_tokens.weight[kept], wanted[kept])
        assert model.lm_head.weight is model.model.embed_tokens.weight
    report = check_graft(tied_embeddings, base=pico_pair.base, instruct=pico_pair.instruct)
    assert report.kept_rows == tuple(kept) and EMBEDDING in report.replaced


def test_a_stack_weights_the_difference_of_a_trained_embedding(pico_pair, tied_embeddings):
    stack = Stack("instruct", (Weighted("cpt@base", tied_embeddings, 0.5),))
    with pytest.raises(AdapterError, match="difference is unknown"):
        stack.combined()
    folders = {"base": pico_pair.base, "instruct": pico_pair.instruct}
    half = stack.combined(folders)
    whole = graft(
        read_adapter(tied_embeddings),
        base=Checkpoint(pico_pair.base),
        instruct=Checkpoint(pico_pair.instruct),
    )
    assert torch.allclose(half.added[EMBEDDING], whole.added[EMBEDDING] / 2)


def test_on_its_own_checkpoint_a_stack_is_what_peft_loads(pico_pair, tied_embeddings):
    stack = Stack("base", (Weighted("cpt", tied_embeddings),))
    theirs = logits(PeftModel.from_pretrained(load(pico_pair.base), tied_embeddings))
    with mounted(load(pico_pair.base), stack.combined({"base": pico_pair.base})) as model:
        assert torch.allclose(logits(model), theirs, atol=1e-5)


def test_a_grafted_embedding_can_be_written_for_peft(pico_pair, tied_embeddings, tmp_path):
    instruct = Checkpoint(pico_pair.instruct)
    grafted = graft(
        read_adapter(tied_embeddings), base=Checkpoint(pico_pair.base), instruct=instruct
    )
    out = tmp_path / "grafted"
    write_adapter(out, on_checkpoint(grafted, instruct), base_model=str(pico_pair.instruct))
    theirs = logits(PeftModel.from_pretrained(load(pico_pair.instruct), out))
    with mounted(load(pico_pair.instruct), grafted) as model:
        assert torch.allclose(logits(model), theirs, atol=1e-5)


def test_a_tied_pair_that_was_trained_apart_is_refused(pico_pair, tmp_path):
    alone = random_lora(pico_pair.base, tmp_path / "a", modules_to_save=["embed_tokens"])
    apart = random_lora(pico_pair.base, tmp_path / "b", modules_to_save=["embed_tokens", "lm_head"])
    for folder in (alone, apart):
        with pytest.raises(GraftError, match="trained them apart"):
            check_graft(folder, base=pico_pair.base, instruct=pico_pair.instruct)


def test_an_untied_head_and_embedding_become_two_differences(tmp_path):
    base = save_pico(tmp_path / "b", pico_model(0, tie_word_embeddings=False), chat=False)
    instruct = save_pico(tmp_path / "i", pico_model(1, tie_word_embeddings=False), chat=True)
    folder = random_lora(base, tmp_path / "a", modules_to_save=["embed_tokens", "lm_head"])
    report = check_graft(folder, base=base, instruct=instruct)
    assert set(report.replaced) == {EMBEDDING, "lm_head.weight"}
    differences = as_differences(read_adapter(folder), Checkpoint(base))
    assert set(differences.added) == set(report.replaced)


def test_an_embedding_without_a_tokenizer_is_refused(pico_pair, tied_embeddings, tmp_path):
    folder = tmp_path / "i"
    shutil.copytree(pico_pair.instruct, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(GraftError, match="chat tokens"):
        check_graft(tied_embeddings, base=pico_pair.base, instruct=folder)


def test_a_stack_is_written_and_read(tmp_path):
    stack = Stack(
        "instruct",
        (Weighted("cpt@base", tmp_path / "a", 0.5), Weighted("residual-r32", tmp_path / "b", -1.0)),
    )
    assert str(stack) == "instruct + cpt@base*0.5 + residual-r32*-1"
    paths = {"cpt@base": tmp_path / "a", "residual-r32": tmp_path / "b"}
    assert Stack.parse(str(stack), paths) == stack
    assert Stack.from_json(stack.to_json()) == stack
    write_stack(tmp_path, stack)
    assert read_stack(tmp_path) == stack
    assert str(Stack("base")) == "base" and Stack.parse("base", {}) == Stack("base")


@pytest.mark.parametrize(
    "text", ["", "a b", "instruct + ", "instruct + other", "instruct + cpt*x", "instruct + cpt*1e"]
)
def test_what_is_no_stack_is_refused(tmp_path, text):
    with pytest.raises(RecipeError):
        Stack.parse(text, {"cpt": tmp_path})
