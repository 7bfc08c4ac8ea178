"""What is merged as a plain average is counted and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from fxmerge.ir.program import Program

X = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
QUICK = {"steps": 2, "batch_size": 8, "pool": 24, "init": "average", "augment": "none"}


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.first(x))))


class Distances(Normed):
    """Reads its hidden layer by an operator without a linear map in it: the distances to learnt points."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cdist(F.relu(self.first(x)), self.points))


class Masked(Normed):
    """A trained table that multiplies, entry by entry, a product of two merged spaces."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.gate = nn.Linear(8, 6), nn.Parameter(torch.rand(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        outer = self.first(x)[:, :, None] * self.other(x)[:, None]
        return self.head((torch.tanh(outer * self.gate)).sum(2))


def parents(make: Callable[[], nn.Module]) -> list[Program]:
    found = []
    for seed, task in enumerate("ab"):
        torch.manual_seed(seed)
        found.append(fxmerge.capture(make().eval(), (X,), task=task))
    return found


@pytest.mark.parametrize(
    ("make", "method", "count", "named"),
    [
        (Normed, "average", 16, "16 parameters are a plain average: norm.weight, norm.bias"),
        (Normed, "foldable", 0, ""),
        (Masked, "average", 48, "48 parameters are a plain average: gate (no map can stand on it)"),
        (Masked, "foldable", 48, "48 parameters start from a plain average: gate (no map can stand on it)"),
        (Distances, "foldable", 64, "64 parameters start from a plain average: points (no map can stand on it)"),
    ],
)
def test_what_no_map_stands_on_is_counted_and_named(
    make: Callable[[], nn.Module], method: str, count: int, named: str
) -> None:
    result = fxmerge.merge(parents(make), method=method, data=X, **(QUICK if method == "foldable" else {})).result
    assert result["merged"]["averaged"] == count
    assert [note for note in result["notes"] if "plain average" in note] == ([named] if named else [])
