"""Arithmetic on adapters: pure functions; no dense matrix is formed unless asked for.

Shapes: I in, O out, R rank, K a smaller rank.

    w1 * s1 * B1 A1 + w2 * s2 * B2 A2  =  [w1 s1 B1, w2 s2 B2] [A1; A2]       (ranks add)

Adding A1 to A2 and B1 to B2 instead would bring the cross terms B1 A2 and B2 A1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kit.adapters.tensors import Adapter, LowRank
from kit.errors import AdapterError


def dense_delta(pair: LowRank) -> Tensor:
    """`scale * b_OR @ a_RI`, shape (O, I), float32."""
    return pair.scale * (pair.b_OR.float() @ pair.a_RI.float())


def scaled(adapter: Adapter, weight: float) -> Adapter:
    """The adapter times a weight.

    A replaced tensor is no delta, so only weight 1 (it stays) and 0 (it goes) mean something for
    it; `graft.as_differences` turns it into a difference, which takes any weight.

    Raises:
        AdapterError: a weight that is no finite number, or another weight on a replaced tensor.
    """
    if not abs(weight) < float("inf"):
        raise AdapterError(f"the weight of an adapter is {weight}", fix="write a finite number")
    if weight == 0:
        return Adapter(info=adapter.info)
    if weight != 1 and adapter.replaced:
        raise AdapterError(
            f"weight {weight} on replaced tensors ({', '.join(sorted(adapter.replaced))})",
            fix="turn them into differences of the checkpoint they were trained on first",
        )
    deltas = {m: replace(p, scale=p.scale * weight) for m, p in adapter.deltas.items()}
    added = {name: value * weight for name, value in adapter.added.items()}
    return replace(adapter, deltas=deltas, added=added)


def concatenated(parts: Sequence[tuple[Adapter, float]]) -> Adapter:
    """The weighted sum of adapters, exact: ranks are put side by side, scales go into B.

    Raises:
        AdapterError: shapes of a module disagree, or a tensor is replaced twice.
    """
    weighted = [scaled(adapter, weight) for adapter, weight in parts]
    modules: dict[str, list[LowRank]] = {}
    replaced: dict[str, Tensor] = {}
    added: dict[str, Tensor] = {}
    for adapter in weighted:
        for module, pair in adapter.deltas.items():
            modules.setdefault(module, []).append(pair)
        for name, value in adapter.replaced.items():
            if name in replaced:
                raise AdapterError(f"two adapters replace {name}", fix="use differences")
            replaced[name] = value
        for name, value in adapter.added.items():
            added[name] = added[name] + value if name in added else value
    deltas = {module: _side_by_side(module, pairs) for module, pairs in sorted(modules.items())}
    info = weighted[0].info if len(weighted) == 1 else Adapter().info
    if any(a.info.ties_weights for a in weighted):
        info = replace(info, ties_weights=True)
    return Adapter(deltas=deltas, replaced=replaced, added=added, info=info)


def _side_by_side(module: str, pairs: list[LowRank]) -> LowRank:
    if len(pairs) == 1:
        return pairs[0]
    shapes = {pair.shape for pair in pairs}
    if len(shapes) > 1:
        raise AdapterError(f"adapters of different shapes {sorted(shapes)}", where=module)
    a_RI = torch.cat([pair.a_RI for pair in pairs], dim=0)
    b_OR = torch.cat([pair.b_OR * pair.scale for pair in pairs], dim=1)
    return LowRank(a_RI, b_OR, 1.0)


def squared_norm(pair: LowRank) -> float:
    """Squared Frobenius norm of the delta, sum((B^T B) * (A A^T)) times scale^2, in float64."""
    a_RI, b_OR = pair.a_RI.double(), pair.b_OR.double()
    return float(pair.scale**2 * ((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum())


def truncated(adapter: Adapter, rank: int) -> Adapter:
    """Cut every pair to its best approximation of a rank (Eckart, Young), no dense matrix formed.

    B = Q_b R_b and A^T = Q_a R_a turn the SVD of BA into that of the R x R matrix R_b R_a^T.
    float64 inside. A pair whose rank is not above the wanted one stays as it is.

    Raises:
        AdapterError: the rank is below 1.
    """
    if rank < 1:
        raise AdapterError(f"rank {rank} is below 1")
    deltas = {m: _truncated_pair(pair, rank) for m, pair in adapter.deltas.items()}
    return replace(adapter, deltas=deltas)


def _truncated_pair(pair: LowRank, rank: int) -> LowRank:
    if pair.rank <= rank:
        return pair
    q_b, r_b = torch.linalg.qr(pair.b_OR.double())
    q_a, r_a = torch.linalg.qr(pair.a_RI.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root_K = s[:rank].sqrt()
    b_OK = q_b @ (u[:, :rank] * root_K)
    a_KI = (q_a @ (vh[:rank].T * root_K)).T
    dtype = pair.a_RI.dtype
    return LowRank(a_KI.to(dtype).contiguous(), b_OK.to(dtype).contiguous(), pair.scale)


def resolve_tied(adapter: Adapter, *, embedding: str, head: str) -> Adapter:
    """State what happens to a tied pair once, under the embedding's name.

    PEFT may save a trained embedding and a trained head apart although the checkpoint holds one
    tensor for both.

    Args:
        adapter: for a checkpoint whose head is its embedding.
        embedding: tensor name of the embedding.
        head: tensor name of the head.

    Raises:
        AdapterError: one of the two was trained and the other was not, or they were trained apart:
            no checkpoint with a tied head can hold that.
    """
    replaced = _resolved(adapter.replaced, embedding, head, ties=adapter.info.ties_weights)
    added = _resolved(adapter.added, embedding, head, ties=True)
    return replace(adapter, replaced=replaced, added=added)


def _resolved(
    tensors: Mapping[str, Tensor], embedding: str, head: str, *, ties: bool
) -> dict[str, Tensor]:
    both = [tensors[name] for name in (embedding, head) if name in tensors]
    if not both:
        return dict(tensors)
    if (len(both) == 1 and not ties) or (len(both) == 2 and not torch.equal(both[0], both[1])):
        raise AdapterError(
            f"the checkpoint's {head} is its {embedding}, but the adapter trained them apart",
            fix="train with ensure_weight_tying=True, or without embeddings",
        )
    rest = {name: value for name, value in tensors.items() if name not in (embedding, head)}
    return {**rest, embedding: both[0]}
