"""One network per rewrite, written the way that the rewrite is for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Forward = Callable[..., Tensor]


class Written(nn.Module):
    """Weights `w` and, in five parts, `parts`, a bias `b`, a scale and a shift of 6 features, tables and kernels."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(6, 6) / 2), nn.Parameter(torch.randn(6))
        self.scale, self.shift = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))
        self.start, self.end = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(4))
        self.parts = nn.Parameter(torch.randn(5, 6, 4))
        self.table, self.kernel = nn.Parameter(torch.randn(9, 6)), nn.Parameter(torch.randn(6, 3, 2, 2))
        self.register_buffer("past", torch.tril(torch.ones(5, 5, dtype=torch.bool)))
        self.register_buffer("five", torch.tensor(5.0))
        self.write = forward

    def forward(self, x: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        return self.write(self, *(given for given in (x, y, z) if given is not None))


def shifted(x: Tensor) -> Tensor:
    """Each step sees the one before it; the last one is written over with one row for all."""
    moved = x.clone()
    moved[:, 1:] = x[:, :-1]
    moved[:, -1] = x[:, 0, :1]
    return moved


def rows() -> tuple[Tensor, ...]:
    return (torch.randn(3, 5, 6),)


def matrices() -> tuple[Tensor, ...]:
    return torch.randn(3, 5, 6), torch.randn(3, 6, 4)


def heads() -> tuple[Tensor, ...]:
    return tuple(torch.randn(3, 2, 5, 6) for _ in range(3))


def groups() -> tuple[Tensor, ...]:
    return torch.randn(3, 4, 5, 6), torch.randn(3, 2, 5, 6), torch.randn(3, 2, 5, 6)


def images() -> tuple[Tensor, ...]:
    return (torch.randn(3, 3, 4, 4),)


def tokens() -> tuple[Tensor, ...]:
    return (torch.randint(0, 9, (3, 5)),)


@dataclass(frozen=True)
class Case:
    forward: Forward
    inputs: Callable[[], tuple[Tensor, ...]] = rows


def moment(x: Tensor) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def half_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def powers(x: Tensor) -> Tensor:
    return torch.exp(x - x.amax(-1, keepdim=True))


def rms(m: Written, x: Tensor) -> Tensor:
    return torch.ops.aten.rms_norm.default(x, [6], None, 1e-5)


def widened(m: Written, x: Tensor) -> Tensor:
    return torch.ops.aten.rms_norm.default(x.to(torch.float64), [6], None, 1e-5).to(torch.float32)


CASES: dict[str, Case] = {
    "one-permute": Case(lambda m, x: x.transpose(1, 2) + 1),
    "permute-of-permute": Case(lambda m, x: x.permute(0, 2, 1).permute(2, 0, 1) + 1),
    "reshape-of-reshape": Case(lambda m, x: x.reshape(-1, 30).reshape(-1, 15, 2) + 1),
    "permute-to-itself": Case(lambda m, x: x.permute(0, 1, 2) + 1),
    "reshape-to-itself": Case(lambda m, x: x.reshape(-1, 5, 6) + 1),
    "addmm-as-linear": Case(lambda m, x: torch.addmm(m.b, x[:, 0], m.w)),
    "product-as-linear": Case(lambda m, x: x @ m.w),
    "bias-into-linear": Case(lambda m, x: F.linear(x, m.w) + m.b),
    "computed-bias-apart": Case(lambda m, x: F.linear(x, m.w, torch.cat((m.start, m.end)))),
    "linear-on-rows": Case(lambda m, x: F.linear(x.reshape(-1, 6), m.w, m.b).reshape(-1, 5, 6)),
    "one-product": Case(lambda m, x, y: torch.bmm(x, y), matrices),
    "product-and-sum": Case(lambda m, x, y: torch.baddbmm(m.end, x, y, beta=2.0, alpha=0.5), matrices),
    "einsum-in-pairs": Case(lambda m, x, y: torch.einsum("bij,kj,bj->bik", x, m.w, y[..., 0]), matrices),
    "product-with-every-part": Case(lambda m, x: torch.matmul(x[:, None], m.parts)),
    "sum-of-products-by-part": Case(lambda m, x: torch.matmul(x.unflatten(1, (5, 1)), m.parts).sum(1)),
    "sum-over-joined-axes": Case(lambda m, x: torch.einsum("bsd,hde->bhse", x, m.parts)),
    "einsum-as-product": Case(lambda m, x, y: torch.einsum("bij,bjk->bik", x, y), matrices),
    "square-as-power": Case(lambda m, x: x * x),
    "power-as-root": Case(lambda m, x: (x.abs() + 1).pow(0.5)),
    "one-over-root": Case(lambda m, x: (x.abs() + 1).pow(-0.5)),
    "times-one": Case(lambda m, x: torch.tanh(x * 1.0)),
    "written-over": Case(lambda m, x: shifted(x)),
    "one-subtraction": Case(lambda m, x: 1 - x),
    "divided-by-root": Case(lambda m, x: x / torch.sqrt(x.abs() + 1)),
    "silu": Case(lambda m, x: x * torch.sigmoid(x)),
    "gelu": Case(lambda m, x: half_gelu(x)),
    "gelu-by-tanh": Case(lambda m, x: tanh_gelu(x)),
    "rms-norm": Case(lambda m, x: x * moment(x)),
    "layer-norm": Case(lambda m, x: (x - x.mean(-1, keepdim=True)) * moment(x - x.mean(-1, keepdim=True))),
    "norm-in-its-own-dtype": Case(widened),
    "scale-into-rms-norm": Case(lambda m, x: m.scale * rms(m, x)),
    "scale-into-layer-norm": Case(lambda m, x: F.layer_norm(x, (6,)) * m.scale),
    "shift-into-layer-norm": Case(lambda m, x: F.layer_norm(x, (6,), m.scale) + m.shift),
    "boolean-cast": Case(lambda m, x: torch.where(x.round().to(torch.bool), x, 0.5)),
    "one-negation": Case(lambda m, x: torch.where(~(x > 0), x, 0.5)),
    "no-negation": Case(lambda m, x: torch.where(torch.logical_not(torch.logical_not(x > 0)), x, 0.5)),
    "not-equal": Case(lambda m, x: torch.where(torch.logical_not(x == 1), x, 0.5)),
    "equal": Case(lambda m, x: torch.where(torch.logical_not(x != 1), x, 0.5)),
    "one-softmax": Case(lambda m, x: torch.ops.aten._softmax.default(x, -1, False)),
    "softmax-in-its-own-dtype": Case(lambda m, x: torch.softmax(x, -1, dtype=x.dtype)),
    "softmax": Case(lambda m, x: powers(x) / powers(x).sum(-1, keepdim=True)),
    "factor-behind-move": Case(lambda m, x: (x * 3).permute(0, 2, 1) + 1),
    "attention": Case(lambda m, q, k, v: torch.softmax(q @ k.permute(0, 1, 3, 2) * 0.3, -1) @ v, heads),
    "factor-into-attention": Case(lambda m, q, k, v: F.scaled_dot_product_attention(q * 0.5, k, v), heads),
    "default-scale": Case(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=6**-0.5), heads),
    "causal-mask": Case(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, m.past), heads),
    "projection-apart": Case(lambda m, x: F.linear(x, m.w, m.b)[..., :2] * F.linear(x, m.w, m.b)[..., 2:4]),
    "plus-nothing": Case(lambda m, x: torch.tanh(x + 0)),
    "weight-apart": Case(lambda m, x: torch.add(torch.tanh(x), torch.exp(x), alpha=2)),
    "index-as-embedding": Case(lambda m, ids: m.table[ids], tokens),
    "convolution-of-patches": Case(lambda m, x: F.conv2d(x, m.kernel, m.b, stride=2), images),
    "unfold-as-moves": Case(lambda m, x: F.unfold(x, 2, stride=2), images),
    "windows-as-moves": Case(lambda m, x: x.unfold(2, 2, 2) + 1, images),
    "groups-as-repeats": Case(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), groups),
}
