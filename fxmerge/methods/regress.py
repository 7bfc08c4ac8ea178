"""Regressions in closed form, from moments that are summed over batches in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 20_000
"""Rows of one regression: more cost, and change nothing."""


class Rows:
    """Values as rows of what stands along an axis, in float64: places that are no padding, evenly taken if many."""

    def __init__(self, masks: Sequence[Sequence[Tensor]], most: int = MOST) -> None:
        """`masks`: of every batch, tensors (B, T) that are 1 at real tokens and 0 at padding."""
        self.masks, self.most = masks, max(1, most // max(len(masks), 1))
        self.places: dict[tuple[int, torch.Size], Tensor | None] = {}

    def of(self, value: Tensor, axis: int, batch: int) -> Tensor:
        """(places, size) of a value on a batch; values of one shape, the axis aside, give the same places."""
        moved = value.detach().movedim(axis, -1)
        key = (batch, moved.shape[:-1])
        if key not in self.places:
            self.places[key] = self._places(batch, moved.shape[:-1])
        places, rows = self.places[key], moved.reshape(-1, moved.shape[-1])
        return (rows if places is None else rows[places]).double()

    def all(self, values: Sequence[Tensor], axis: int) -> Tensor:
        """The rows of all batches."""
        return torch.cat([self.of(value, axis, i) for i, value in enumerate(values)])

    def _places(self, batch: int, shape: torch.Size) -> Tensor | None:
        """The places of a value of this shape that are looked at; None for all."""
        found = torch.arange(shape.numel())
        for mask in self.masks[batch]:
            real = _spread(mask != 0, shape)
            if real is not None:
                found = real.reshape(-1).nonzero()[:, 0]
                break
        if len(found) > self.most:
            found = found[torch.linspace(0, len(found) - 1, self.most).long()]
        return None if len(found) == shape.numel() else found


def _spread(mask: Tensor, shape: torch.Size) -> Tensor | None:
    """A mask (B, T) on the places of a value: T runs along its second axis, or its last."""
    if len(shape) < 2 or shape[0] != len(mask):
        return None
    for axis in (1, len(shape) - 1):
        if shape[axis] == mask.shape[1]:
            return mask.reshape(len(mask), *(mask.shape[1] if a == axis else 1 for a in range(1, len(shape)))).expand(
                shape
            )
    return None


@dataclass
class Moments:
    """Sums over rows (x, y): enough for a ridge regression of y on x, with or without an intercept."""

    count: float
    xx: Tensor
    xy: Tensor
    x: Tensor
    y: Tensor
    yy: float = 0.0

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
        self.yy += float(y.square().sum())

    def ridge(self, strength: float, intercept: bool, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(targets × features, targets): what times x, plus what, comes nearest to y.

        The penalty is `strength` times the mean square of a feature (about its mean, with an intercept), on what
        differs from the `prior`, or from zero.
        """
        xx, xy = self.xx, self.xy
        if intercept:
            xx = xx - torch.outer(self.x, self.x) / self.count
            xy = xy - torch.outer(self.x, self.y) / self.count
        level = strength * float(xx.diagonal().mean()) + 1e-12 * float(xx.diagonal().max()) + 1e-30
        drawn = xy if prior is None else xy + level * prior.T
        found = torch.linalg.solve(xx + level * torch.eye(len(xx), dtype=xx.dtype), drawn).T
        rest = (self.y - found @ self.x) / self.count
        return found, rest if intercept else torch.zeros_like(rest)

    def error(self, found: Tensor, constant: Tensor) -> float:
        """Sum of squares of what `found` times x, plus a constant, misses of y, over all rows."""
        squares = (found @ self.xx * found).sum() - 2 * (found * self.xy.T).sum() + self.count * constant.square().sum()
        cross = 2 * (constant * (found @ self.x - self.y)).sum()
        return float(squares + cross) + self.yy


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
    `moments` (each as a share of its own targets' size); where there are many, a sixteenth of the surplus at a time,
    but none that costs more than those that stay since its like (a copy, say) went.
    With P the inverse of the features' moment and B = P·(moment with the targets), dropping the columns g costs
    tr(B_gᵀ (P_gg)⁻¹ B_g), after which P and B are down-dated.
    """
    left = list(range(len(units)))
    columns = torch.stack(list(units)) if len({len(unit) for unit in units}) == 1 else list(units)
    states = []
    for one in moments:
        level = strength * float(one.xx.diagonal().mean()) + 1e-30
        inverse = torch.linalg.inv(one.xx + level * torch.eye(len(one.xx), dtype=one.xx.dtype))
        states.append([inverse, inverse @ one.xy, 1.0 / max(float((one.xy * (inverse @ one.xy)).sum()), 1e-30)])

    def costs(of: list[int]) -> Tensor:
        found = [share * _costs(inverse, weights, columns, of) for inverse, weights, share in states]
        return torch.stack(found).sum(0)

    while (surplus := len(left) - keep) > 0:
        found = costs(left)
        ranked = torch.argsort(found).tolist()
        batch = max(1, surplus // 16)
        most = float(found[ranked[min(batch, len(left) - 1)]])
        for number, unit in enumerate([left[place] for place in ranked[:batch]]):
            if number == 0 or float(costs([unit])) <= most:
                left.remove(unit)
                for state in states:
                    _drop(state, units[unit])
    return left


def _costs(inverse: Tensor, weights: Tensor, columns: Tensor | list[Tensor], left: list[int]) -> Tensor:
    """Of dropping each group of columns that is left; at once where all have one size."""
    if isinstance(columns, list):
        return torch.cat([_costs(inverse, weights, columns[unit][None], [0]) for unit in left])
    columns = columns[left]
    own = weights[columns]
    blocks = inverse[columns[:, :, None], columns[:, None, :]]
    found = own / blocks if columns.shape[1] == 1 else torch.linalg.solve(blocks, own)
    return (own * found).sum((1, 2))


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
