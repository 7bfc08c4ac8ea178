"""Small models of every kind the tests read and write."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxmerge.capturing import capture
from fxmerge.ir.program import Program


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(b, t, w))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """(batch, 1, 8, 8) images to 5 logits."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.Sequential(Block(width, heads, causal=False), Block(width, heads, causal=False))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(x.shape[0], -1, -1), tokens], 1) + self.position
        return self.head(self.blocks(tokens)[:, 0])


class TinyGPT(nn.Module):
    """(batch, sequence) tokens to logits over 40 tokens, embeddings tied, at most 32 tokens."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(40, width), nn.Embedding(32, width)
        self.blocks = nn.Sequential(Block(width, heads, causal=True), Block(width, heads, causal=True))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 40, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.head(self.norm(self.blocks(self.tokens(input_ids) + self.positions(places))))


class Masked(nn.Module):
    """Two inputs: tokens and a mask, to 3 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(40, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weight = attention_mask.unsqueeze(-1).to(torch.float32)
        pooled = (self.tokens(input_ids) * weight).sum(1) / weight.sum(1)
        return self.head(pooled)


@pytest.fixture(scope="session")
def vit() -> Program:
    torch.manual_seed(0)
    labels = ["zero", "one", "two", "three", "four"]
    return capture(TinyViT(), (torch.rand(4, 1, 8, 8),), task="digits", labels=labels)


@pytest.fixture(scope="session")
def gpt() -> Program:
    torch.manual_seed(1)
    return capture(TinyGPT(), (torch.randint(0, 40, (3, 12)),), task="plays")


@pytest.fixture(scope="session")
def masked() -> Program:
    torch.manual_seed(2)
    inputs = {"input_ids": torch.randint(0, 40, (3, 6)), "attention_mask": torch.ones(3, 6, dtype=torch.long)}
    return capture(Masked(), inputs, task="reviews")


class Payload:
    """Pickles to a call that creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class Trap:
    """Payloads that create a file when executed, shown to work before anything is made of their silence."""

    def __init__(self, folder: Path) -> None:
        self.marker = folder / "executed"
        self.object = Payload(self.marker)
        self.text = f"__import__('pathlib').Path({str(self.marker)!r}).touch()"
        for execute in (lambda: pickle.loads(pickle.dumps(self.object)), lambda: eval(self.text)):
            execute()
            assert self.sprung
            self.marker.unlink()

    @property
    def sprung(self) -> bool:
        return self.marker.exists()


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path)
