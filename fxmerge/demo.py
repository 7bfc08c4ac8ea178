"""The main job on real data that ships with a dependency: two digit classifiers of different widths become one."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from fxmerge.export import export_onnx

UNLABELED = 300
"""Inputs a task that merging may see, at most. Their labels are dropped before they reach it."""


class ViT(nn.Module):
    """Pre-norm vision transformer with a class token: images (B, channels, image, image) to logits (B, classes).

    `fused` computes query, key and value with one linear map instead of three.
    """

    def __init__(
        self,
        *,
        image: int,
        patch: int,
        width: int,
        heads: int,
        hidden: int,
        depth: int,
        classes: int,
        channels: int = 1,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, fused) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


class Block(nn.Module):
    """Attention and MLP, each behind a norm and around a skip connection."""

    def __init__(self, width: int, heads: int, hidden: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        seen = self.norm1(x)
        parts = self.qkv(seen).chunk(3, dim=2) if self.fused else (self.query(seen), self.key(seen), self.value(seen))
        q, k, v = (part.reshape(batch, tokens, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.output(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def digits(seed: int = 0) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits in random order: images (N, 1, 8, 8) in 0..1 and labels (N,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    images = torch.tensor(data.images[order] / 16, dtype=torch.float32)[:, None]
    return images, torch.tensor(data.target[order])


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) moved by up to `most` pixels in each direction; what enters is 0."""
    padded = F.pad(x, (most,) * 4)
    rows, columns = (torch.randint(0, 2 * most + 1, (len(x), 1), generator=generator) for _ in range(2))
    rows = rows + torch.arange(x.shape[2])
    columns = columns + torch.arange(x.shape[3])
    return padded[torch.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(
    model: nn.Module,
    inputs: Sequence[Tensor],
    labels: Tensor,
    *,
    epochs: int,
    lr: float,
    seed: int,
    batch: int = 64,
    weight_decay: float = 0.05,
    augment: Callable[[Sequence[Tensor], torch.Generator], Sequence[Tensor]] | None = None,
) -> None:
    """Train a classifier on its own labels with AdamW on a one-cycle schedule."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(labels) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(batch)[: len(labels) // batch]:
            part = [x[rows] for x in inputs]
            if augment is not None:
                part = list(augment(part, generator))
            loss = F.cross_entropy(model(*part), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(logits: Callable[..., Tensor], inputs: Sequence[Tensor], labels: Tensor) -> float:
    """Share of rows whose largest logit is the label's."""
    hits = 0
    for rows in torch.arange(len(labels)).split(500):
        hits += int((logits(*(x[rows] for x in inputs)).argmax(-1) == labels[rows]).sum())
    return hits / len(labels)
