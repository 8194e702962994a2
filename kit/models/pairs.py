"""Base and instruct models that belong together: data only.

The sizes are those of the published `config.json`; `published_parameters` is the count that the
hub shows for the base model's safetensors, against which a test holds the computed one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import CheckpointError
from kit.models.shapes import ModelShape, is_hub_id


@dataclass(frozen=True, kw_only=True)
class KnownPair:
    """One pair, with what a plan needs before anything is downloaded."""

    base: str
    """Hub id of the base model."""
    instruct: str
    """Hub id of the instruct model that was tuned from it."""
    config: dict[str, Any]
    """The sizes, under the names of `config.json`."""
    published_parameters: int
    licence: str
    """In a few words; `gated` where the hub asks for a log-in and a form."""
    note: str = ""
    """What to know before trusting a result on it."""

    @property
    def shape(self) -> ModelShape:
        """The sizes as the rest of the kit reads them."""
        return ModelShape.from_config(self.config, where=self.base)

    @property
    def gated(self) -> bool:
        """Whether the hub asks for a log-in."""
        return "gated" in self.licence


def _config(
    kind: str, sizes: tuple[int, int, int, int, int, int], *, vocab: int, context: int, tied: bool
) -> dict[str, Any]:
    """`sizes`: hidden, layers, heads, kv heads, head dim, intermediate."""
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
    )
    return {
        "model_type": kind,
        **dict(zip(names, sizes, strict=True)),
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
    }


def _qwen2(size: str, sizes: tuple[int, int, int, int, int, int], count: int) -> KnownPair:
    large = size == "7B"
    return KnownPair(
        base=f"Qwen/Qwen2.5-{size}",
        instruct=f"Qwen/Qwen2.5-{size}-Instruct",
        config=_config(
            "qwen2", sizes, vocab=152_064 if large else 151_936, context=32_768, tied=not large
        ),
        published_parameters=count,
        licence="Qwen research licence, no commercial use" if size == "3B" else "Apache-2.0",
        note="the base model has seen chat-like data and answers in that form by itself",
    )


def _qwen3(size: str, sizes: tuple[int, int, int, int, int, int], count: int) -> KnownPair:
    return KnownPair(
        base=f"Qwen/Qwen3-{size}-Base",
        instruct=f"Qwen/Qwen3-{size}",
        config=_config("qwen3", sizes, vocab=151_936, context=40_960, tied=True),
        published_parameters=count,
        licence="Apache-2.0",
        note="the instruct model thinks aloud unless its chat template is told not to",
    )


def _llama(name: str, sizes: tuple[int, int, int, int, int, int], count: int) -> KnownPair:
    return KnownPair(
        base=f"meta-llama/{name}",
        instruct=f"meta-llama/{name}-Instruct",
        config=_config("llama", sizes, vocab=128_256, context=131_072, tied="3.2" in name),
        published_parameters=count,
        licence=f"Llama {name.split('-')[1]} Community Licence, gated",
    )


def _smollm2(size: str, sizes: tuple[int, int, int, int, int, int], count: int) -> KnownPair:
    return KnownPair(
        base=f"HuggingFaceTB/SmolLM2-{size}",
        instruct=f"HuggingFaceTB/SmolLM2-{size}-Instruct",
        config=_config("llama", sizes, vocab=49_152, context=8192, tied=True),
        published_parameters=count,
        licence="Apache-2.0",
    )


PAIRS: tuple[KnownPair, ...] = (
    _smollm2("135M", (576, 30, 9, 3, 64, 1536), 134_515_008),
    _smollm2("360M", (960, 32, 15, 5, 64, 2560), 361_821_120),
    _smollm2("1.7B", (2048, 24, 32, 32, 64, 8192), 1_711_376_384),
    KnownPair(
        base="HuggingFaceTB/SmolLM3-3B-Base",
        instruct="HuggingFaceTB/SmolLM3-3B",
        config=_config(
            "smollm3",
            (2048, 36, 16, 4, 128, 11_008),
            vocab=128_256,
            context=65_536,
            tied=True,
        ),
        published_parameters=3_075_098_624,
        licence="Apache-2.0",
        note="the instruct model was merged from several checkpoints and thinks aloud unless told",
    ),
    _qwen2("0.5B", (896, 24, 14, 2, 64, 4864), 494_032_768),
    _qwen2("1.5B", (1536, 28, 12, 2, 128, 8960), 1_543_714_304),
    _qwen2("3B", (2048, 36, 16, 2, 128, 11_008), 3_085_938_688),
    _qwen2("7B", (3584, 28, 28, 4, 128, 18_944), 7_615_616_512),
    _qwen3("0.6B", (1024, 28, 16, 8, 128, 3072), 596_049_920),
    _qwen3("4B", (2560, 36, 32, 8, 128, 9728), 4_022_468_096),
    _llama("Llama-3.2-1B", (2048, 16, 32, 8, 64, 8192), 1_235_814_400),
    _llama("Llama-3.2-3B", (3072, 28, 24, 8, 128, 8192), 3_212_749_824),
    _llama("Llama-3.1-8B", (4096, 32, 32, 8, 128, 14_336), 8_030_261_248),
    KnownPair(
        base="google/gemma-3-1b-pt",
        instruct="google/gemma-3-1b-it",
        config=_config(
            "gemma3_text", (1152, 26, 4, 1, 256, 6912), vocab=262_144, context=32_768, tied=True
        ),
        published_parameters=999_885_952,
        licence="Gemma terms of use, gated",
    ),
    KnownPair(
        base="mistralai/Mistral-7B-v0.3",
        instruct="mistralai/Mistral-7B-Instruct-v0.3",
        config=_config(
            "mistral", (4096, 32, 32, 8, 128, 14_336), vocab=32_768, context=32_768, tied=False
        ),
        published_parameters=7_248_023_552,
        licence="Apache-2.0",
    ),
)


def known_pair(source: str) -> KnownPair | None:
    """The pair that a hub id belongs to, or that a `.gguf` file is named after.

    The name of a file is a hint, not a proof: a caller says that it went by the name.
    """
    for pair in PAIRS:
        if source in (pair.base, pair.instruct):
            return pair
    if not source.endswith(".gguf"):
        return None
    stem = re.sub(r"[.-](i?q\d\w*|b?f(16|32))$", "", Path(source).stem, flags=re.I)
    for pair in PAIRS:
        if stem.lower() in (pair.base.split("/")[1].lower(), pair.instruct.split("/")[1].lower()):
            return pair
    return None


@dataclass(frozen=True, kw_only=True)
class FoundShape:
    """The sizes of a model source, and how they were come by."""

    shape: ModelShape
    how: str


def find_shape(source: str, *, hub_cache: Path | None = None) -> FoundShape | None:
    """The sizes of a model source without downloading anything.

    Args:
        source: a hub id, a folder, a `.gguf` file or `lilliput:base`.
        hub_cache: folder of the hub's cache, to read a configuration that is there already.

    Returns:
        None where the source is not here and not known.

    Raises:
        CheckpointError: the source is here and cannot be used.
    """
    if source.startswith("lilliput:"):
        return _lilliput(source)
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return FoundShape(shape=ModelShape.from_gguf(path), how="read from the file's header")
    if path.is_dir():
        return FoundShape(shape=ModelShape.from_folder(path), how="read from config.json")
    if hub_cache is not None and is_hub_id(source):
        folder = hub_cache / f"models--{source.replace('/', '--')}" / "snapshots"
        for config in sorted(folder.glob("*/config.json")):
            shape = ModelShape.from_folder(config.parent)
            return FoundShape(shape=shape, how="read from the hub's cache")
    pair = known_pair(source)
    if pair is None:
        return None
    by_name = "" if source in (pair.base, pair.instruct) else ", going by the file's name"
    return FoundShape(shape=pair.shape, how=f"published sizes of {pair.base}{by_name}")


def _lilliput(source: str) -> FoundShape:
    from kit.models.lilliput import BASE, INSTRUCT

    folders = {"lilliput:base": BASE, "lilliput:instruct": INSTRUCT}
    if source not in folders:
        raise CheckpointError(
            f"there is no {source!r}", fix=f"the embedded models: {', '.join(folders)}"
        )
    return FoundShape(shape=ModelShape.from_folder(folders[source]), how="the embedded pair")
