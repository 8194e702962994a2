"""Is this a base model and what was tuned from it? Read before any run on a pair."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kit.errors import CheckpointError, PairError
from kit.models.spectrum import absolute_sum, energy, leading_energies
from kit.models.weights import Checkpoint

SIGMA_LIMIT = 0.05
SMALL_MODEL_BILLIONS = 1.5
_EXACT_UP_TO = 1024
_DIRECTIONS = 32
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_SIZES = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)


@dataclass(frozen=True, kw_only=True)
class GroupDifference:
    """How far a group of tensors moved."""

    group: str
    sigma: float
    """sum |W_i - W_b| / (sum |W_i| + sum |W_b|)."""
    energy: float
    """Squared Frobenius norm of the difference."""
    parameters: int


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """The spectrum of the difference in one layer, over its matrices."""

    layer: int
    energy_share: float
    """Of the whole difference's energy."""
    stable_rank: float
    """Energy over that of the first direction, mean over the matrices weighted by energy."""
    top_share: float
    """Share of the layer's energy in the first direction of each matrix."""
    top32_share: float
    """Share in the first 32 directions of each matrix."""


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """What the two checkpoints have in common and where they differ."""

    base: str
    instruct: str
    tensors: int
    parameters_billions: float
    vocab_size: int | None
    """Of the config."""
    padded_vocab_size: int | None
    """Rows of the embedding."""
    specials_of_base: tuple[str, ...]
    """Special tokens that the base alone has, or has with another id."""
    specials_of_instruct: tuple[str, ...]
    sigma: float
    groups: tuple[GroupDifference, ...]
    layers: tuple[LayerDifference, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_pair(
    base: Path, instruct: Path, *, progress: Callable[[int, int], None] | None = None
) -> PairReport:
    """Compare two checkpoints tensor by tensor.

    Args:
        base: folder of the base model, 16 or 32 bit.
        instruct: folder of the model tuned from it.
        progress: called with (tensors done, tensors in all).

    Raises:
        PairError: other architecture, other tensors or other shapes; every mismatch is listed.
    """
    first, second = require_pair(base, instruct)
    groups: dict[str, list[float]] = {}
    layers: dict[int, list[float]] = {}
    names = first.distinct_names()
    for done, name in enumerate(names, start=1):
        weight_b, weight_i = first.tensor(name), second.tensor(name)
        delta = weight_i - weight_b
        sizes = absolute_sum(weight_i) + absolute_sum(weight_b)
        moved, changed = absolute_sum(delta), energy(delta)
        row = groups.setdefault(tensor_group(name), [0.0, 0.0, 0.0, 0.0])
        for column, value in enumerate((moved, sizes, changed, float(delta.numel()))):
            row[column] += value
        layer = _LAYER.search(name)
        if layer and delta.ndim == 2 and changed > 0:
            _add_layer(layers.setdefault(int(layer[1]), [0.0] * 4), delta, changed)
        if progress is not None:
            progress(done, len(names))
    return _report(first, second, groups, layers)


def _add_layer(row: list[float], delta: Tensor, total: float) -> None:
    leading = leading_energies(delta, directions=_DIRECTIONS, seed=0, exact_up_to=_EXACT_UP_TO)
    row[0] += total
    row[1] += total * total / float(leading[0])
    row[2] += float(leading[0])
    row[3] += float(leading[:_DIRECTIONS].sum())


def _report(
    base: Checkpoint,
    instruct: Checkpoint,
    groups: dict[str, list[float]],
    layers: dict[int, list[float]],
) -> PairReport:
    moved, sizes, whole, count = (sum(row[k] for row in groups.values()) for k in range(4))
    special_b, special_i = special_tokens(base.folder), special_tokens(instruct.folder)
    sigma = _ratio(moved, sizes)
    return PairReport(
        base=str(base.folder),
        instruct=str(instruct.folder),
        tensors=len(base.names()),
        parameters_billions=count / 1e9,
        vocab_size=base.config.get("vocab_size"),
        padded_vocab_size=base.shape(base.embedding_name)[0] if base.embedding_name else None,
        specials_of_base=tuple(sorted(t for t, i in special_b.items() if special_i.get(t) != i)),
        specials_of_instruct=tuple(
            sorted(t for t, i in special_i.items() if special_b.get(t) != i)
        ),
        sigma=sigma,
        groups=tuple(
            GroupDifference(
                group=name, sigma=_ratio(row[0], row[1]), energy=row[2], parameters=int(row[3])
            )
            for name, row in sorted(groups.items())
        ),
        layers=tuple(
            LayerDifference(
                layer=number,
                energy_share=_ratio(row[0], whole),
                stable_rank=_ratio(row[1], row[0]),
                top_share=_ratio(row[2], row[0]),
                top32_share=_ratio(row[3], row[0]),
            )
            for number, row in sorted(layers.items())
        ),
        warnings=_warnings(base, instruct, sigma, count / 1e9),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _warnings(
    base: Checkpoint, instruct: Checkpoint, sigma: float, billions: float
) -> tuple[str, ...]:
    found = []
    if sigma == 0:
        found.append("the two checkpoints hold the same numbers: there is nothing to transfer")
    if sigma > SIGMA_LIMIT:
        found.append(
            f"sigma {sigma:.3f} is above {SIGMA_LIMIT}: perhaps not the same ancestor, or a small "
            "model that was tuned hard"
        )
    if billions <= SMALL_MODEL_BILLIONS:
        found.append(
            f"{billions:.2g}B parameters: at or below {SMALL_MODEL_BILLIONS}B the transfer of "
            "instruction following is reported to be weak (arXiv 2410.10739)"
        )
    ours, theirs = _behaviour(base.config), _behaviour(instruct.config)
    for key in ours:
        if ours[key] != theirs[key]:
            found.append(f"config: {key} is {ours[key]} in base, {theirs[key]} in instruct")
    return tuple(found)


def _behaviour(config: dict[str, Any]) -> dict[str, Any]:
    """What changes a model's output besides its weights; old and new spellings of rope alike."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    return {
        "rope theta": rope.pop("rope_theta", config.get("rope_theta")),
        "rope type": rope.pop("rope_type", None) or rope.pop("type", None) or "default",
        "rope scaling": {key: value for key, value in rope.items() if key != "type"},
        "rms_norm_eps": config.get("rms_norm_eps"),
        "hidden_act": config.get("hidden_act"),
    }


def require_pair(base: Path, instruct: Path) -> tuple[Checkpoint, Checkpoint]:
    """Open two checkpoints that have the same architecture, tensors and shapes.

    Raises:
        PairError: they have not; every mismatch is listed. Or one of them is quantised: the error
            of 4-bit weights is two to three times the whole difference of a pair.
    """
    first, second = Checkpoint(base), Checkpoint(instruct)
    for checkpoint in (first, second):
        if checkpoint.quantised:
            raise PairError(
                "the checkpoint is quantised: its error is larger than the pair's difference",
                where=str(checkpoint.folder),
                fix="take the 16-bit checkpoint",
            )
    problems = _mismatches(first, second)
    if problems:
        shown = "; ".join(problems[:8]) + (f"; {len(problems) - 8} more" if problems[8:] else "")
        raise PairError(
            f"no base and instruct pair: {shown}",
            where=f"{base} and {instruct}",
            fix="name the base that the instruct model was tuned from, with the same vocabulary",
        )
    return first, second


def _mismatches(base: Checkpoint, instruct: Checkpoint) -> list[str]:
    problems = []
    for key in _SIZES:
        ours, theirs = base.config.get(key), instruct.config.get(key)
        # A field that one config leaves out has a default there; shapes below tell the truth.
        if ours != theirs and ours is not None and theirs is not None:
            problems.append(f"config {key}: base {ours}, instruct {theirs}")
    if base.tied != instruct.tied:
        problems.append(f"tied head: base {base.tied}, instruct {instruct.tied}")
    both_tied = base.tied and instruct.tied
    heads = {base.head_name, instruct.head_name} if both_tied else set()
    ours_names, theirs_names = set(base.names()), set(instruct.names())
    problems += [f"only base has {n}" for n in sorted(ours_names - theirs_names - heads)]
    problems += [f"only instruct has {n}" for n in sorted(theirs_names - ours_names - heads)]
    for name in sorted(ours_names & theirs_names):
        if base.shape(name) != instruct.shape(name):
            problems.append(f"{name}: base {base.shape(name)}, instruct {instruct.shape(name)}")
    return problems


def tensor_group(name: str) -> str:
    """embedding, head, norm, attention, mlp or other, by the usual names."""
    lower = name.lower()
    if re.search(r"embed|\bwte\b|\bwpe\b", lower):
        return "embedding"
    if re.search(r"lm_head|^output\.", lower):
        return "head"
    if re.search(r"norm|\bln_", lower):
        return "norm"
    if re.search(r"attn|attention", lower):
        return "attention"
    return "mlp" if re.search(r"mlp|feed_forward|expert|moe", lower) else "other"


def is_linear_weight(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a stored tensor is the weight of a linear layer that is no embedding and no head.

    By name and shape, since the model is not built: two-dimensional, and in no such group.
    """
    outside = {"embedding", "head", "norm"}
    return name.endswith(".weight") and len(shape) == 2 and tensor_group(name) not in outside


def special_tokens(folder: Path) -> dict[str, int]:
    """Special tokens and their ids, from tokenizer.json and tokenizer_config.json; {} without."""
    found: dict[str, int] = {}
    fast = _json(Path(folder) / "tokenizer.json")
    for token in fast.get("added_tokens") or []:
        if token.get("special"):
            found[token["content"]] = int(token["id"])
    slow = _json(Path(folder) / "tokenizer_config.json").get("added_tokens_decoder") or {}
    for number, token in slow.items():
        if token.get("special"):
            found[token["content"]] = int(number)
    return found


def text_tokens(folder: Path) -> set[str]:
    """The special tokens that plain text is made with: bos, eos and unk of a tokenizer."""
    folder = Path(folder)
    config = {
        **_json(folder / "special_tokens_map.json"),
        **_json(folder / "tokenizer_config.json"),
    }
    values = (config.get(key) for key in ("bos_token", "eos_token", "unk_token"))
    named = (v.get("content") if isinstance(v, dict) else v for v in values)
    return {value for value in named if isinstance(value, str)}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError("no JSON", where=f"{path}: {error}") from error
    return value if isinstance(value, dict) else {}
