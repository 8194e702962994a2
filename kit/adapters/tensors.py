"""An adapter as numbers: what it adds to which matrix, and PEFT's files in and out.

Shapes: I in, O out, R rank. `delta_OI = scale * b_OR @ a_RI` is added to the weight of a module.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kit.errors import AdapterError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
SIDECAR_FILE = "kit_adapter.json"
SIDECAR_VERSION = 1
PREFIX = "base_model.model."

PLAIN_INITS: tuple[bool | str, ...] = (True, False, "gaussian", "eva")
"""Inits that leave the frozen weight as it was, so that the saved adapter is a delta of it."""

_LORA_KEY = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
_CHANGES_THE_DELTA = {
    "use_dora": "DoRA renormalises W + BA, so the change is no sum",
    "use_qalora": "QA-LoRA pools the input",
    "kasa_config": "KaSA cuts the frozen weight",
    "alora_invocation_tokens": "an activated LoRA works on some positions only",
    "monteclora_config": "its weights are drawn anew",
    "arrow_config": "its weights are routed",
    "use_bdlora": "its factors are block-diagonal",
    "layer_replication": "it repeats layers",
    "trainable_token_indices": "it trains single embedding rows, in a format the kit does not read",
    "target_parameters": "it adapts bare parameters, which the kit does not read",
    "lora_bias": "it trains a bias on lora_B",
    "fan_in_fan_out": "its modules store their weights transposed",
}


@dataclass(frozen=True, eq=False)
class LowRank:
    """One low-rank pair: `scale * b_OR @ a_RI` is added to a weight of shape (O, I)."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """R."""
        return int(self.a_RI.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I), the shape of the weight it is for."""
        return int(self.b_OR.shape[0]), int(self.a_RI.shape[1])


@dataclass(frozen=True, kw_only=True)
class AdapterInfo:
    """Where an adapter comes from, as far as its files say."""

    init: str = "true"
    """PEFT's `init_lora_weights`, lower case."""
    base_model: str | None = None
    """PEFT's `base_model_name_or_path`."""
    ties_weights: bool = False
    """PEFT's `ensure_weight_tying`: what was trained on an embedding holds for its tied head."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """What is to happen to a checkpoint.

    A checkpoint tensor becomes, in this order: `replaced[name]` if there is one, else the stored
    one; plus `added[name]`; plus the delta of the module that it is the weight of.
    """

    deltas: Mapping[str, LowRank] = field(default_factory=dict)
    """By module name: `model.layers.0.self_attn.q_proj`."""
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    """Fully trained tensors by tensor name: `lm_head.weight`. They cannot be weighted."""
    added: Mapping[str, Tensor] = field(default_factory=dict)
    """Full differences by tensor name. They can be weighted and summed."""
    info: AdapterInfo = AdapterInfo()


def plain_delta_problems(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Why the adapter of this PEFT config is no plain additive delta; empty when it is one.

    PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change the frozen weight before training, so their BA is
    a delta of a weight that no checkpoint holds. An init that is not known to leave the weight
    alone is refused too.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        return (f"it is of type {kind}, the kit reads LORA alone",)
    problems = [f"{key}: {why}" for key, why in _CHANGES_THE_DELTA.items() if config.get(key)]
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        problems.append(
            f"init_lora_weights is {init!r}: such an init changes the frozen weight, or is not "
            f"known to leave it alone (known: {', '.join(map(str, PLAIN_INITS))})"
        )
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']!r}: it trains biases of the frozen model")
    return tuple(problems)


def read_config(folder: Path) -> dict[str, Any]:
    """Read `adapter_config.json`.

    Raises:
        AdapterError: it is not there, or no JSON object.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise AdapterError(
            f"no readable {CONFIG_FILE}: {error}",
            where=str(folder),
            fix="name a folder that PEFT's save_pretrained wrote",
        ) from error
    if not isinstance(config, dict):
        raise AdapterError(f"{CONFIG_FILE} is no JSON object", where=str(path))
    return config


def read_adapter(folder: Path) -> Adapter:
    """Read PEFT's files; tensors in float32.

    Raises:
        AdapterError: files are missing or pickled, a key is not understood, a pair is incomplete,
            shapes and ranks disagree, or the adapter is no plain additive delta.
    """
    folder = Path(folder)
    config = read_config(folder)
    problems = plain_delta_problems(config)
    if problems:
        raise AdapterError(
            f"the adapter is no plain additive delta: {'; '.join(problems)}",
            where=str(folder),
            fix="convert it to a plain LoRA with PEFT, or train one",
        )
    pairs: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    for key, value in _read_tensors(folder).items():
        if not key.startswith(PREFIX):
            raise AdapterError(f"key {key} does not start with {PREFIX}", where=str(folder))
        name = key.removeprefix(PREFIX)
        match = _LORA_KEY.match(name)
        if match:
            pairs.setdefault(match["module"], {})[match["side"]] = value
        elif "lora_" in name or "modules_to_save" in name or "base_layer" in name:
            raise AdapterError(f"key {key} is not understood", where=str(folder))
        else:
            replaced[name] = value
    deltas = {m: _pair(m, sides, config, folder) for m, sides in sorted(pairs.items())}
    if not deltas and not replaced:
        raise AdapterError("the adapter holds no tensors", where=str(folder))
    info = AdapterInfo(
        init=str(config.get("init_lora_weights", True)).lower(),
        base_model=config.get("base_model_name_or_path"),
        ties_weights=bool(config.get("ensure_weight_tying")),
    )
    return Adapter(deltas=deltas, replaced=replaced, info=info)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise AdapterError(
            "the weights are a pickle file, which can run code" if pickled else "no weights",
            where=str(path),
            fix="save it with safe_serialization=True" if pickled else "train or copy it again",
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name).to(torch.float32) for name in names}
    except SafetensorError as error:
        raise AdapterError(f"unreadable weights: {error}", where=str(path)) from error


def _pair(
    module: str, sides: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path
) -> LowRank:
    if set(sides) != {"A", "B"}:
        raise AdapterError(f"{module} has lora_{''.join(sides)} alone", where=str(folder))
    a_RI, b_OR = sides["A"], sides["B"]
    if a_RI.ndim != 2 or b_OR.ndim != 2 or a_RI.shape[0] != b_OR.shape[1]:
        raise AdapterError(
            f"{module}: lora_A {tuple(a_RI.shape)} and lora_B {tuple(b_OR.shape)} do not multiply",
            where=str(folder),
        )
    rank = int(_for_module(config.get("rank_pattern") or {}, module, config.get("r", 8)))
    if rank != a_RI.shape[0]:
        raise AdapterError(
            f"{module}: the config says rank {rank}, the tensors have {a_RI.shape[0]}",
            where=str(folder),
        )
    alpha = float(_for_module(config.get("alpha_pattern") or {}, module, config.get("lora_alpha")))
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    return LowRank(a_RI, b_OR, alpha / divisor)


def _for_module(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the module's name, or its end after a dot."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def write_adapter(
    folder: Path, adapter: Adapter, *, base_model: str, dtype: torch.dtype = torch.float32
) -> None:
    """Write PEFT's files, so that `PeftModel.from_pretrained` gives the same delta.

    The scale goes into lora_B, and alpha = rank for every module: PEFT's scaling is then 1 whatever
    the ranks are, and whether or not a reader knows rsLoRA.

    Args:
        folder: made when it is not there; files of these names in it are replaced.
        base_model: what PEFT is to load below it.
        dtype: of the stored tensors.

    Raises:
        AdapterError: the adapter has differences (`added`), for which PEFT has no form.
    """
    if adapter.added:
        raise AdapterError(
            f"PEFT cannot store differences of full tensors ({', '.join(sorted(adapter.added))})",
            where=str(folder),
            fix="turn them into replacements for one checkpoint first: graft.on_checkpoint",
        )
    tensors: dict[str, Tensor] = {}
    for module, pair in adapter.deltas.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = pair.a_RI.to(dtype).contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = (pair.b_OR * pair.scale).to(dtype).contiguous()
    for name, value in adapter.replaced.items():
        tensors[PREFIX + name] = value.to(dtype).contiguous()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{WEIGHTS_FILE}.{os.getpid()}"
    save_file(tensors, part, metadata={"format": "pt"})
    os.replace(part, folder / WEIGHTS_FILE)
    _replace_json(folder / CONFIG_FILE, _peft_config(adapter, base_model))


def _peft_config(adapter: Adapter, base_model: str) -> dict[str, Any]:
    # PEFT writes its own defaults, so that its readers of any version find every field.
    from peft import LoraConfig

    ranks = {module: pair.rank for module, pair in adapter.deltas.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    others = {f"^{re.escape(m)}": rank for m, rank in ranks.items() if rank != usual}
    modules = sorted({name.rsplit(".", 1)[0] for name in adapter.replaced})
    config = LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=sorted(ranks),
        modules_to_save=modules or None,
        base_model_name_or_path=base_model,
        task_type="CAUSAL_LM",
        inference_mode=True,
        ensure_weight_tying=adapter.info.ties_weights,
    ).to_dict()
    config["target_modules"] = sorted(ranks)
    return {key: value for key, value in config.items() if not isinstance(value, set)}


def _replace_json(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part, path)


def adapter_fingerprint(folder: Path) -> str:
    """16 hex digits of the SHA-256 of an adapter's weights and of what scales them."""
    folder = Path(folder)
    config = read_config(folder)
    scaling = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    digest = hashlib.sha256(json.dumps({k: config.get(k) for k in scaling}).encode())
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise AdapterError("no weights", where=str(path))
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """`kit_adapter.json`: what PEFT's files do not say about an adapter."""

    base_name: str
    """What it was trained on, as the user named it: a hub id or a folder."""
    base_fingerprint: str
    """`weights_fingerprint` of the checkpoint that it was trained on."""
    quantization: str
    """How that was held while training: nf4, none."""
    recipe_fingerprint: str | None = None
    init: str = "true"
    """`init_lora_weights`; `residual` for an extracted one."""
    init_seed: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    """Write `kit_adapter.json`; the last file of an adapter's folder."""
    _replace_json(
        Path(folder) / SIDECAR_FILE, {"schema_version": SIDECAR_VERSION, **asdict(sidecar)}
    )


def read_sidecar(folder: Path) -> Sidecar | None:
    """Read `kit_adapter.json`; None where another program made the adapter.

    Raises:
        AdapterError: it was written by another version of the format.
    """
    path = Path(folder) / SIDECAR_FILE
    if not path.is_file():
        return None
    about = json.loads(path.read_text(encoding="utf-8"))
    version = about.pop("schema_version", None)
    if version != SIDECAR_VERSION:
        raise AdapterError(
            f"the sidecar has schema_version {version}, this kit reads {SIDECAR_VERSION}",
            where=str(path),
            fix="use the version of the kit that wrote it",
        )
    return Sidecar(**about)
