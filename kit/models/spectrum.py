"""Singular values of a difference of weights, exact where that is cheap.

Shapes: O out, I in, N = min(O, I), K the number of kept directions.

The eigenvalues of the smaller Gram matrix (D^T D or D D^T, N x N, float64) are the squared singular
values of D, all of them; its leading eigenvectors V give the best rank-K approximation as the
projection (D V) V^T, whose energy is exactly the sum of the K eigenvalues. That takes O(N^3): 2 s
for N = 2048 on two CPU cores, a minute for 4096. Beyond `exact_up_to` a randomized SVD
(Halko, Martinsson, Tropp, arXiv 0909.4061) finds the leading directions only. What it keeps is
still known exactly, since it is a projection too and the total energy is summed directly; what is
beyond its directions is not known, and a rank that lies there is given as "more than".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_UP_TO = 2048
OVERSAMPLING = 16
POWER_ITERATIONS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """Energy (squared Frobenius norm) of a matrix by direction, the strongest first."""

    energies_N: Tensor
    """Squared singular values, float64; the leading ones alone when `exact` is False."""
    total: float
    """Energy of the whole matrix."""
    exact: bool
    """Whether `energies_N` holds every direction."""

    def kept(self, rank: int) -> float:
        """Share of the energy in the leading `rank` directions; 1.0 for a matrix of zeros."""
        if self.total == 0:
            return 1.0
        return min(1.0, float(self.energies_N[:rank].sum()) / self.total)

    def rank_for(self, share: float) -> int | None:
        """Smallest rank that keeps a share of the energy; None: more than the known directions."""
        if self.total == 0:
            return 0
        reached = self.energies_N.cumsum(0) >= share * self.total * (1 - 1e-12)
        if bool(reached.any()):
            return int(reached.int().argmax()) + 1
        return len(self.energies_N) if self.exact else None

    @property
    def stable_rank(self) -> float:
        """Total energy over that of the first direction: 1 for rank one, N for white noise."""
        first = float(self.energies_N[0]) if len(self.energies_N) else 0.0
        return self.total / first if first > 0 else 0.0


def spectrum(matrix_OI: Tensor, *, directions: int, seed: int, exact_up_to: int) -> Spectrum:
    """The spectrum alone, without directions."""
    if min(matrix_OI.shape) <= exact_up_to:
        energies_N = torch.linalg.eigvalsh(_gram(matrix_OI)).flip(0).clamp(min=0).cpu()
        return Spectrum(energies_N=energies_N, total=float(energies_N.sum()), exact=True)
    return factors(matrix_OI, rank=directions, seed=seed, exact_up_to=exact_up_to)[2]


def factors(
    matrix_OI: Tensor, *, rank: int, seed: int, exact_up_to: int = EXACT_UP_TO
) -> tuple[Tensor, Tensor, Spectrum]:
    """The best approximation of a rank, which contains those of all smaller ranks.

    Args:
        matrix_OI: float32, on any device.
        rank: K; cut to N.
        seed: of the randomized SVD. The exact way draws nothing.
        exact_up_to: largest N for which all eigenvalues are computed.

    Returns:
        b_OK and a_KI, float32, with b_OK @ a_KI the approximation; the first k columns and rows
        are the approximation of rank k. And the spectrum.
    """
    smaller = min(matrix_OI.shape)
    rank = min(rank, smaller)
    if smaller <= exact_up_to:
        energies_N, vectors_NN = torch.linalg.eigh(_gram(matrix_OI))
        energies_N = energies_N.flip(0).clamp(min=0)
        known = Spectrum(energies_N=energies_N.cpu(), total=float(energies_N.sum()), exact=True)
        leading_NK = vectors_NN.flip(1)[:, :rank]
    else:
        leading_NK, known = _randomized(matrix_OI, rank, seed)
    wide = matrix_OI.double()
    if matrix_OI.shape[0] < matrix_OI.shape[1]:
        b_OK, a_KI = leading_NK, leading_NK.T @ wide
    else:
        b_OK, a_KI = wide @ leading_NK, leading_NK.T
    return b_OK.float().contiguous(), a_KI.float().contiguous(), known


def _gram(matrix_OI: Tensor) -> Tensor:
    wide = matrix_OI.double()
    return wide @ wide.T if wide.shape[0] < wide.shape[1] else wide.T @ wide


def _randomized(matrix_OI: Tensor, rank: int, seed: int) -> tuple[Tensor, Spectrum]:
    total = float(matrix_OI.double().square().sum())
    size = min(rank + OVERSAMPLING, *matrix_OI.shape)
    devices = [matrix_OI.device] if matrix_OI.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        u_OK, _, v_IK = torch.svd_lowrank(matrix_OI, q=size, niter=POWER_ITERATIONS)
    side = u_OK if matrix_OI.shape[0] < matrix_OI.shape[1] else v_IK
    # float32 leaves the basis orthogonal to 1e-6 only; the projection's energy needs better.
    basis_NK = torch.linalg.qr(side.double())[0]
    wide = matrix_OI.double()
    image = basis_NK.T @ wide if matrix_OI.shape[0] < matrix_OI.shape[1] else (wide @ basis_NK).T
    energies_K, turn_KK = torch.linalg.eigh(image @ image.T)
    known = Spectrum(energies_N=energies_K.flip(0).clamp(min=0).cpu(), total=total, exact=False)
    return basis_NK @ turn_KK.flip(1)[:, :rank], known
