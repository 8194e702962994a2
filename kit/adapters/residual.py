"""The instruction residual as a LoRA on the base: instruct - base, cut to a rank, and what it lost.

Read in float32 from 16-bit checkpoints, one tensor at a time; the factors of the largest rank are
what stays in memory. Only linear layers fit into a LoRA, so the energy of everything else
(embeddings, head, norms, biases) is reported as lost, whatever the rank.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kit.adapters.tensors import (
    Adapter,
    AdapterInfo,
    LowRank,
    Sidecar,
    write_adapter,
    write_sidecar,
)
from kit.errors import AdapterError
from kit.models.pair_check import is_linear_weight, require_pair, tensor_group
from kit.models.spectrum import EXACT_UP_TO, Spectrum, energy, factors
from kit.models.weights import Checkpoint, weights_fingerprint

ENERGY_FILE = "kit_residual.json"
SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class ModuleEnergy:
    """One linear layer's difference."""

    module: str
    shape: tuple[int, int]
    energy: float
    """Squared Frobenius norm of the difference."""
    kept: dict[int, float]
    """Share of the energy kept, by rank. Exact."""
    rank_for: dict[float, int]
    """Rank that a share of the energy needs; an estimate where it is above `known_ranks`."""
    known_ranks: int
    """Directions whose energy was computed; the others' is estimated."""


@dataclass(frozen=True, kw_only=True)
class ResidualReport:
    """What low-rank residuals of a pair keep."""

    base: str
    instruct: str
    ranks: tuple[int, ...]
    energy: float
    """Of the whole difference, over every tensor."""
    linear_share: float
    """Share of it in the adapted linear layers: no LoRA on them can keep more."""
    elsewhere: dict[str, float]
    """Share of it elsewhere, by group: embedding, head, norm, ..."""
    kept: dict[int, float]
    """Share of the whole energy kept, by rank."""
    kept_of_linear: dict[int, float]
    """Share of the adapted layers' energy kept, by rank."""
    rank_for: dict[float, int]
    """One rank for all adapted layers that keeps a share of their energy."""
    exact: bool
    """Whether `rank_for` is exact, or estimated in part (wide layers); `kept` is always exact."""
    modules: tuple[ModuleEnergy, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ranks and shares become text there."""
        return asdict(self)


def residual_tensors(base: Path, instruct: Path) -> Iterator[tuple[str, Tensor]]:
    """instruct - base, tensor by tensor, in float32; a tied head comes once, as the embedding.

    Raises:
        PairError: the two are no pair, or one is quantised.
    """
    first, second = require_pair(base, instruct)
    for name in first.distinct_names():
        yield name, second.tensor(name) - first.tensor(name)


def extract_residual(
    base: Path,
    instruct: Path,
    *,
    ranks: Sequence[int],
    out: Callable[[int], Path],
    target_modules: Sequence[str] | Literal["all-linear"] = "all-linear",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    device: str = "cpu",
    exact_up_to: int = EXACT_UP_TO,
) -> ResidualReport:
    """Write the residual as one plain LoRA on the base for each rank.

    One decomposition serves all ranks: the best approximation of rank k is the first k directions
    of any larger one. See `kit.models.spectrum` for what is exact.

    Args:
        base: folder, 16 or 32 bit.
        instruct: folder, of the same shape.
        ranks: each at least 1; a module narrower than a rank keeps its full rank.
        out: folder of a rank's adapter.
        target_modules: as in `attach_lora`.
        seed: of the randomized decomposition of wide matrices.
        progress: called with (tensors done, tensors in all).
        device: where the decompositions run.
        exact_up_to: widest matrix (its smaller side) that is decomposed exactly.

    Raises:
        PairError: the two are no pair, or one is quantised.
        AdapterError: a rank below 1, no rank, or a pattern that matches no linear layer.
    """
    if not ranks or min(ranks) < 1:
        raise AdapterError(f"ranks {list(ranks)}: each must be at least 1")
    ranks = tuple(sorted(set(ranks)))
    first, _ = require_pair(base, instruct)
    targets = _targets(first, target_modules)
    pairs: dict[str, LowRank] = {}
    spectra: dict[str, Spectrum] = {}
    elsewhere: dict[str, float] = {}
    total = len(first.distinct_names())
    for done, (name, delta) in enumerate(residual_tensors(base, instruct), start=1):
        if name in targets:
            module = name.removesuffix(".weight")
            b_OK, a_KI, spectra[module] = factors(
                delta.to(device), rank=max(ranks), seed=seed, exact_up_to=exact_up_to
            )
            pairs[module] = LowRank(a_KI.cpu(), b_OK.cpu())
        else:
            group = tensor_group(name)
            elsewhere[group] = elsewhere.get(group, 0.0) + energy(delta)
        if progress is not None:
            progress(done, total)
    report = _report(str(base), str(instruct), ranks, pairs, spectra, elsewhere)
    for rank in ranks:
        _write(out(rank), rank, pairs, report, seed)
    return report


def _targets(checkpoint: Checkpoint, patterns: Sequence[str] | str) -> set[str]:
    names = checkpoint.distinct_names()
    linear = [name for name in names if is_linear_weight(name, checkpoint.shape(name))]
    if patterns == "all-linear":
        return set(linear)
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        ending = f"{pattern}.weight"
        hits = {name for name in linear if name == ending or name.endswith("." + ending)}
        if not hits:
            leaves = sorted({name.split(".")[-2] for name in linear})
            raise AdapterError(
                f"{pattern!r} matches no linear layer",
                where="target_modules",
                fix=f"there are {', '.join(leaves)}",
            )
        chosen |= hits
    return chosen


def _report(
    base: str,
    instruct: str,
    ranks: tuple[int, ...],
    pairs: dict[str, LowRank],
    spectra: dict[str, Spectrum],
    elsewhere: dict[str, float],
) -> ResidualReport:
    linear = sum(known.total for known in spectra.values())
    whole = linear + sum(elsewhere.values())
    together = _together(spectra)
    kept = {r: sum(s.kept(r) * s.total for s in spectra.values()) for r in ranks}
    modules = tuple(
        ModuleEnergy(
            module=module,
            shape=pairs[module].shape,
            energy=known.total,
            kept={rank: known.kept(rank) for rank in ranks},
            rank_for={share: known.rank_for(share) for share in SHARES},
            known_ranks=known.known,
        )
        for module, known in spectra.items()
    )
    return ResidualReport(
        base=base,
        instruct=instruct,
        ranks=ranks,
        energy=whole,
        linear_share=_share(linear, whole),
        elsewhere={group: _share(value, whole) for group, value in sorted(elsewhere.items())},
        kept={rank: _share(value, whole) for rank, value in kept.items()},
        kept_of_linear={rank: _share(value, linear) for rank, value in kept.items()},
        rank_for={share: together.rank_for(share) for share in SHARES},
        exact=together.exact,
        modules=modules,
    )


def _share(part: float, whole: float) -> float:
    """Of nothing, everything is kept."""
    return part / whole if whole > 0 else 1.0


def _together(spectra: dict[str, Spectrum]) -> Spectrum:
    """Energy of each direction, summed over the layers: what one rank for all of them keeps."""
    widest = max((len(known.energies_N) for known in spectra.values()), default=0)
    energies_N = torch.zeros(widest, dtype=torch.float64)
    for known in spectra.values():
        energies_N[: len(known.energies_N)] += known.energies_N
    total = sum(known.total for known in spectra.values())
    computed = min((k.known for k in spectra.values() if not k.exact), default=widest)
    return Spectrum(energies_N=energies_N, total=total, known=computed)


def _write(
    folder: Path, rank: int, pairs: dict[str, LowRank], report: ResidualReport, seed: int
) -> None:
    cut = {m: LowRank(p.a_RI[:rank], p.b_OR[:, :rank]) for m, p in pairs.items()}
    adapter = Adapter(deltas=cut, info=AdapterInfo(base_model=report.base))
    write_adapter(folder, adapter, base_model=report.base)
    part = Path(folder) / f".{ENERGY_FILE}.{os.getpid()}"
    text = json.dumps({"schema_version": 1, "rank": rank, **report.to_dict()}, indent=2) + "\n"
    part.write_text(text, encoding="utf-8")
    os.replace(part, Path(folder) / ENERGY_FILE)
    sidecar = Sidecar(
        base_name=report.base,
        base_fingerprint=weights_fingerprint(Path(report.base)),
        quantization="none",
        init="residual",
        init_seed=seed,
        extra={"instruct": report.instruct, "rank": rank, "kept": report.kept[rank]},
    )
    write_sidecar(folder, sidecar)
