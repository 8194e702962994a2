"""Checkpoints on disk: read tensor by tensor, written shard by shard, never a whole model at once.

One tensor is in memory at a time while reading, one shard while writing. A folder appears under
its final name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kit.errors import CheckpointError, StorageError

DEFAULT_SHARD_BYTES = 2 * 1024**3
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_NO_METADATA = {*_PICKLES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx"}
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
_HEADS = ("lm_head", "embed_out", "output")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Checkpoint:
    """A folder of safetensors, one file or shards with an index, read tensor by tensor.

    Args:
        folder: holds `config.json` and the weights.

    Raises:
        CheckpointError: no folder, no config, no safetensors, or a shard that is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.config: dict[str, Any] = _read_config(self.folder)
        self._files = _weight_files(self.folder)
        self._handles: dict[Path, Any] = {}
        self._where = self._locate()

    def _locate(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for file in self._files:
            for name in self._open(file).keys():  # noqa: SIM118 - a handle, not a dict
                if name in found:
                    raise CheckpointError(
                        f"tensor {name} stands in two files",
                        where=f"{found[name]} and {file}",
                        fix="keep the files of one checkpoint only",
                    )
                found[name] = file
        return found

    def _open(self, file: Path) -> Any:
        if file not in self._handles:
            try:
                self._handles[file] = safe_open(file, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"the file cannot be read: {error}", where=str(file), fix="fetch it again"
                ) from error
        return self._handles[file]

    def _slice(self, name: str) -> Any:
        stored = self.stored_name(name)
        return self._open(self._where[stored]).get_slice(stored)

    def names(self) -> tuple[str, ...]:
        """Names of the stored tensors, sorted. A tied head that is not stored is not among them."""
        return tuple(sorted(self._where))

    def distinct_names(self) -> tuple[str, ...]:
        """`names()` without a head that is stored although it is tied: each number once."""
        twice = {self.head_name} if self.tied and self.embedding_name else set()
        return tuple(name for name in self.names() if name not in twice)

    def stored_name(self, name: str) -> str:
        """The name under which a tensor is stored; a tied head is the embedding.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name in self._where:
            return name
        if self.tied and name == self.head_name and self.embedding_name:
            return self.embedding_name
        raise CheckpointError(f"no tensor {name}", where=str(self.folder))

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the file's header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype | None:
        """Stored dtype where it is an ordinary float, else None (integers, 8-bit floats)."""
        return _FLOATS.get(self._slice(name).get_dtype())

    def tensor(self, name: str, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """Read one tensor; `dtype=None` and integer tensors keep the stored dtype."""
        stored = self.stored_name(name)
        value: Tensor = self._open(self._where[stored]).get_tensor(stored)
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    def num_bytes(self) -> int:
        """Size of the weight files."""
        return sum(file.stat().st_size for file in self._files)

    @cached_property
    def embedding_name(self) -> str | None:
        """Name of the input embedding's tensor."""
        return self._first_weight_of(_EMBEDDINGS)

    @cached_property
    def head_name(self) -> str | None:
        """Name of the output head's tensor; `lm_head.weight` where a tied head is not stored."""
        stored = self._first_weight_of(_HEADS)
        return stored or ("lm_head.weight" if self.embedding_name else None)

    def _first_weight_of(self, leaves: tuple[str, ...]) -> str | None:
        named = (n for n in sorted(self._where) if n.endswith(".weight"))
        # `output` is a head at the top level alone: a BERT-like block has modules of that name.
        hits = [
            n
            for n in named
            if n.split(".")[-2] in leaves and (n.split(".")[-2] != "output" or n.count(".") == 1)
        ]
        return min(hits, key=lambda n: (n.count("."), n), default=None)

    @cached_property
    def tied(self) -> bool:
        """Whether the output head is the input embedding.

        The file decides first: a head that is not stored can only be the embedding. Where both are
        stored, the config says whether they are one.
        """
        if self._first_weight_of(_HEADS) is None:
            return True
        return bool(self.config.get("tie_word_embeddings", False))

    @cached_property
    def quantised(self) -> bool:
        """Whether matrices are stored in fewer than 16 bits (packed integers, 8-bit floats)."""
        matrices = (n for n in self._where if n.endswith("weight") and len(self.shape(n)) == 2)
        return any(self.dtype(name) is None for name in matrices)

    def metadata_files(self) -> tuple[Path, ...]:
        """What lies beside the weights and belongs to the model: config, tokenizer, template.

        Left out: weights of any format, their indexes, hidden files, the kit's own markers, and the
        README, which describes another model once the weights have changed.
        """
        return tuple(
            file
            for file in sorted(self.folder.iterdir())
            if file.is_file()
            and file.suffix not in _NO_METADATA
            and not file.name.endswith(".index.json")
            and not file.name.startswith((".", "kit_", "adapter_"))
            and file.name.lower() != "readme.md"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            "no config.json in the folder" if folder.is_dir() else "no such folder",
            where=str(folder),
            fix="name a folder that transformers' save_pretrained wrote",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError("config.json is no JSON", where=f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError("config.json is no JSON object", where=str(path))
    return config


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = tuple(folder / name for name in sorted(set(shards)))
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{len(missing)} shards of the index are missing: {', '.join(missing[:3])}",
                where=str(folder),
                fix="fetch the checkpoint again",
            )
        return files
    single = folder / "model.safetensors"
    if single.is_file():
        return (single,)
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"the weights are pickle files ({', '.join(pickles[:3])}); reading one can run any "
            "code that its author put in",
            where=str(folder),
            fix="take a revision with safetensors, or convert it where that code may run: "
            "transformers' from_pretrained, then save_pretrained",
        )
    raise CheckpointError(
        "no model.safetensors and no index of shards", where=str(folder), fix="name a model folder"
    )


def weights_fingerprint(folder: Path) -> str:
    """16 hex digits that tell one checkpoint from another without reading all of it.

    SHA-256 over every weight file's size and header (names, shapes, dtypes) and 64 pieces of 4 KiB
    spread evenly over it: two checkpoints of one shape differ in the pieces alone. The same numbers
    in another dtype or other shards are another fingerprint.
    """
    digest = hashlib.sha256()
    for file in _weight_files(Path(folder)):
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(header_bytes))
            start, count = 8 + header_bytes, 64
            for piece in range(count):
                stream.seek(start + (size - start) * piece // count)
                digest.update(stream.read(4096))
    return digest.hexdigest()[:16]


def write_checkpoint(
    folder: Path,
    tensors: Iterator[tuple[str, Tensor]],
    *,
    like: Checkpoint,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint, holding one shard in memory.

    Args:
        folder: must not exist, or be empty.
        tensors: names and values, each cast once, here.
        like: config, tokenizer and the rest are copied from it. A `quantization_config` is dropped:
            what is written is not quantised.
        dtype: of every float tensor; None: the dtype that `like` stores it in.
        max_shard_bytes: a new shard begins before this is passed.
        finish: called with the complete folder under its temporary name; what it writes there is
            written last, and when it raises, nothing appears.

    Raises:
        CheckpointError: the folder is in use, or a value does not fit the dtype (float16 overflow).
        StorageError: the disk is full.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError("the output folder is in use", where=str(folder), fix="name another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        chosen = _write_shards(temporary, _cast(tensors, like, dtype), max_shard_bytes)
        _copy_metadata(temporary, like, dtype or chosen)
        if finish is not None:
            finish(temporary)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"writing failed: {error}", where=str(folder)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cast(
    tensors: Iterator[tuple[str, Tensor]], like: Checkpoint, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    for name, value in tensors:
        if not value.is_floating_point():
            yield name, value.contiguous()
            continue
        target = dtype or (like.dtype(name) if name in like else None) or value.dtype
        cast = value.to(target).contiguous()
        if cast.numel() and not bool(torch.isfinite(cast).all()):
            raise CheckpointError(
                f"{name} has values that {target} cannot hold, or none at all (inf, nan)",
                where=str(like.folder),
                fix="write bfloat16 or float32",
            )
        yield name, cast


def _write_shards(
    folder: Path, tensors: Iterator[tuple[str, Tensor]], max_shard_bytes: int
) -> torch.dtype | None:
    """Returns the dtype with the most elements, for config.json."""
    held: dict[str, Tensor] = {}
    shards: list[list[str]] = []
    held_bytes = total_bytes = 0
    elements: dict[torch.dtype, int] = {}

    def flush() -> None:
        shards.append(list(held))
        save_file(held, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        held.clear()

    for name, value in tensors:
        if held and held_bytes + value.nbytes > max_shard_bytes:
            flush()
            held_bytes = 0
        held[name] = value
        held_bytes += value.nbytes
        total_bytes += value.nbytes
        if value.is_floating_point():
            elements[value.dtype] = elements.get(value.dtype, 0) + value.numel()
    flush()
    _name_shards(folder, shards, total_bytes)
    return max(elements, key=lambda d: elements[d]) if elements else None


def _name_shards(folder: Path, shards: list[list[str]], total_bytes: int) -> None:
    if len(shards) == 1:
        os.replace(folder / "1.part", folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / f"{number}.part", folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _copy_metadata(folder: Path, like: Checkpoint, dtype: torch.dtype | None) -> None:
    for file in like.metadata_files():
        if file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    dropped = {"quantization_config", "torch_dtype", "_name_or_path"}
    config = {key: value for key, value in like.config.items() if key not in dropped}
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
