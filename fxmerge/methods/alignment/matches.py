"""Which units of several parents are the same: one order for all, or one rotation for all, from their similarities.

A similarity of parents l and k is a matrix (d_l × d_k). What is found is a universe of d units and, per parent, the
carrier C_k (d × d_k) into it. Parents take turns against the sum of all others where these stand already, from each
parent as the first universe; the best is kept, so the order of the parents does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fxmerge.methods.regress import beside_ones

Similarity = Sequence[Sequence[Tensor]]
"""[l][k]: d_l × d_k, float64."""
Fit = Callable[[Tensor], Tensor]
"""From the similarity of the universe with a parent (d × d_k): the carrier of that parent."""

TURNS = 50


def permutation(similarity: Tensor) -> Tensor:
    """The rectangular permutation P (d × d_k) with the largest sum of P ∘ similarity."""
    rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    found = torch.zeros_like(similarity)
    found[torch.from_numpy(np.asarray(rows)), torch.from_numpy(np.asarray(columns))] = 1.0
    return found


def signed_permutation(similarity: Tensor) -> Tensor:
    """The same with free signs: assigned on magnitudes, the signs read after."""
    order = permutation(similarity.abs())
    return order * torch.where(similarity < 0, -1.0, 1.0)


def rotation(similarity: Tensor) -> Tensor:
    """The matrix with orthonormal rows or columns nearest to a similarity (orthogonal Procrustes)."""
    left, _, right = torch.linalg.svd(similarity, full_matrices=False)
    found: Tensor = left @ right
    return found


def centred(fit: Fit, similarity: Tensor) -> Tensor:
    """What fits beside the vector of ones, which stays (d × d)."""
    beside = beside_ones(len(similarity))
    ones = torch.full_like(similarity, 1 / len(similarity))
    return ones + beside @ fit(beside.T @ similarity @ beside) @ beside.T


def centred_rotation(similarity: Tensor) -> Tensor:
    """The rotation nearest to a similarity among those that keep the vector of ones."""
    return centred(rotation, similarity)


def identity(similarity: Tensor) -> Tensor:
    """The rectangular identity."""
    return torch.eye(*similarity.shape, dtype=similarity.dtype)


def total(similarity: Similarity, carriers: Sequence[Tensor]) -> float:
    """Sum over all pairs of parents of what their matched units have in common."""
    return sum(
        float((carriers[a] @ similarity[a][b] * carriers[b]).sum())
        for a in range(len(carriers))
        for b in range(a + 1, len(carriers))
    )


def universe(similarity: Similarity, size: int, template: int, fit: Fit) -> list[Tensor]:
    """Carriers of all parents into one universe of `size` units, in which the template stands as it is if it fits."""
    count = len(similarity)
    best: list[Tensor] = []
    for first in range(count) if count > 2 else [template]:
        found = _ascend(similarity, size, first, fit)
        if not best or total(similarity, found) > total(similarity, best) + 1e-9:
            best = found
    anchor = best[template]
    if anchor.shape[0] == anchor.shape[1]:
        best = [anchor.T @ each for each in best]
    return best


def _ascend(similarity: Similarity, size: int, first: int, fit: Fit) -> list[Tensor]:
    sizes = [similarity[k][k].shape[0] for k in range(len(similarity))]
    carriers = [torch.zeros(size, d, dtype=torch.float64) for d in sizes]
    carriers[first] = torch.eye(size, sizes[first], dtype=torch.float64)
    others = [k for k in range(len(sizes)) if k != first]
    for k in others:
        carriers[k] = fit(_towards(similarity, carriers, k))
    before = total(similarity, carriers)
    for _ in range(TURNS if len(sizes) > 2 or sizes[first] != size else 0):
        for k in range(len(sizes)):
            carriers[k] = fit(_towards(similarity, carriers, k))
        after = total(similarity, carriers)
        if after <= before + 1e-9 * abs(before):
            break
        before = after
    return carriers


def _towards(similarity: Similarity, carriers: Sequence[Tensor], k: int) -> Tensor:
    """Similarity of the universe, as the other parents fill it, with parent k."""
    found = torch.zeros_like(carriers[k])
    for other, carrier in enumerate(carriers):
        if other != k:
            found += carrier @ similarity[other][k]
    return found
