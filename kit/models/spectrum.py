"""Singular values of a difference of weights, exact where that is cheap.

Shapes: O out, I in, N = min(O, I), K the number of computed directions, P probes, S steps.

The eigenvalues of the smaller Gram matrix (D^T D or D D^T, N x N, float64) are the squared singular
values of D, all of them; its leading eigenvectors V give the best rank-K approximation as the
projection (D V) V^T, whose energy is exactly the sum of the K eigenvalues. That takes O(N^3): 2 s
for N = 2048 on two CPU cores, half a minute for 4096. Beyond `exact_up_to`:

    leading K   randomized SVD (Halko, Martinsson, Tropp, arXiv 0909.4061). What it keeps is still
                known exactly, since it is a projection and the total energy is summed directly.
    the rest    stochastic Lanczos quadrature on what the K directions leave (Ubaru, Chen, Saad,
                doi 10.1137/16M1104974), scaled to the energy that is left: an estimate, and
                `known` says from where on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_UP_TO = 2048
OVERSAMPLING = 16
POWER_ITERATIONS = 4
PROBES = 8
LANCZOS_STEPS = 40
_CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """Energy (squared Frobenius norm) of a matrix by direction, the strongest first."""

    energies_N: Tensor
    """Squared singular values, float64."""
    total: float
    """Energy of the whole matrix."""
    known: int
    """So many of the first were computed; those behind are estimated."""

    @property
    def exact(self) -> bool:
        """Whether every direction was computed."""
        return self.known >= len(self.energies_N)

    def kept(self, rank: int) -> float:
        """Share of the energy in the leading `rank` directions; 1.0 for a matrix of zeros."""
        if self.total == 0:
            return 1.0
        return min(1.0, float(self.energies_N[:rank].sum()) / self.total)

    def rank_for(self, share: float) -> int:
        """Smallest rank that keeps a share of the energy; an estimate where it is above `known`."""
        if self.total == 0:
            return 0
        reached = self.energies_N.cumsum(0) >= share * self.total * (1 - 1e-12)
        return int(reached.int().argmax()) + 1 if bool(reached.any()) else len(self.energies_N)

    @property
    def stable_rank(self) -> float:
        """Total energy over that of the first direction: 1 for rank one, N for white noise."""
        first = float(self.energies_N[0]) if len(self.energies_N) else 0.0
        return self.total / first if first > 0 else 0.0


def energy(value: Tensor) -> float:
    """Squared Frobenius norm, summed in float64 without a float64 copy of the whole."""
    return sum(float(part.double().square().sum()) for part in value.flatten().split(_CHUNK))


def absolute_sum(value: Tensor) -> float:
    """Sum of the absolute values, summed in float64 without a float64 copy of the whole."""
    return sum(float(part.double().abs().sum()) for part in value.flatten().split(_CHUNK))


def leading_energies(matrix_OI: Tensor, *, directions: int, seed: int, exact_up_to: int) -> Tensor:
    """Squared singular values, float64: all, or the leading `directions` of a wide matrix."""
    if min(matrix_OI.shape) <= exact_up_to:
        return torch.linalg.eigvalsh(_gram(matrix_OI)).flip(0).clamp(min=0).cpu()
    return _randomized(matrix_OI, directions, seed)[1]


def factors(
    matrix_OI: Tensor, *, rank: int, seed: int, exact_up_to: int = EXACT_UP_TO
) -> tuple[Tensor, Tensor, Spectrum]:
    """The best approximation of a rank, which contains those of all smaller ranks.

    Args:
        matrix_OI: float32, on any device.
        rank: K; cut to N.
        seed: of the randomized SVD and of the estimate. The exact way draws nothing.
        exact_up_to: largest N for which all eigenvalues are computed.

    Returns:
        b_OK and a_KI, float32, with b_OK @ a_KI the approximation; the first k columns and rows
        are the approximation of rank k. And the spectrum.
    """
    smaller = min(matrix_OI.shape)
    rank = min(rank, smaller)
    if smaller <= exact_up_to:
        energies_N, vectors_NN = torch.linalg.eigh(_gram(matrix_OI))
        energies_N = energies_N.flip(0).clamp(min=0).cpu()
        known = Spectrum(energies_N=energies_N, total=float(energies_N.sum()), known=smaller)
        leading_NK = vectors_NN.flip(1)[:, :rank]
    else:
        leading_NK, energies_K = _randomized(matrix_OI, rank, seed)
        known = _with_tail(matrix_OI, leading_NK, energies_K, seed)
        leading_NK = leading_NK[:, :rank]
    wide = matrix_OI.double()
    if _is_wide(matrix_OI):
        b_OK, a_KI = leading_NK, leading_NK.T @ wide
    else:
        b_OK, a_KI = wide @ leading_NK, leading_NK.T
    return b_OK.float().contiguous(), a_KI.float().contiguous(), known


def _is_wide(matrix_OI: Tensor) -> bool:
    return matrix_OI.shape[0] < matrix_OI.shape[1]


def _gram(matrix_OI: Tensor) -> Tensor:
    wide = matrix_OI.double()
    return wide @ wide.T if _is_wide(matrix_OI) else wide.T @ wide


def _randomized(matrix_OI: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Leading directions of the smaller side and their energies, with the oversampled ones."""
    size = min(rank + OVERSAMPLING, *matrix_OI.shape)
    devices = [matrix_OI.device] if matrix_OI.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        u_OK, _, v_IK = torch.svd_lowrank(matrix_OI, q=size, niter=POWER_ITERATIONS)
    side = u_OK if _is_wide(matrix_OI) else v_IK
    # float32 leaves the basis orthogonal to 1e-6 only; the projection's energy needs better.
    basis_NK = torch.linalg.qr(side.double())[0]
    wide = matrix_OI.double()
    image = basis_NK.T @ wide if _is_wide(matrix_OI) else (wide @ basis_NK).T
    energies_K, turn_KK = torch.linalg.eigh(image @ image.T)
    return basis_NK @ turn_KK.flip(1), energies_K.flip(0).clamp(min=0).cpu()


def _with_tail(matrix_OI: Tensor, leading_NK: Tensor, energies_K: Tensor, seed: int) -> Spectrum:
    """Estimate the energies behind the computed ones, and scale them to the energy that is left."""
    total = energy(matrix_OI)
    left, count = total - float(energies_K.sum()), leading_NK.shape[0] - len(energies_K)
    if left <= 1e-9 * total or count <= 0:
        energies_N = torch.cat([energies_K, energies_K.new_zeros(max(count, 0))])
        return Spectrum(energies_N=energies_N, total=total, known=len(energies_N))
    nodes, weights = _quadrature(matrix_OI, leading_NK.float(), seed)
    order = nodes.argsort(descending=True)
    nodes, cumulated = nodes[order], weights[order].cumsum(0)
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count * cumulated[-1]
    tail = nodes[torch.searchsorted(cumulated, middles).clamp(max=len(nodes) - 1)].clamp(min=0)
    energies_N = torch.cat([energies_K, tail * (left / tail.sum())])
    return Spectrum(energies_N=energies_N, total=total, known=len(energies_K))


def _quadrature(matrix_OI: Tensor, leading_NK: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the eigenvalue density of the Gram matrix outside of `leading_NK`.

    Lanczos from random probes, all at once, each kept orthogonal to its own past.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(leading_NK.shape[0], PROBES, generator=generator).to(matrix_OI.device)

    def outside(v_NP: Tensor) -> Tensor:
        return v_NP - leading_NK @ (leading_NK.T @ v_NP)

    def apply(v_NP: Tensor) -> Tensor:
        if _is_wide(matrix_OI):
            return outside(matrix_OI @ (matrix_OI.T @ v_NP))
        return outside(matrix_OI.T @ (matrix_OI @ v_NP))

    v_NP = torch.nn.functional.normalize(outside(draw), dim=0)
    steps = min(LANCZOS_STEPS, leading_NK.shape[0] - leading_NK.shape[1])
    past: list[Tensor] = []
    diagonal, beside = [], []
    for _ in range(steps):
        past.append(v_NP)
        w_NP = apply(v_NP)
        diagonal.append((w_NP * v_NP).sum(0))
        basis_SNP = torch.stack(past)
        for _ in range(2):  # once is not enough in float32
            overlap_SP = (basis_SNP * w_NP).sum(1)
            w_NP = w_NP - (basis_SNP * overlap_SP[:, None]).sum(0)
        beside.append(w_NP.norm(dim=0))
        v_NP = torch.nn.functional.normalize(w_NP, dim=0)
    diagonal_PS = torch.stack(diagonal, 1).double().cpu()
    beside_PS = torch.stack(beside, 1).double().cpu()[:, :-1]
    tridiagonal = torch.diag_embed(diagonal_PS)
    tridiagonal += torch.diag_embed(beside_PS, 1) + torch.diag_embed(beside_PS, -1)
    nodes_PS, vectors_PSS = torch.linalg.eigh(tridiagonal)
    return nodes_PS.flatten(), vectors_PSS[:, 0, :].square().flatten() / PROBES
