"""From a source as written in a recipe to a model in memory.

A source is a hub id, a local folder, a `.gguf` file, or `lilliput:base` / `lilliput:instruct`. All
of them become a local folder of 16-bit safetensors first, so that everything downstream (loading,
residuals, merges, hashes) reads one format.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import CheckpointError
from kit.hardware import Hardware

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from kit.recipe.schema import Quantization

log = logging.getLogger(__name__)

_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]


def cache_folder() -> Path:
    """Where converted checkpoints are kept: $KIT_CACHE, or ~/.cache/lora-kit."""
    return Path(os.environ.get("KIT_CACHE") or Path.home() / ".cache" / "lora-kit")


def resolve_source(source: str, *, trust_remote_code: bool = False) -> Path:
    """Make a source a local folder of 16-bit safetensors with its tokenizer.

    Args:
        source: a hub id, a folder, a `.gguf` file, `lilliput:base` or `lilliput:instruct`.
        trust_remote_code: also fetch the Python files of a hub checkpoint.

    Raises:
        CheckpointError: there is no such thing, it cannot be fetched, or it holds pickled weights.
    """
    if source.startswith("lilliput:"):
        return _lilliput(source)
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"{path.name} is a file, and of files only .gguf can be a model",
                where=source,
                fix="name the folder that holds config.json and the .safetensors files",
            )
        return _from_gguf(path)
    if path.is_dir():
        _check_folder(path)
        return path
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise CheckpointError(
            "no such folder or file, and no hub id (OWNER/NAME) either",
            where=source,
            fix="check the path; relative paths start at the folder where the command is run",
        )
    return _from_hub(source, trust_remote_code=trust_remote_code)


def _lilliput(source: str) -> Path:
    from kit.models import lilliput

    folders = {"lilliput:base": lilliput.BASE, "lilliput:instruct": lilliput.INSTRUCT}
    if source not in folders:
        raise CheckpointError(
            "Lilliput has no such model", where=source, fix=f"write one of {sorted(folders)}"
        )
    return folders[source]


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "the folder has no config.json, so it is no checkpoint",
            where=str(folder),
            fix="name the folder that holds config.json and the .safetensors files",
        )
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"the weights are pickled ({pickles[0]}), and reading a pickle can run any code in it",
            where=str(folder),
            fix="get the safetensors version of the checkpoint, or convert it where you trust it",
        )
    raise CheckpointError(
        "the folder has a config.json but no .safetensors file",
        where=str(folder),
        fix="finish the download or copy of the weights",
    )


def _from_hub(name: str, *, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*_HUB_FILES, "*.py"] if trust_remote_code else _HUB_FILES
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"the checkpoint could not be fetched: {reason}",
            where=name,
            fix="check the name and the network; for a gated model run `hf auth login` first",
        ) from error
    _check_folder(folder)
    return folder


def _from_gguf(path: Path) -> Path:
    """Convert once to a 16-bit folder in the cache, named by the file's content."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = cache_folder() / f"gguf-{path.stem}-{_digest(path)}"
    if (target / "config.json").is_file():
        return target
    log.warning(
        "%s holds weights that are quantised already: they are written once as 16 bit to %s, and "
        "4-bit loading rounds them a second time",
        path.name,
        target,
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise CheckpointError(
            f"transformers cannot read this GGUF file: {error}",
            where=str(path),
            fix="use the safetensors version of the checkpoint",
        ) from error
    # A model read from GGUF keeps a quantization_config that save_pretrained refuses to write.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    plain: Any = model  # the attribute is typed as a module
    plain.hf_quantizer = None
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    try:
        scratch.replace(target)
    except OSError:
        shutil.rmtree(scratch)
        if not (target / "config.json").is_file():  # else another process was first
            raise
    return target


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()[:12]


def load_model(
    folder: Path,
    *,
    quantization: Quantization,
    hardware: Hardware,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint for use with adapters: frozen, in eval mode, on the device.

    Args:
        folder: what `resolve_source` returned.
        quantization: `nf4` (bitsandbytes, double quantisation), `16bit` or `32bit`.
        hardware: decides the device and the compute dtype.
        trust_remote_code: run the checkpoint's own Python code.

    Raises:
        CheckpointError: the architecture is unknown, or bitsandbytes cannot serve it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if quantization == "32bit" else getattr(torch, hardware.compute_dtype)
    options: dict[str, Any] = {
        "dtype": dtype,
        "device_map": {"": 0 if hardware.device == "cuda" else "cpu"},
        "trust_remote_code": trust_remote_code,
        "local_files_only": True,
        "use_safetensors": True,
        "attn_implementation": "sdpa",
    }
    if quantization == "nf4":
        options["quantization_config"] = _nf4(dtype)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"the model could not be loaded: {error}",
            where=str(folder),
            fix="run `kit doctor`; a checkpoint with own code needs models.trust_remote_code",
        ) from error
    if quantization == "nf4":
        keep_canonical_4bit_layout(model)
    model.requires_grad_(False)
    model.config.use_cache = True
    return model.eval()


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_canonical_4bit_layout(model: torch.nn.Module) -> int:
    """Forbid bitsandbytes to repack 4-bit weights on a CPU with AVX512-BF16; returns how many.

    bitsandbytes repacks a Linear4bit at its first forward in eval mode without gradients, and the
    repacked forward has no autograd: training after an evaluation would go on with gradients that
    are exactly 0. A weight that is packed already is unpacked.
    """
    found = 0
    for module in model.modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        found += 1
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            # Writing a state dict is bitsandbytes' own way back to the canonical layout.
            module.state_dict()
    return found


def dequantize(model: PreTrainedModel, *, dtype: torch.dtype) -> int:
    """Replace 4-bit layers by 16-bit ones that hold the same numbers, in place.

    A 4-bit layer's forward dequantises its weight to the compute dtype each time; doing it once
    gives the same products and makes decoding several times faster, for the price of the memory.

    Returns:
        How many layers were replaced.
    """
    import bitsandbytes as bnb
    import torch

    count = 0
    for name, module in list(model.named_modules()):
        if not isinstance(module, bnb.nn.Linear4bit):
            continue
        packed: Any = module.weight
        weight = bnb.functional.dequantize_4bit(packed.data, packed.quant_state)
        dense = torch.nn.Linear(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            device="meta",
        )
        dense.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
        if module.bias is not None:
            dense.bias = torch.nn.Parameter(module.bias.data.to(dtype), requires_grad=False)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, dense)
        count += 1
    if count:
        plain: Any = model  # these two attributes are typed as modules
        plain.is_loaded_in_4bit, plain.hf_quantizer = False, None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    return count
