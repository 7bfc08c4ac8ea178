"""Small networks, each about one way in which feature spaces are coupled; no two widths of one network are alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Made = tuple[nn.Module, tuple[Tensor, ...]]


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class FusedQKV(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.qkv, self.out, self.head = nn.Linear(12, 3 * 12), nn.Linear(12, 12), nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        return self.head(x + self.out(joined(F.scaled_dot_product_attention(q, k, v))))


class GroupedQueryRotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(40, 14), nn.LayerNorm(14)
        self.q, self.k, self.v = nn.Linear(14, 6 * 8), nn.Linear(14, 2 * 8), nn.Linear(14, 2 * 8)
        self.out, self.head = nn.Linear(6 * 8, 14), nn.Linear(14, 9)
        self.register_buffer("speeds", 10.0 ** -torch.arange(4))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        angles = (torch.arange(ids.shape[1])[:, None] * self.speeds).repeat(1, 2)
        y = self.norm(x)
        q, k, v = heads_of(self.q(y), 6), heads_of(self.k(y), 2), heads_of(self.v(y), 2)
        q, k = (part * angles.cos() + self.turned(part) * angles.sin() for part in (q, k))
        k, v = k.repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1)
        return self.head(x + self.out(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True))))

    @staticmethod
    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat((-b, a), dim=-1)


class GatedMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(5, 12), nn.Parameter(torch.ones(12))
        self.gate, self.up, self.down = nn.Linear(12, 17), nn.Linear(12, 17), nn.Linear(17, 12)
        self.head = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class SharedLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.up, self.down, self.head = nn.Linear(12, 17), nn.Linear(17, 12), nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x)


class DepthwiseSqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.deep = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.squeeze, self.excite = nn.Conv2d(12, 5, 1), nn.Conv2d(5, 12, 1)
        self.project, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.deep(F.hardswish(self.expand(x))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(self.project(x).mean((2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv1, self.norm1 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.stem(x)))
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return self.head(F.relu(x + y).mean((2, 3)))


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ours, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.theirs, self.other = nn.Linear(6, 10), nn.LayerNorm(10)
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(10, 16), nn.Linear(10, 24)
        self.out, self.head = nn.Linear(24, 12), nn.Linear(12, 7)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x, memory = self.ours(x), self.other(self.theirs(memory))
        q, k, v = heads_of(self.q(self.norm(x)), 4), heads_of(self.k(memory), 4), heads_of(self.v(memory), 4)
        return self.head(x + self.out(joined(F.scaled_dot_product_attention(q, k, v))))


class TopKExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.router = nn.Linear(5, 12), nn.LayerNorm(12), nn.Linear(12, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 12, 17) / 4), nn.Parameter(torch.randn(4, 17, 12) / 4)
        self.head = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.norm(x)
        share, chosen = self.router(y).softmax(-1).topk(2, dim=-1)
        gate = torch.zeros(*y.shape[:-1], 4).scatter(-1, chosen, share)
        hidden = F.relu(torch.einsum("btk,ekm->betm", y, self.up))
        return self.head(x + torch.einsum("betm,emk,bte->btk", hidden, self.down, gate))


NETS: dict[str, Callable[[], Made]] = {
    "fused-qkv": lambda: (FusedQKV(), (torch.randn(3, 11, 5),)),
    "grouped-query-rotary": lambda: (GroupedQueryRotary(), (torch.randint(0, 40, (3, 11)),)),
    "gated-mlp": lambda: (GatedMLP(), (torch.randn(3, 11, 5),)),
    "shared-layers": lambda: (SharedLayers(), (torch.randn(3, 11, 5),)),
    "depthwise-squeeze-excite": lambda: (DepthwiseSqueezeExcite(), (torch.randn(3, 3, 9, 9),)),
    "residual-block": lambda: (ResidualBlock(), (torch.randn(3, 3, 9, 9),)),
    "cross-attention": lambda: (CrossAttention(), (torch.randn(3, 11, 5), torch.randn(3, 13, 6))),
    "top-k-experts": lambda: (TopKExperts(), (torch.randn(3, 11, 5),)),
}
