"""Calls that write several axes, none, or an axis of one: each parent's tensors are weighed once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
import passes
from benchmarks.planted import plant
from fxmerge.coupling import operator_name


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5)


class JoinedBias(nn.Module):
    """A fused projection whose bias is joined of two that are trained and one that is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Linear(5, 6), nn.Linear(6, 18, bias=False)
        self.query, self.value, self.out = parameter(6), parameter(6), nn.Linear(6, 3)
        self.register_buffer("key", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat((self.query, self.key, self.value))
        q, k, v = F.linear(self.stem(x), self.qkv.weight, bias).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])


class Places(nn.Module):
    """Attention scores get a part that a table of distances reads off the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.q, self.k, self.v = (nn.Linear(5 if i == 0 else 6, 6) for i in range(4))
        self.table, self.out = parameter(7, 6), nn.Linear(6, 3)
        self.register_buffer("index", torch.arange(4)[:, None] - torch.arange(4)[None] + 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = q @ k.mT + torch.einsum("blc,lkc->blk", q, self.table[self.index])
        return self.out(scores.softmax(-1) @ v)


class Tokens(nn.Module):
    """A token of its own and a table of places in front of a gate of one feature."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.out = nn.Linear(5, 6), nn.Linear(6, 1), nn.Linear(6, 3)
        self.token, self.slots, self.places = parameter(1, 1, 6), parameter(1, 2, 6), parameter(1, 7, 6)

    def forward(self, x: Tensor) -> Tensor:
        own = (self.token.expand(x.shape[0], -1, -1), self.slots.expand(x.shape[0], -1, -1))
        y = torch.cat([*own, self.stem(x)], dim=1) + self.places
        return self.out((y * torch.sigmoid(self.gate(y))).tanh().mean(1))


@pytest.mark.parametrize("kind", [JoinedBias, Places, Tokens])
def test_what_is_planted_is_undone(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    found = plant(fxmerge.capture(kind().eval(), (torch.randn(4, 4, 5),)))
    assert max(found.twin, found.undone, found.weights, found.outputs) < 1e-12, found
    assert found.plain > 1e-2 and found.moved > 0.5


def test_a_bias_that_is_computed_is_added() -> None:
    program = passes.normalize(fxmerge.capture(JoinedBias().eval(), (torch.randn(4, 4, 5),)))
    joined = [n for n in program if operator_name(n) == "aten.linear.default" and n.args[1].target == "qkv.weight"]
    assert [len(node.args) for node in joined] == [2]
