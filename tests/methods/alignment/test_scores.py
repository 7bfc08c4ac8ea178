"""Attention whose scores are changed on the way: by norms of queries and keys, by slopes, by a table of biases."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from fxmerge.coupling.elements import Kind
from fxmerge.ir.program import Program
from tests.methods.alignment.planted import planted
from tests.methods.alignment.test_planted import miss

WIDTH, HEADS, TOKENS, VOCABULARY = 12, 3, 7, 11
ORDERS: tuple[Kind, ...] = ("permutation",)
TURNS: tuple[Kind, ...] = ("permutation", "dense")


class Scored(nn.Module):
    """A pre-norm block over tokens (B, 7), then a head on their mean."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.table = kind, nn.Embedding(VOCABULARY, WIDTH)
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH), nn.Linear(WIDTH, 4)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        if kind == "qk-norm":
            self.query_norm, self.key_norm = (nn.RMSNorm(WIDTH // HEADS) for _ in range(2))
        if kind == "t5":
            self.bias = nn.Embedding(2 * TOKENS - 1, HEADS)
        place = torch.arange(TOKENS)
        self.register_buffer("distance", place[None] - place[:, None] + TOKENS - 1)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, HEADS + 1))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        seen = self.norm1(x)
        split = [m(seen).unflatten(2, (HEADS, -1)).transpose(1, 2) for m in (self.query, self.key, self.value)]
        q, k, v = split
        if self.kind == "qk-norm":
            q, k = self.query_norm(q), self.key_norm(k)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if self.kind == "alibi":
            scores = scores - self.slopes[:, None, None] * (self.distance - TOKENS + 1).abs()
        if self.kind == "t5":
            scores = scores + self.bias(self.distance).permute(2, 0, 1)
        x = x + self.output((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        found: Tensor = self.head(x.mean(1))
        return found


def parent(kind: str) -> tuple[Program, dict[str, Tensor]]:
    torch.manual_seed(0)
    net = Scored(kind)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    ids = torch.randint(0, VOCABULARY, (96, TOKENS))
    return fxmerge.capture(net.eval(), (ids[:4],), task="a"), {"ids": ids}


@pytest.mark.parametrize(
    ("kind", "method", "kinds"),
    [
        ("qk-norm", "permute", ORDERS),
        ("qk-norm", "rotate", TURNS),
        ("alibi", "permute", ORDERS),
        ("t5", "rotate", TURNS),
    ],
)
def test_what_the_scores_leave_free_is_undone(kind: str, method: str, kinds: tuple[Kind, ...]) -> None:
    first, x = parent(kind)
    found, result = miss([first, planted(first, kinds, stretched=False)], x, method)
    assert found < 1e-5
    groups, spaces = result["merged"]["groups"], fxmerge.inspect(first)["spaces"]
    of = {space["role"]: groups[name] for name, space in spaces.items() if name in groups}
    assert of["heads"] == ("identity" if kind == "alibi" else "permutation")
    assert of["query_key"] == ("orthogonal" if kinds == TURNS and kind != "qk-norm" else "permutation")


@pytest.mark.parametrize("method", ["permute", "transport{reg=0}"])
def test_heads_that_left_their_slopes_are_no_symmetry_and_stay(method: str) -> None:
    first, x = parent("alibi")
    order, moved = torch.tensor([1, 2, 0]), dict(first.tensors)
    for name in ("query", "key", "value"):
        for each in ("weight", "bias"):
            value = moved[f"{name}.{each}"]
            moved[f"{name}.{each}"] = value.unflatten(0, (HEADS, -1))[order].flatten(0, 1)
    moved["output.weight"] = moved["output.weight"].unflatten(1, (HEADS, -1))[:, order].flatten(1)
    second = dataclasses.replace(first.evolve(tensors=moved), task="b")
    mine, other = first(*x.values()), second(*x.values())
    assert float((mine - other).abs().max() / mine.abs().max()) > 1e-3, "it is no symmetry"
    _, result = miss([first, second], x, method)
    spaces = fxmerge.inspect(first)["spaces"]
    heads = [name for name, space in spaces.items() if space["role"] == "heads"]
    assert {result["merged"]["groups"][name] for name in heads} == {"identity"}
