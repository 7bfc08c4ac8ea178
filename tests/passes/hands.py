"""One transformer in many handwritings: `Hand` computes the same function of the same weights whatever its style."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN, VOCABULARY, CLASSES, POSITIONS = 12, 20, 23, 5, 16
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Style:
    """How a network is written. No field changes what it computes."""

    qkv: str = (
        "separate"  # or chunk, split, slices, unbind, permute: thirds; heads-unbind, heads-chunk: each head's own
    )
    linear: str = "linear"  # or addmm, matmul, einsum: the weight is stored inputs first
    attention: str = "sdpa"  # or matmul, query, bmm, einsum
    norm: str = "nn"  # or own
    gelu: str = "nn"  # or own
    layout: str = "batch"  # or tokens: (tokens, batch, width)
    swapped: bool = False  # f(x) + x, tok + pos
    stem: str = "conv"  # or unfold, linear: how images become patches
    repeat: str = "repeat"  # or expand, gqa: how keys and values of a group meet their queries
    gated: str = "separate"  # or chunk, slices: gate and up in one weight


@dataclass(frozen=True)
class Kind:
    """Which network is written."""

    name: str  # vit, bert, gpt, llama
    heads: int = 3
    depth: int = 1
    width: int = WIDTH
    hidden: int = HIDDEN
    classes: int = CLASSES
    vocabulary: int = VOCABULARY

    @property
    def pre(self) -> bool:
        return self.name != "bert"

    @property
    def groups(self) -> int:
        return self.heads // 2 if self.name == "llama" else self.heads

    @property
    def bias(self) -> bool:
        return self.name != "llama"


def weights(kind: Kind, seed: int = 0) -> Weights:
    """Random weights of a network in float64, each stored as nn.Linear and nn.Conv2d store theirs."""
    made = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=made, dtype=torch.float64) / math.sqrt(shape[-1])

    d, h, g = kind.width, kind.hidden, kind.width // kind.heads * kind.groups
    found: Weights = {}

    def linear(name: str, out: int, into: int) -> None:
        found[f"{name}.weight"] = random(out, into)
        if kind.bias:
            found[f"{name}.bias"] = random(out)

    def norm(name: str) -> None:
        found[f"{name}.weight"] = 1 + 0.3 * random(d)
        if kind.name != "llama":
            found[f"{name}.bias"] = 0.3 * random(d)

    for i in range(kind.depth):
        for name, out, into in (("q", d, d), ("k", g, d), ("v", g, d), ("o", d, d), ("up", h, d), ("down", d, h)):
            linear(f"{i}.{name}", out, into)
        if kind.name == "llama":
            linear(f"{i}.gate", h, d)
        norm(f"{i}.norm1")
        norm(f"{i}.norm2")
    norm("norm")
    found["head.weight"], found["head.bias"] = random(kind.classes, d), random(kind.classes)
    if kind.name == "vit":
        found["patch.weight"], found["patch.bias"] = random(d, 2, 3, 3), random(d)
        found["cls"], found["positions"] = random(1, 1, d), random(1, 5, d)
    else:
        found["tokens"], found["positions"] = random(kind.vocabulary, d), random(POSITIONS, d)
    if kind.name == "bert":
        found["types"] = random(2, d)
    return found


def inputs(kind: Kind, rows: int = 3, tokens: int = 7, seed: int = 1) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(seed)
    if kind.name == "vit":
        return {"x": torch.randn(rows, 2, 6, 6, generator=made, dtype=torch.float64)}
    ids = torch.randint(0, kind.vocabulary, (rows, tokens), generator=made)
    if kind.name != "bert":
        return {"ids": ids}
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, tokens // 2 :] = 0
    return {"ids": ids, "mask": mask}


class Hand(nn.Module):
    def __init__(self, kind: Kind, style: Style, given: Weights) -> None:
        super().__init__()
        self.kind, self.style = kind, style
        self.parts = nn.ParameterDict()
        stored = dict(given)
        for i in range(kind.depth):
            for what in ("weight", "bias") if kind.bias else ("weight",):
                if style.qkv != "separate":
                    stored[f"{i}.qkv.{what}"] = self._fused([stored.pop(f"{i}.{n}.{what}") for n in "qkv"])
                if style.gated != "separate" and kind.name == "llama":
                    pair = [stored.pop(f"{i}.{n}.{what}") for n in ("gate", "up")]
                    stored[f"{i}.gate_up.{what}"] = torch.cat(pair)
        for name, value in stored.items():
            if style.stem != "conv" and name == "patch.weight":
                value = value.flatten(1) if style.stem == "unfold" else value.permute(0, 2, 3, 1).flatten(1)
            if style.layout == "tokens" and name in ("cls", "positions") and value.ndim == 3:
                value = value.transpose(0, 1)
            turned = style.linear != "linear" and name.endswith("weight") and "norm" not in name and value.ndim == 2
            self.parts[name.replace(".", "_")] = nn.Parameter((value.T if turned else value).contiguous().clone())
        self.register_buffer("hidden_keys", torch.full((POSITIONS, POSITIONS), -1e9).triu(1), persistent=False)
        if kind.name == "llama":
            half = kind.width // kind.heads // 2
            angles = torch.arange(POSITIONS)[:, None] / 100.0 ** (torch.arange(half, dtype=torch.float64) / half)
            self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
            self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def _fused(self, parts: list[Tensor]) -> Tensor:
        if not self.style.qkv.startswith("heads"):
            return torch.cat(parts)
        return torch.stack([p.unflatten(0, (self.kind.heads, -1)) for p in parts], 1).flatten(0, 2)

    # -- parts --------------------------------------------------------------------------------------------

    def part(self, name: str) -> Tensor | None:
        name = name.replace(".", "_")
        return self.parts.get(name)

    def linear(self, name: str, x: Tensor) -> Tensor:
        w, b = self.part(f"{name}.weight"), self.part(f"{name}.bias")
        if self.style.linear == "linear":
            return F.linear(x, w, b)
        if self.style.linear == "addmm" and b is not None:
            return torch.addmm(b, x.reshape(-1, x.size(-1)), w).view(*x.shape[:-1], w.shape[1])
        if self.style.linear == "einsum":
            y = torch.einsum("...i,io->...o", x, w) if x.ndim != 3 else torch.einsum("bti,io->bto", x, w)
        else:
            y = x @ w
        return y if b is None else (b + y if self.style.swapped else y + b)

    def norm(self, name: str, x: Tensor) -> Tensor:
        w, b = self.part(f"{name}.weight"), self.part(f"{name}.bias")
        if self.style.norm == "nn":
            return (
                F.rms_norm(x, (self.kind.width,), w, 1e-5) if b is None else F.layer_norm(x, (self.kind.width,), w, b)
            )
        if b is None:
            return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
        mean = x.mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-5) * w + b

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x) if self.style.gelu == "nn" else 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return y + x if self.style.swapped else x + y

    # -- attention ----------------------------------------------------------------------------------------

    def heads(self, x: Tensor, count: int) -> Tensor:
        """(batch, heads, tokens, width of a head), whatever the layout."""
        x = x.view(*x.shape[:2], count, -1)
        return x.permute(1, 2, 0, 3) if self.style.layout == "tokens" else x.transpose(1, 2)

    def qkv(self, i: int, x: Tensor) -> tuple[Tensor, ...]:
        style, n, g = self.style.qkv, self.kind.heads, self.kind.groups
        if style == "separate":
            return tuple(
                self.heads(self.linear(f"{i}.{name}", x), count) for name, count in zip("qkv", (n, g, g), strict=True)
            )
        y = self.linear(f"{i}.qkv", x)
        w = y.shape[-1] // (n + 2 * g)
        if style == "chunk" and n == g:
            return tuple(self.heads(part, n) for part in y.chunk(3, -1))
        if style == "split" or (style == "chunk" and n != g):
            return tuple(self.heads(p, c) for p, c in zip(y.split([n * w, g * w, g * w], -1), (n, g, g), strict=True))
        if style == "slices":
            return (
                self.heads(y[..., : n * w], n),
                self.heads(y[..., n * w : -g * w], g),
                self.heads(y[..., -g * w :], g),
            )
        a, b = y.shape[:2]
        tokens = self.style.layout == "tokens"
        if style == "unbind":
            parts = y.view(a, b, 3, n, w).unbind(2)
            return tuple(p.permute(1, 2, 0, 3) if tokens else p.transpose(1, 2) for p in parts)
        if style == "permute":
            y = y.reshape(a, b, 3, n, w).permute(*((2, 1, 3, 0, 4) if tokens else (2, 0, 3, 1, 4)))
            return y[0], y[1], y[2]
        if style == "heads-unbind":
            y = y.view(a, b, n, 3, w)
            return tuple(y[..., j, :].permute(1, 2, 0, 3) if tokens else y[..., j, :].transpose(1, 2) for j in range(3))
        y = y.view(a, b, n, 3 * w)
        y = y.permute(1, 2, 0, 3) if tokens else y.transpose(1, 2)
        return y.chunk(3, -1)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        n, g, causal = self.kind.heads, self.kind.groups, self.kind.name in ("gpt", "llama")
        style, width = self.style.attention, q.shape[-1]
        if n != g and not (style == "sdpa" and self.style.repeat == "gqa"):
            if self.style.repeat == "expand":
                b, _, t, w = k.shape
                k, v = (p[:, :, None].expand(b, g, n // g, t, w).reshape(b, n, t, w) for p in (k, v))
            else:
                k, v = (p.repeat_interleave(n // g, 1) for p in (k, v))
        if style == "sdpa":
            more: dict[str, Any] = {"enable_gqa": True} if n != g and self.style.repeat == "gqa" else {}
            if mask is not None:
                mask = mask[:, None, None, :].bool()
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, **more)
        t = q.shape[2]
        if style == "bmm":
            b = q.shape[0]
            q, k, v = (p.reshape(b * n, t, width) for p in (q, k, v))
            scores = torch.bmm(q, k.transpose(1, 2)).view(b, n, t, t) / math.sqrt(width)
        elif style == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * width**-0.5
        elif style == "query":
            scores = torch.matmul(q * width**-0.5, k.transpose(-1, -2))
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(width)
        if mask is not None:
            scores = scores + (1.0 - mask[:, None, None, :].to(scores.dtype)) * torch.finfo(scores.dtype).min
        if causal:
            if style in ("einsum", "query"):
                tril = torch.ones(t, t, dtype=torch.bool, device=q.device).tril()
                scores = scores.masked_fill(~tril, float("-inf"))
            else:
                scores = scores + self.hidden_keys[:t, :t].to(scores.dtype)
        probabilities = scores.softmax(-1)
        if style == "bmm":
            return torch.bmm(probabilities.view(b * n, t, t), v).view(b, n, t, width)
        if style == "einsum":
            return torch.einsum("bhqk,bhkd->bhqd", probabilities, v)
        return probabilities @ v

    def attend(self, i: int, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(i, x)
        if self.kind.name == "llama":
            cos, sin = (table[: q.shape[2]] for table in (self.cos, self.sin))
            q, k = (p * cos + torch.cat([-p.chunk(2, -1)[1], p.chunk(2, -1)[0]], -1) * sin for p in (q, k))
        y = self.mixed(q, k, v, mask)
        y = y.permute(2, 0, 1, 3) if self.style.layout == "tokens" else y.transpose(1, 2)
        return self.linear(f"{i}.o", y.reshape(x.shape))

    def mlp(self, i: int, x: Tensor) -> Tensor:
        if self.kind.name != "llama":
            return self.linear(f"{i}.down", self.gelu(self.linear(f"{i}.up", x)))
        if self.style.gated == "separate":
            gate, up = self.linear(f"{i}.gate", x), self.linear(f"{i}.up", x)
        elif self.style.gated == "chunk":
            gate, up = self.linear(f"{i}.gate_up", x).chunk(2, -1)
        else:
            y = self.linear(f"{i}.gate_up", x)
            gate, up = y[..., : self.kind.hidden], y[..., self.kind.hidden :]
        act = F.silu(gate) if self.style.gelu == "nn" else gate * torch.sigmoid(gate)
        return self.linear(f"{i}.down", up * act if self.style.swapped else act * up)

    # -- the whole ----------------------------------------------------------------------------------------

    def block(self, i: int, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.kind.pre:
            x = self.add(x, self.attend(i, self.norm(f"{i}.norm1", x), mask))
            return self.add(x, self.mlp(i, self.norm(f"{i}.norm2", x)))
        x = self.norm(f"{i}.norm1", self.add(x, self.attend(i, x, mask)))
        return self.norm(f"{i}.norm2", self.add(x, self.mlp(i, x)))

    def patches(self, x: Tensor) -> Tensor:
        w, b, tokens = self.part("patch.weight"), self.part("patch.bias"), self.style.layout == "tokens"
        if self.style.stem == "conv":
            y = F.conv2d(x, w, b, stride=3).flatten(2)
            return y.permute(2, 0, 1) if tokens else y.transpose(1, 2)
        if self.style.stem == "unfold":
            y = F.unfold(x, 3, stride=3).transpose(1, 2)
        else:
            y = x.reshape(x.shape[0], 2, 2, 3, 2, 3).permute(0, 2, 4, 3, 5, 1).reshape(x.shape[0], 4, 18)
        y = y.transpose(0, 1) if tokens else y
        return self.linear("patch", y)

    def forward(self, x: Tensor | None = None, ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        tokens, positions = self.style.layout == "tokens", self.part("positions")
        if x is not None:
            x = self.patches(x)
            cls = self.part("cls")
            x = torch.cat(
                [cls.expand(-1, x.shape[1], -1) if tokens else cls.expand(x.shape[0], -1, -1), x], 0 if tokens else 1
            )
            x = self.add(x, positions)
        else:
            places = torch.arange(ids.shape[1], device=ids.device)
            own, there = self.part("tokens")[ids], F.embedding(places, positions)
            if self.kind.name == "llama":
                x = own
            elif self.kind.name == "bert":
                kinds = F.embedding(torch.zeros_like(ids), self.part("types"))
                x = there + (kinds + own) if self.style.swapped else own + kinds + there
            else:
                x = self.add(own, there)
            x = x.transpose(0, 1) if tokens else x
        for i in range(self.kind.depth):
            x = self.block(i, x, mask)
        x = self.norm("norm", x)
        if self.kind.name in ("vit", "bert"):
            return self.linear("head", x[0] if tokens else x[:, 0])
        x = self.linear("head", x)
        return x.transpose(0, 1) if tokens else x
