"""Learnt tokens can be reordered, and so can channels: tails that stay apart read both axes, one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.ir.program import Program
from tests.methods.alignment.planted import planted

METHODS = (
    "average",
    "condense{balance=[1 1]}",
    "permute",
    "permute{on=weights}",
    "transport",
    "rotate",
    "zipit",
    "pleas",
)


class Registers(nn.Module):
    """Tokens (batch, 5, 6) with two learnt ones in front of them, which the head leaves out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.registers = nn.Linear(6, width), nn.Parameter(torch.randn(1, 2, width))
        layers = [nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True) for _ in "ab"]
        self.blocks, self.head = nn.ModuleList(layers), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.registers.expand(len(x), -1, -1), self.stem(x)], 1)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x[:, 2:].mean(1))
        return logits


def parent(seed: int, width: int, task: str) -> tuple[Program, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(96, 5, 6)
    return fxmerge.capture(Registers(width).eval(), (x[:4],), task=task), x


def in_part(parents: list[tuple[Program, Tensor]], method: str) -> fxmerge.Merged:
    """Merged as far as the first block."""
    data = {program.task: x for program, x in parents}
    return fxmerge.merge([p for p, _ in parents], data=data, method=method, share_until="blocks.0", seed=0)


@pytest.fixture(scope="module", params=[(12, 12), (12, 16)], ids=["one width", "two widths"])
def pair(request: pytest.FixtureRequest) -> list[tuple[Program, Tensor]]:
    return [parent(k, width, "ab"[k]) for k, width in enumerate(request.param)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges_what_is_in_front_of_such_tails(pair: list[tuple[Program, Tensor]], method: str) -> None:
    result = in_part(pair, method).result
    assert result["checks"]["fold_max_abs"] < 1e-4
    if method.startswith("condense"):
        assert min(task["feature_r2"] for task in result["tasks"]) > 0.95


def test_orders_along_both_axes_are_undone() -> None:
    """In front of a tail stand two maps then, and neither is the identity."""
    first, x = parent(0, 12, "a")
    second = planted(first)
    tokens = [program.tensors["registers"].sort(2).values for program in (first, second)]
    assert torch.equal(tokens[0].flip(1), tokens[1]), "the learnt tokens have changed places"
    merged = in_part([(first, x), (second, x)], "permute{on=weights}")
    given = first.run({"x": x})["logits"]
    assert all(torch.allclose(found, given, atol=1e-5) for found in merged(x).values())
