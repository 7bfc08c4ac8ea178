"""Regressions in closed form, from moments that are summed over batches in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def rows_of(value: Tensor, axis: int) -> Tensor:
    """A value as rows of what stands along `axis`, in float64: (places, size)."""
    return value.detach().movedim(axis, -1).reshape(-1, value.shape[axis]).double()


MOST = 40_000
"""Rows of one regression: more cost, and change nothing."""


def thinned(rows: Tensor, batches: int) -> Tensor:
    """At most a batch's share of the rows of one regression, evenly taken."""
    most = max(1, MOST // batches)
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long()]


@dataclass
class Moments:
    """Sums over rows (x, y): enough for a ridge regression of y on x, with or without an intercept."""

    count: float
    xx: Tensor
    xy: Tensor
    x: Tensor
    y: Tensor

    @classmethod
    def empty(cls, x: int, y: int) -> Moments:
        wide = torch.float64
        return cls(0.0, torch.zeros(x, x, dtype=wide), torch.zeros(x, y, dtype=wide),
                   torch.zeros(x, dtype=wide), torch.zeros(y, dtype=wide))  # fmt: skip

    def add(self, x: Tensor, y: Tensor) -> None:
        """More rows: (n, features) and (n, targets)."""
        self.count += len(x)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.x += x.sum(0)
        self.y += y.sum(0)

    def ridge(self, strength: float, intercept: bool) -> tuple[Tensor, Tensor]:
        """(targets × features, targets): what times x, plus what, comes nearest to y.

        The penalty is `strength` times the mean square of a feature (about its mean, with an intercept).
        """
        xx, xy = self.xx, self.xy
        if intercept:
            xx = xx - torch.outer(self.x, self.x) / self.count
            xy = xy - torch.outer(self.x, self.y) / self.count
        level = strength * float(xx.diagonal().mean()) + 1e-12 * float(xx.diagonal().max()) + 1e-30
        found = torch.linalg.solve(xx + level * torch.eye(len(xx), dtype=xx.dtype), xy).T
        rest = (self.y - found @ self.x) / self.count
        return found, rest if intercept else torch.zeros_like(rest)


def principal(second: Tensor, count: int) -> Tensor:
    """The `count` eigenvectors of a second moment with the largest eigenvalues, as rows; zeros if there are fewer."""
    vectors = torch.linalg.eigh(second)[1].flip(1).T[:count]
    return torch.cat((vectors, vectors.new_zeros(count - len(vectors), second.shape[1])))


def beside_ones(count: int) -> Tensor:
    """An orthonormal basis (count × count − 1) of what is orthogonal to the vector of ones."""
    ones = torch.ones(count, 1, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(torch.cat((ones, torch.eye(count, dtype=torch.float64)[:, 1:]), 1))[0]
    return basis[:, 1:]


def eliminate(moments: Sequence[Moments], units: Sequence[Tensor], keep: int, strength: float = 1e-3) -> list[int]:
    """The units (columns of the features each) that are kept when the others are dropped, worst loss last.

    One at a time goes the unit whose loss raises least the error of regressing the targets on what is left, summed over
    `moments` (each as a share of its own targets' size); where there are many, a sixteenth of the surplus at a time.
    With P the inverse of the features' moment and B = P·(moment with the targets), dropping the columns g costs
    tr(B_gᵀ (P_gg)⁻¹ B_g), after which P and B are down-dated.
    """
    left = list(range(len(units)))
    states = []
    for one in moments:
        level = strength * float(one.xx.diagonal().mean()) + 1e-30
        inverse = torch.linalg.inv(one.xx + level * torch.eye(len(one.xx), dtype=one.xx.dtype))
        states.append([inverse, inverse @ one.xy, 1.0 / max(float((one.xy * (inverse @ one.xy)).sum()), 1e-30)])
    while len(left) > keep:
        costs = torch.zeros(len(left), dtype=torch.float64)
        for inverse, weights, share in states:
            costs += share * torch.stack([_cost(inverse, weights, units[u]) for u in left])
        surplus = len(left) - keep
        batch = max(1, surplus // 16)
        for place in sorted(torch.argsort(costs)[:batch].tolist(), reverse=True):
            gone = units[left.pop(place)]
            for state in states:
                _drop(state, gone)
    return left


def _cost(inverse: Tensor, weights: Tensor, group: Tensor) -> Tensor:
    own = weights[group]
    cost: Tensor = (own * torch.linalg.solve(inverse[group][:, group], own)).sum()
    return cost


def _drop(state: list[Tensor | float], group: Tensor) -> None:
    inverse, weights = state[0], state[1]
    assert isinstance(inverse, Tensor) and isinstance(weights, Tensor)
    step = torch.linalg.solve(inverse[group][:, group], torch.cat((inverse[group], weights[group]), 1))
    column = inverse[:, group]
    state[0] = inverse - column @ step[:, : len(inverse)]
    state[1] = weights - column @ step[:, len(inverse) :]
    state[0][group] = 0.0  # type: ignore[index]
    state[0][:, group] = 0.0  # type: ignore[index]
    state[0][group, group] = 1.0  # type: ignore[index]
    state[1][group] = 0.0  # type: ignore[index]
