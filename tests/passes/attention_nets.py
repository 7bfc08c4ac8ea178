"""Attention and masks as a net has them: what the tests of rewrites share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxmerge import Program, capture
from fxmerge.ir.program import target_name

SDPA = "aten.scaled_dot_product_attention.default"
HEADS, WIDTH = 3, 4
MIN = torch.finfo(torch.float64).min


Mix = Callable[..., Tensor]


class Attention(nn.Module):
    """Queries, keys and values of x, and several functions of them: an output each, so that one capture serves all."""

    def __init__(self, mixes: dict[str, Mix]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixes = mixes
        self.q, self.k, self.v = (nn.Linear(12, HEADS * WIDTH) for _ in range(3))
        self.register_buffer("tril", torch.ones(32, 32).tril()[None, None])
        self.register_buffer("ragged", torch.ones(32, 32).tril(-3)[None, None])
        self.bias = nn.Parameter(torch.randn(HEADS, 1, 1))

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], HEADS, WIDTH).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        return {name: mix(self, q, k, v, mask) for name, mix in self.mixes.items()}


def inputs(rows: int, tokens: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    mask = torch.ones(rows, tokens)
    mask[0, 4:] = 0
    return torch.randn(rows, tokens, 12, generator=generator).double(), mask.double()


def capture_all(mixes: dict[str, Mix]) -> Program:
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    return capture(Attention(mixes).double(), inputs(3), dynamic_shapes={"x": free, "mask": free})


_captured: dict[int, Program] = {}


def program(table: Mapping[str, Any], name: str) -> Program:
    """What an entry of a table of functions computes; the whole table is captured once."""
    if id(table) not in _captured:
        mixes = {key: value[0] if isinstance(value, tuple) else value for key, value in table.items()}
        _captured[id(table)] = capture_all(mixes)
    return _captured[id(table)].only([name])


def called(program: Program) -> list[str]:
    return [target_name(node.target) for node in program.graph.nodes if node.op == "call_function"]


def attention_of(program: Program) -> torch.fx.Node:
    (node,) = (node for node in program.graph.nodes if node.op == "call_function" and target_name(node.target) == SDPA)
    return node


def same(before: Program, after: Program) -> None:
    for rows, tokens in ((2, 6), (5, 9)):
        torch.testing.assert_close(after(*inputs(rows, tokens)), before(*inputs(rows, tokens)), rtol=1e-12, atol=1e-12)


def attend(q: Tensor, k: Tensor, v: Tensor, more: Callable[[Tensor], Tensor] = lambda scores: scores) -> Tensor:
    return more(q @ k.transpose(-2, -1) / math.sqrt(WIDTH)).softmax(-1) @ v


def softmaxed(scores: Tensor) -> Tensor:
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def kept(mask: Tensor) -> Tensor:
    return mask[:, None, None, :]
