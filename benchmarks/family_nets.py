"""Networks of the families that are merged, in plain PyTorch, as their users would write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models import GPT


class ResNet(nn.Module):
    """Three stages of two basic blocks with batch norm: images (B, channels, H, W) to logits (B, classes)."""

    def __init__(self, classes: int, *, width: int, channels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = (width, 2 * width, 4 * width)
        stages = zip((width, *widths), widths, (1, 2, 2), strict=False)
        self.stages = nn.ModuleList(
            nn.Sequential(BasicBlock(before, after, stride), BasicBlock(after, after))
            for before, after, stride in stages
        )
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two convolutions around a skip connection, which is projected where sizes change."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class Detector(nn.Module):
    """Images (B, 1, H, W) to a grid of stride 8 (B, outputs, H / 8, W / 8): confidence, box, class logits, all raw."""

    def __init__(self, outputs: int, *, width: int) -> None:
        super().__init__()
        self.stem = ConvNorm(1, width, 3, 2)
        self.down1, self.down2 = ConvNorm(width, 2 * width, 3, 2), ConvNorm(2 * width, 4 * width, 3, 2)
        self.inner1, self.inner2 = Bottleneck(2 * width), Bottleneck(4 * width)
        self.neck = ConvNorm(4 * width, 4 * width, 3)
        self.head = nn.Conv2d(4 * width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner1(self.down1(self.stem(x)))
        x = self.inner2(self.down2(x))
        grid: Tensor = self.head(self.neck(x))
        return grid


class ConvNorm(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    """A narrower convolution and one back, around a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.back = ConvNorm(width, width // 2, 1), ConvNorm(width // 2, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.back(self.narrow(x))
        return y


class RMSNorm(nn.Module):
    """Each row divided by the root of its mean square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class SwiGLU(nn.Module):
    """A gated MLP without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Llama(nn.Module):
    """Pre-norm decoder with rotary positions and grouped keys: token ids (B, T) to logits (B, T, outputs)."""

    def __init__(
        self, outputs: int, *, vocabulary: int, width: int, heads: int, groups: int, hidden: int, depth: int
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(LlamaLayer(width, heads, groups, hidden) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, outputs, bias=False)
        size = width // heads
        self.register_buffer("rates", 10000.0 ** (-torch.arange(0, size, 2) / size), persistent=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        angles = places[:, None] * self.get_buffer("rates")
        angles = torch.cat([angles, angles], dim=-1)
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        logits: Tensor = self.head(self.norm(x))
        return logits


class LlamaLayer(nn.Module):
    """Attention in which several queries share a key, and a gated MLP."""

    def __init__(self, width: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.query = nn.Linear(width, heads * self.size, bias=False)
        self.key, self.value = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.output = nn.Linear(heads * self.size, width, bias=False)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        seen = self.norm1(x)
        q = self.query(seen).view(batch, length, self.heads, self.size).transpose(1, 2)
        k, v = (f(seen).view(batch, length, self.groups, self.size).transpose(1, 2) for f in (self.key, self.value))
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        k, v = (part.repeat_interleave(self.heads // self.groups, dim=1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of channels turned by the angle of their place."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class GatedViT(nn.Module):
    """Vision transformer with RMSNorm, gated MLPs and a mean over its patches: images to logits (B, classes)."""

    def __init__(
        self, classes: int, *, image: int, patch: int, width: int, heads: int, hidden: int, depth: int
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, (image // patch) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(GatedBlock(width, heads, hidden) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class GatedBlock(nn.Module):
    """Attention and a gated MLP, each behind a norm and around a skip connection."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.qkv, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


def untied(outputs: int, **shape: int) -> GPT:
    """A decoder with an output layer of its own, for so many outputs."""
    model = GPT(256, **shape)
    model.head = nn.Linear(shape["width"], outputs, bias=False)
    return model
