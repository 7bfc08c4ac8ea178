"""Rotary positions of several layouts: planes turn, queries and keys together, and nothing else of them is claimed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from fxmerge.ir.program import Program
from tests.methods.alignment.planted import planted
from tests.methods.alignment.test_planted import PERMUTATION, TURNS, miss

WIDTH, HEADS, SIZE, TOKENS, VOCABULARY = 12, 2, 8, 7, 11


class Rotary(nn.Module):
    """A pre-norm attention over tokens (B, 7), its planes halves apart, side by side, or as complex numbers."""

    def __init__(self, layout: str, turned: int, normed: bool = False) -> None:
        super().__init__()
        self.layout, self.turned = layout, turned
        self.table, self.norm, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)
        self.query, self.key, self.value = (nn.Linear(WIDTH, HEADS * SIZE) for _ in range(3))
        self.output = nn.Linear(HEADS * SIZE, WIDTH)
        self.norms = nn.ModuleList(nn.RMSNorm(SIZE) if normed else nn.Identity() for _ in range(2))
        angles = torch.arange(float(TOKENS))[:, None] * 0.5 ** torch.arange(turned // 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def placed(self, x: Tensor) -> Tensor:
        x, rest = x[..., : self.turned], x[..., self.turned :]
        if self.layout == "complex":
            turns = torch.complex(self.cos, self.sin)
            x = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)
        else:
            a, b = x.chunk(2, -1) if self.layout == "halves" else (x[..., 0::2], x[..., 1::2])
            a, b = a * self.cos - b * self.sin, b * self.cos + a * self.sin
            x = torch.cat((a, b), -1) if self.layout == "halves" else torch.stack((a, b), -1).flatten(-2)
        return torch.cat((x, rest), -1) if self.turned < SIZE else x

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        seen = self.norm(x)
        q, k, v = (m(seen).unflatten(2, (HEADS, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        q, k = (self.placed(norm(each)) for norm, each in zip(self.norms, (q, k), strict=True))
        x = x + self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        found: Tensor = self.head(x.mean(1))
        return found


def parent(layout: str, turned: int = SIZE, normed: bool = False) -> tuple[Program, dict[str, Tensor]]:
    torch.manual_seed(0)
    net = Rotary(layout, turned, normed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    ids = torch.randint(0, VOCABULARY, (64, TOKENS))
    return fxmerge.capture(net.eval(), (ids[:4],), task="a"), {"ids": ids}


def turned(
    program: Program, layout: str, count: int, names: Sequence[str] = ("query", "key"), seed: int = 0
) -> Program:
    """Every plane of every head turned by an angle of its own."""
    angles = 2 * torch.randn(HEADS, count // 2, 1, generator=torch.Generator().manual_seed(seed))
    each = torch.arange(count // 2)
    first, second = (each, each + count // 2) if layout == "halves" else (2 * each, 2 * each + 1)
    tensors = dict(program.tensors)
    for name in (f"{n}.{kind}" for n in names for kind in ("weight", "bias")):
        rows = tensors[name].detach().clone().reshape(HEADS, SIZE, -1)
        a, b = rows[:, first], rows[:, second]
        rows[:, first], rows[:, second] = a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()
        tensors[name] = rows.reshape(tensors[name].shape)
    return dataclasses.replace(program.evolve(tensors=tensors), task="b")


def of_queries(first: Program, groups: dict[str, str]) -> set[str]:
    spaces = fxmerge.inspect(first)["spaces"]
    return {groups[name] for name, space in spaces.items() if space["role"] == "query_key" and name in groups}


@pytest.mark.parametrize(
    ("layout", "count", "method", "parents"),
    [
        ("halves", SIZE, "rotate{on=weights}", 2),
        ("halves", 4, "rotate", 2),
        ("side by side", SIZE, "rotate", 3),
        ("complex", SIZE, "rotate", 2),
    ],
)
def test_planes_heads_and_what_has_no_plane_are_undone(layout: str, count: int, method: str, parents: int) -> None:
    first, x = parent(layout, count)
    others = []
    for number in range(parents - 1):
        other = turned(first, layout, count, seed=number)
        (mine,), (theirs,) = first.run(x).values(), other.run(x).values()
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5)
        others.append(planted(other, TURNS, seed=number, task="bc"[number], stretched=False))
    found, result = miss([first, *others], x, method)
    assert found < 1e-5
    assert of_queries(first, result["merged"]["groups"]) == {"rotary"} | ({"orthogonal"} if count < SIZE else set())
    assert any(note.startswith("rotate: rotary") for note in result["notes"])


def test_what_is_aligned_by_orders_alone_keeps_its_planes() -> None:
    first, x = parent("halves")
    found, result = miss([first, turned(first, "halves", SIZE)], x, "permute")
    assert found > 1e-2
    assert of_queries(first, result["merged"]["groups"]) == {"identity"}


def test_planes_of_queries_alone_are_no_symmetry() -> None:
    first, x = parent("side by side")
    second = turned(first, "side by side", SIZE, ["query"])
    mine, other = first(*x.values()), second(*x.values())
    assert float((mine - other).abs().max() / mine.abs().max()) > 1e-3, "it is no symmetry"
    found, _ = miss([first, second], x, "rotate")
    assert found > 1e-3


def test_planes_whose_norms_scale_their_coordinates_apart_stay() -> None:
    first, x = parent("halves", normed=True)
    found, result = miss([first, planted(first, PERMUTATION)], x, "rotate")
    assert found < 1e-5
    assert of_queries(first, result["merged"]["groups"]) == {"identity"}
