"""Widths in unusual places: along two axes of one value, as a vector times a number, as a root kept in a tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.errors import OptionError


class Mixer(nn.Module):
    """Tokens are mixed along one axis, channels along the other: hidden tokens beside channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.up, self.down = nn.Linear(4, width + 2), nn.Linear(width + 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(self.up(x.transpose(1, 2)).relu()).transpose(1, 2)
        found: Tensor = self.head(x.mean(1))
        return found


class Columns(nn.Module):
    """Every number has a vector of its own, times which it is a token; the root of the width is a tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vectors, self.width = nn.Parameter(torch.randn(5, width)), width
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.vectors * x[:, :, None] * torch.tensor(self.width**0.5)
        x = x + self.down(self.up(x).relu())
        found: Tensor = self.head(x.mean(1))
        return found


def captured(net: type[nn.Module], width: int, task: str, seed: int = 0) -> fxmerge.Program:
    torch.manual_seed(seed)
    shape = (32, 4, 5) if net is Mixer else (32, 5)
    return fxmerge.capture(net(width).eval(), (torch.randn(shape),), task=task)


def test_tokens_and_channels_of_two_widths() -> None:
    parents = [captured(Mixer, width, f"w{width}") for width in (8, 12)]
    merged = fxmerge.merge(parents, method="permute")
    assert merged.result["checks"]["fold_max_abs"] < 1e-5
    for method in ("condense{balance=[1 1]}", "pleas"):
        with pytest.raises(OptionError, match="different widths along two axes of one value"):
            fxmerge.merge(parents, method=method)


def test_a_vector_times_a_number_writes_a_stream() -> None:
    parents = [captured(Columns, width, f"w{width}", width) for width in (8, 12)]
    merged = fxmerge.merge(parents, method="condense{balance=[1 1]}")
    assert all(task["feature_r2"] > 0.7 for task in merged.result["tasks"])
    assert not any("plain average" in note for note in merged.result["notes"])
