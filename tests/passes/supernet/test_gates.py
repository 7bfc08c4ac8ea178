"""Gates, bottlenecks and experts as people write them: what is planted in them is undone, and they train."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from benchmarks.planted import plant
from fxmerge.ir.program import Program

X = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
Inner = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, inner: Inner) -> None:
        super().__init__()
        self.stem, self.head, self.inner = nn.Linear(5, 8), nn.Linear(8, 3), inner
        self.gate, self.a, self.choose = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.w = nn.Parameter(torch.randn(3, 8, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self, F.relu(self.stem(x))))


def highway(m: Net, x: Tensor) -> Tensor:
    g = torch.sigmoid(m.gate(x))
    return g * F.relu(m.a(x)) + (1 - g) * x


def stacked(m: Net, x: Tensor) -> Tensor:
    every = torch.stack([F.relu(expert(x)) for expert in m.experts], 1)
    return (m.choose(x).softmax(-1)[..., None] * every).sum(1)


def scattered(m: Net, x: Tensor) -> Tensor:
    best, places = m.choose(x).topk(2, -1)
    every = torch.stack([F.relu(expert(x)) for expert in m.experts], 1)
    return (torch.zeros(x.shape[0], 3).scatter(-1, places, best.softmax(-1))[..., None] * every).sum(1)


def picked(m: Net, x: Tensor) -> Tensor:
    best, places = m.choose(x).softmax(-1).topk(2, -1)
    return (best[..., None] * F.relu(torch.einsum("bd,bkdf->bkf", x, m.w[places]))).sum(1)


KINDS: dict[str, Inner] = {
    "highway": highway,
    "two linear maps": lambda m, x: m.up(m.down(x)),
    "bottleneck": lambda m, x: F.relu(m.up(F.relu(m.down(x)))),
    "stacked experts": stacked,
    "scattered experts": scattered,
    "picked experts": picked,
}


def capture(kind: str, task: str = "a", seed: int = 0) -> Program:
    torch.manual_seed(seed)
    return fxmerge.capture(Net(KINDS[kind]).eval(), (X,), task=task)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_is_undone(kind: str) -> None:
    program = capture(kind)
    found = plant(program)
    assert max(found.twin, found.undone, found.weights, found.outputs) < 1e-10, found
    assert found.plain > 1e-3
    assert fxmerge.inspect(program)["coverage"] == 1.0


@pytest.mark.parametrize("kind", ["two linear maps", "stacked experts", "picked experts"])
def test_the_default_method_trains_every_map(kind: str) -> None:
    parents = [capture(kind), capture(kind, "b", 1)]
    settings = {"method": "foldable", "steps": 4, "batch_size": 32, "pool": 32, "init": "average", "augment": "none"}
    checks = fxmerge.merge(parents, data=X, **settings).result["checks"]
    assert checks["all_gradients"] and checks["fold_max_abs"] < 1e-5
