"""What goes into a program and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Port:
    """An input or output of a program. A string in `shape` names a dynamic size; equal names are equal sizes."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype

    @property
    def dynamic(self) -> tuple[str, ...]:
        return tuple(size for size in self.shape if isinstance(size, str))


class Runnable(Protocol):
    """What answers inputs by name with outputs by name."""

    def run(self, inputs: Mapping[str, Tensor], /) -> Mapping[str, Tensor]: ...
