"""Fixtures: a pico base and instruct pair, made here, and the real data where it lies beside us."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>"]


@dataclass(frozen=True)
class PicoPair:
    """Two saved checkpoints of one shape; instruct is base plus a small full-rank difference."""

    base: Path
    instruct: Path


def shared_data() -> Path:
    """The folder of real data beside the project, or a skip with the reason."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    return shared_data()


def pico_tokenizer(*, chat: bool):
    """Bytes as tokens, then the special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIALS[0], pad_token=SPECIALS[1]
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def pico_model(seed: int = 0, **changes):
    """A Llama of 2 layers and hidden size 64, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = dict(
        vocab_size=262,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=256,
        pad_token_id=257,
        bos_token_id=None,
    )
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def save_pico(folder: Path, model, *, chat: bool) -> Path:
    model.save_pretrained(folder)
    pico_tokenizer(chat=chat).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pico_pair(tmp_path_factory) -> PicoPair:
    import torch

    root = tmp_path_factory.mktemp("pico")
    model = pico_model()
    base = save_pico(root / "base", model, chat=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.02 * parameter.abs().mean() * noise)
    model.generation_config.eos_token_id = [256, 260]
    return PicoPair(base=base, instruct=save_pico(root / "instruct", model, chat=True))
