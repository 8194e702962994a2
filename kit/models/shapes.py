"""The sizes of a model from its configuration alone: no weights, no torch.

A decoder layer is seven linears (four where a checkpoint fuses them) and some vectors:

    q (heads * head_dim, hidden)   k, v (kv_heads * head_dim, hidden)   o (hidden, heads * head_dim)
    gate, up (intermediate, hidden)                                     down (hidden, intermediate)

`embed_tokens` is (vocab, hidden); `lm_head` is the same tensor where the model is tied.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one architecture differs from Llama, in what its parameter count depends on."""

    norms: int = 2
    """RMS norms of width hidden in a layer."""
    qkv_bias: bool = False
    """q, k and v have biases whatever the configuration says."""
    head_norms: bool = False
    """q and k are normalised per head, with one weight of width head_dim each."""
    wide_norms: bool = False
    """q and k are normalised over their whole width."""
    fused: bool = False
    """q, k, v are one linear, and so are gate and up."""
    tied: bool = False
    """Head and embedding are one tensor where the configuration does not say."""


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "smollm3": Family(tied=True),
    "granite": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(head_norms=True),
    "gemma": Family(tied=True),
    "gemma2": Family(norms=4, tied=True),
    "gemma3_text": Family(norms=4, head_norms=True, tied=True),
    "phi3": Family(fused=True),
    "olmo2": Family(wide_norms=True),
}
"""Architectures (`model_type`) whose parameter count is exact."""


@dataclass(frozen=True, kw_only=True)
class LinearShape:
    """One linear of every decoder layer."""

    name: str
    out_features: int
    in_features: int

    @property
    def parameters(self) -> int:
        """Weights, without a bias."""
        return self.out_features * self.in_features


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What memory and time depend on."""

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    """Rows of the embedding, padding rows included."""
    context: int
    """Longest sequence that the configuration promises; 0 where it does not say."""
    tied: bool
    """Head and embedding are one tensor."""
    linears: tuple[LinearShape, ...]
    """The linears of one layer."""
    vector_parameters: int
    """Norms and biases of the whole model."""
    note: str = ""
    """Why the numbers are an estimate; empty where they are exact."""

    @property
    def linear_parameters(self) -> int:
        """Weights of every decoder layer's linears: what NF4 quantises."""
        return self.layers * sum(linear.parameters for linear in self.linears)

    @property
    def embedding_parameters(self) -> int:
        """Embedding, and head where it is a tensor of its own."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All parameters, a tied head counted once."""
        return self.linear_parameters + self.embedding_parameters + self.vector_parameters

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: linears and head, not the look-up."""
        return self.linear_parameters + self.vocab * self.hidden

    def targets(self, names: list[str] | str) -> tuple[LinearShape, ...]:
        """The linears of a layer that an adapter would sit on.

        Args:
            names: `all-linear`, or names of modules as in `lora.target_modules`.
        """
        if isinstance(names, str):
            return self.linears if names == "all-linear" else self.targets([names])
        last = {name.rsplit(".", 1)[-1] for name in names}
        return tuple(linear for linear in self.linears if linear.name in last)

    def adapter_parameters(self, rank: int, names: list[str] | str = "all-linear") -> int:
        """Parameters of a LoRA: rank * (in + out) for every adapted linear."""
        per_layer = sum(t.out_features + t.in_features for t in self.targets(names))
        return self.layers * rank * per_layer

    @classmethod
    def from_config(cls, config: dict[str, Any], *, where: str = "config.json") -> ModelShape:
        """Read a Hugging Face configuration.

        Args:
            config: the content of `config.json`.
            where: its name for error messages.

        Raises:
            CheckpointError: a needed number is missing, or the layers are no plain decoder layers.
        """
        note = ""
        if isinstance(config.get("text_config"), dict):
            note = f"the text part of {config.get('model_type', 'the model')} alone"
            config = config["text_config"]
        kind = str(config.get("model_type", "unknown"))
        if any(config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise CheckpointError(
                f"{kind} is a mixture of experts, whose sizes the kit cannot compute",
                where=where,
                fix=f"take a dense model: {', '.join(FAMILIES)}",
            )
        family = FAMILIES.get(kind)
        if family is None:
            family = Family()
            note = f"{kind} is not known; counted like a Llama of these sizes"
        return _shape(config, kind, family, note, where)

    @classmethod
    def from_folder(cls, folder: Path) -> ModelShape:
        """Read `config.json` of a checkpoint folder.

        Raises:
            CheckpointError: there is none, or it cannot be used.
        """
        path = Path(folder) / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise CheckpointError("the folder has no config.json", where=str(folder)) from None
        except ValueError as error:
            raise CheckpointError(f"config.json is no JSON: {error}", where=str(path)) from None
        if not isinstance(config, dict):
            raise CheckpointError("config.json is no mapping", where=str(path))
        return cls.from_config(config, where=str(path))

    @classmethod
    def from_gguf(cls, path: Path) -> ModelShape:
        """Read the header of a `.gguf` file; takes a second or two, for the vocabulary in it.

        Raises:
            CheckpointError: it is no GGUF file, or its header lacks a size.
        """
        return cls.from_config(_gguf_config(Path(path)), where=str(path))


def _shape(config: dict[str, Any], kind: str, family: Family, note: str, where: str) -> ModelShape:
    def size(name: str, otherwise: int | None = None) -> int:
        value = config.get(name)
        if value is None:
            value = otherwise
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(
                f"{kind}: {name} is {value!r}, which is no size",
                where=where,
                fix=f"architectures that are known: {', '.join(FAMILIES)}",
            )
        return value

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    kv_heads = size("num_key_value_heads", heads)
    head_dim = size("head_dim", hidden // heads)
    layers, intermediate = size("num_hidden_layers"), size("intermediate_size")
    linears = _linears(hidden, heads * head_dim, kv_heads * head_dim, intermediate, family.fused)
    vectors = _vectors(config, family, linears, hidden, head_dim)
    tied = config.get("tie_word_embeddings")
    context = config.get("max_position_embeddings")
    return ModelShape(
        architecture=kind,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocab=size("vocab_size"),
        context=context if isinstance(context, int) else 0,
        tied=family.tied if tied is None else bool(tied),
        linears=linears,
        vector_parameters=layers * vectors + hidden,
        note=note,
    )


def _linears(
    hidden: int, wide: int, narrow: int, intermediate: int, fused: bool
) -> tuple[LinearShape, ...]:
    """The linears of a layer; `wide` and `narrow` are the widths of q and of k."""
    if fused:
        sizes = {
            "qkv_proj": (wide + 2 * narrow, hidden),
            "o_proj": (hidden, wide),
            "gate_up_proj": (2 * intermediate, hidden),
            "down_proj": (hidden, intermediate),
        }
    else:
        sizes = {
            "q_proj": (wide, hidden),
            "k_proj": (narrow, hidden),
            "v_proj": (narrow, hidden),
            "o_proj": (hidden, wide),
            "gate_proj": (intermediate, hidden),
            "up_proj": (intermediate, hidden),
            "down_proj": (hidden, intermediate),
        }
    return tuple(
        LinearShape(name=name, out_features=out, in_features=inside)
        for name, (out, inside) in sizes.items()
    )


def _vectors(
    config: dict[str, Any],
    family: Family,
    linears: tuple[LinearShape, ...],
    hidden: int,
    head_dim: int,
) -> int:
    """Norm weights and biases of one layer."""
    width = {linear.name: linear.out_features for linear in linears}
    total = family.norms * hidden
    if family.head_norms:
        total += 2 * head_dim
    if family.wide_norms:
        total += width["q_proj"] + width["k_proj"]
    if family.qkv_bias or config.get("attention_bias"):
        total += sum(width.get(name, 0) for name in ("q_proj", "k_proj", "v_proj", "qkv_proj"))
    if config.get("attention_bias") and not family.qkv_bias:
        total += width["o_proj"]
    if config.get("mlp_bias"):
        total += sum(width.get(name, 0) for name in ("gate_proj", "up_proj", "down_proj"))
    return total


_GGUF_NAMES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
}
_GGUF_KINDS = {"gemma3": "gemma3_text"}


def _gguf_config(path: Path) -> dict[str, Any]:
    """The sizes in a GGUF header under their Hugging Face names."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise CheckpointError(f"no GGUF file: {error}", where=str(path)) from None
    field = reader.get_field("general.architecture")
    if field is None:
        raise CheckpointError("the header does not name an architecture", where=str(path))
    kind = str(field.contents())
    config: dict[str, Any] = {"model_type": _GGUF_KINDS.get(kind, kind)}
    for name, ours in _GGUF_NAMES.items():
        found = reader.get_field(f"{kind}.{name}")
        if found is not None:
            config[ours] = int(found.contents())
    names = {str(tensor.name): tensor for tensor in reader.tensors}
    if "token_embd.weight" in names:
        config["vocab_size"] = int(max(names["token_embd.weight"].shape))
    config["tie_word_embeddings"] = "output.weight" not in names
    return config


_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


def is_hub_id(source: str) -> bool:
    """Whether a model source is written like a hub id, `owner/name`, and is no folder here."""
    return bool(_HUB_ID.match(source)) and not Path(source).exists()
