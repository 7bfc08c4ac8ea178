"""Random values that calls of rules are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_generator = torch.Generator().manual_seed(0)


def x(*shape: int) -> Tensor:
    """Positive numbers."""
    return torch.rand(shape, generator=_generator, dtype=torch.float64) + 0.5


def z(*shape: int) -> Tensor:
    """Numbers of both signs."""
    return torch.randn(shape, generator=_generator, dtype=torch.float64)


def i(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=_generator)


def b(*shape: int) -> Tensor:
    return torch.rand(shape, generator=_generator) > 0.4


def norm(c: int) -> tuple[Tensor, ...]:
    return x(c), z(c), z(c), x(c)


Call = tuple[Any, ...]

OFFSETS = torch.tensor([0, 2, 3])
"""Where bags begin: no operand that could be transformed, but a constant."""

BITS = ["bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__", "__lshift__", "__rshift__"]
