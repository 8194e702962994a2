"""Write a stack into the weights: plan -> validate -> apply -> verify, one tensor at a time.

plan      which tensor changes by what; how many bytes; what is there already
validate  every key fits, nothing is merged twice, the disk has room
apply     float32 arithmetic, one cast, shards under a temporary name
verify    every tensor is read again and compared; then the marker; then the final name
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kit.adapters.algebra import dense_delta, resolve_tied
from kit.adapters.graft import check_modules
from kit.adapters.stack import Stack
from kit.adapters.tensors import Adapter, adapter_fingerprint, read_sidecar
from kit.errors import AdapterError, CheckpointError, StorageError
from kit.models.weights import Checkpoint, weights_fingerprint, write_checkpoint
from kit.units import show_bytes

MARKER_FILE = "kit_merge.json"
MARKER_VERSION = 1
DtypeName = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge did."""

    out: str
    stack: str
    already_done: bool
    """The same merge was there, and nothing was written."""
    changed: int
    """Tensors that the stack changed."""
    tensors: int
    dtype: str
    max_rounding: float
    """Largest |stored - exact| over the largest |exact| of its tensor."""
    warnings: tuple[str, ...]
    """What makes the merged model another one than the adapters were trained in."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def merge(
    stack: Stack,
    *,
    checkpoint: Path,
    out: Path,
    dtype: DtypeName | None = None,
    checkpoints: Mapping[Any, Path] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge a stack into a 16-bit or 32-bit checkpoint.

    Args:
        stack: at least one adapter with a weight other than 0.
        checkpoint: folder of the stack's checkpoint. A quantised one is refused: merging into
            dequantised 4-bit weights would keep their error.
        out: new folder. When it holds the same merge already, nothing is done.
        dtype: of every tensor; None: what the checkpoint stores it in.
        checkpoints: folders of other checkpoints by name, for adapters with fully trained tensors.
        progress: called with (tensors written, tensors in all).

    Raises:
        AdapterError: a key does not fit, an adapter was merged into this checkpoint before, or the
            head of a tied checkpoint is adapted alone.
        CheckpointError: `out` is in use, the checkpoint is quantised, or verifying failed.
        StorageError: no room.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    source = Checkpoint(checkpoint)
    marker = _plan(stack, source, dtype)
    if out.exists() and any(out.iterdir()):
        return _existing(out, marker)
    adapter = stack.combined({**(checkpoints or {}), stack.checkpoint: checkpoint})
    if adapter is None:
        raise AdapterError("the stack adds nothing to its checkpoint", where=str(stack))
    adapter = _validate(adapter, source, out, marker)
    wanted = getattr(torch, dtype) if dtype else None
    report: dict[str, float] = {}

    def finish(folder: Path) -> None:
        report["max_rounding"] = _verify(folder, source, adapter, wanted)
        marker["max_rounding"] = report["max_rounding"]
        marker["changed"] = changed
        text = json.dumps(marker, indent=2) + "\n"
        (folder / MARKER_FILE).write_text(text, encoding="utf-8")

    changed = sum(_touches(name, adapter) for name in source.names())
    tensors = _apply(source, adapter, progress)
    write_checkpoint(out, tensors, like=source, dtype=wanted, finish=finish)
    return _report(out, marker, already_done=False)


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What was merged into a checkpoint; None for an unmerged one.

    Raises:
        CheckpointError: the marker was written by another version of the format.
    """
    path = Path(folder) / MARKER_FILE
    if not path.is_file():
        return None
    marker: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if marker.get("schema_version") != MARKER_VERSION:
        raise CheckpointError(
            f"the marker has schema_version {marker.get('schema_version')}, "
            f"this kit reads {MARKER_VERSION}",
            where=str(path),
        )
    return marker


def _plan(stack: Stack, source: Checkpoint, dtype: str | None) -> dict[str, Any]:
    before = read_marker(source.folder)
    return {
        "schema_version": MARKER_VERSION,
        "stack": str(stack),
        "checkpoint_fingerprint": weights_fingerprint(source.folder),
        "adapters": [
            {"name": a.name, "fingerprint": adapter_fingerprint(a.path), "weight": a.weight}
            for a in stack.adapters
            if a.weight != 0
        ],
        "merged_before": before["merged_before"] + before["adapters"] if before else [],
        "dtype": dtype or "as stored",
        "tensors": len(source.names()),
        "warnings": _warnings(stack, source.folder),
    }


def _warnings(stack: Stack, folder: Path) -> list[str]:
    found, here = [], weights_fingerprint(folder)
    for weighted in stack.adapters:
        sidecar = read_sidecar(weighted.path)
        if sidecar is None or weighted.weight == 0:
            continue
        if sidecar.base_fingerprint != here:
            found.append(
                f"{weighted.name} was trained on {sidecar.base_name}, not on this checkpoint: that "
                "is a graft, and check_graft says whether it is exact"
            )
        if sidecar.quantization == "nf4":
            found.append(
                f"{weighted.name} was trained on 4-bit weights; in these weights its output "
                "differs a little: measure both"
            )
    return found


def _existing(out: Path, marker: dict[str, Any]) -> MergeReport:
    found = read_marker(out)
    same = ("checkpoint_fingerprint", "adapters", "dtype")
    if found is None or any(found[key] != marker[key] for key in same):
        what = "another merge: " + found["stack"] if found else "something else"
        raise CheckpointError(
            f"the output folder holds {what}; this one is {marker['stack']}",
            where=str(out),
            fix="name another folder, or remove it",
        )
    return _report(out, found, already_done=True)


def _report(out: Path, marker: dict[str, Any], *, already_done: bool) -> MergeReport:
    return MergeReport(
        out=str(out),
        stack=marker["stack"],
        already_done=already_done,
        changed=marker["changed"],
        tensors=marker["tensors"],
        dtype=marker["dtype"],
        max_rounding=marker["max_rounding"],
        warnings=tuple(marker["warnings"]),
    )


def _validate(adapter: Adapter, source: Checkpoint, out: Path, marker: dict[str, Any]) -> Adapter:
    if source.quantised:
        raise CheckpointError(
            "the checkpoint is quantised", where=str(source.folder), fix="take the 16-bit one"
        )
    before = {row["fingerprint"]: row["name"] for row in marker["merged_before"]}
    twice = [row["name"] for row in marker["adapters"] if row["fingerprint"] in before]
    if twice:
        raise AdapterError(
            f"already merged into this checkpoint: {', '.join(twice)}",
            where=str(source.folder),
            fix="merge into the checkpoint as it was before",
        )
    check_modules(adapter, source)
    if source.tied and source.embedding_name and source.head_name:
        head = source.head_name
        if head.removesuffix(".weight") in adapter.deltas:
            raise AdapterError(
                f"{head} is the embedding in this checkpoint; a delta on the head alone cannot be "
                "written into it",
                where=str(source.folder),
                fix="keep the adapter as an adapter",
            )
        adapter = resolve_tied(adapter, embedding=source.embedding_name, head=head)
    _check_room(source, out, marker["dtype"])
    return adapter


def _check_room(source: Checkpoint, out: Path, dtype: str) -> None:
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    needed = source.num_bytes() * (2 if dtype == "float32" else 1) + 64 * 1024**2
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise StorageError(
            f"the merge needs up to {show_bytes(needed)}, {show_bytes(free)} are free",
            where=str(out),
        )


def _touches(name: str, adapter: Adapter) -> bool:
    module = name.removesuffix(".weight")
    return name in adapter.replaced or name in adapter.added or module in adapter.deltas


def _expected(name: str, source: Checkpoint, adapter: Adapter) -> Tensor:
    """The exact value of a tensor, float32."""
    stored = source.tensor(name)
    # A head that is stored although it is tied goes with its embedding.
    if source.tied and name == source.head_name and source.embedding_name:
        return _expected(source.embedding_name, source, adapter)
    value = adapter.replaced.get(name, stored)
    if name in adapter.added:
        value = value + adapter.added[name]
    pair = adapter.deltas.get(name.removesuffix(".weight"))
    return value if pair is None else value + dense_delta(pair)


def _apply(
    source: Checkpoint, adapter: Adapter, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, Tensor]]:
    names = source.names()
    for done, name in enumerate(names, start=1):
        yield name, _expected(name, source, adapter)
        if progress is not None:
            progress(done, len(names))


def _verify(folder: Path, source: Checkpoint, adapter: Adapter, dtype: torch.dtype | None) -> float:
    """Read everything again; returns the largest rounding, relative to its tensor's largest value.

    Raises:
        CheckpointError: a tensor is missing, or further from its exact value than the dtype rounds.
    """
    written = Checkpoint(folder)
    if written.names() != source.names():
        raise CheckpointError("the written tensors are not those of the source", where=str(folder))
    worst = 0.0
    for name in written.names():
        exact = _expected(name, source, adapter)
        found = written.tensor(name, None)
        kind = dtype or source.dtype(name)
        if exact.is_floating_point() and found.dtype == kind:
            off, rounding = _difference(exact, found)
            worst = max(worst, rounding)
        else:
            off = not torch.equal(exact, found)
        if off:
            raise CheckpointError(f"{name} is not what was to be written", where=str(folder))
    return worst


def _difference(exact: Tensor, found: Tensor) -> tuple[bool, float]:
    """Whether `found` is further off than its dtype rounds, and the largest relative rounding.

    In pieces, since the embedding of a large vocabulary alone is gigabytes in float32.
    """
    limits = torch.finfo(found.dtype)
    largest = max((float(p.abs().max()) for p in exact.flatten().split(1 << 24)), default=0.0)
    off, error_max = False, 0.0
    for piece, stored in zip(
        exact.flatten().split(1 << 24), found.flatten().split(1 << 24), strict=True
    ):
        # Half a unit in the last place, what is lost below the smallest normal number, and a little
        # for a float32 product that is computed a second time here.
        allowed = piece.abs() * (limits.eps / 2) + limits.tiny * limits.eps + 1e-6 * largest
        error = (stored.float() - piece).abs()
        off = off or bool((error > allowed).any())
        error_max = max(error_max, float(error.max()))
    return off, error_max / largest if largest else 0.0
