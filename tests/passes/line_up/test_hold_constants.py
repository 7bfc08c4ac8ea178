"""What is computed from numbers alone is a table like one that a model registers: parents may differ in its width."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from passes.line_up.hold_constants import hold_constants


def waves(places: Tensor, width: int) -> Tensor:
    """Sines and cosines of places (…, 1)."""
    count = width // 2
    angles = places * torch.exp(-math.log(100) * torch.arange(count) / count)
    return torch.cat((angles.sin(), angles.cos()), -1)


class Places(nn.Module):
    """Positions are added to a stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + waves(torch.arange(x.shape[1])[:, None], x.shape[-1])
        found: Tensor = self.head((x + self.down(self.up(x).relu())).mean(1))
        return found


class Time(nn.Module):
    """A number is embedded before any weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, 3)

    def forward(self, t: Tensor) -> Tensor:
        found: Tensor = self.head(self.first(waves(t, self.first.in_features)).relu())
        return found


def captured(net: type[nn.Module], width: int, x: Tensor, **options: object) -> fxmerge.Program:
    torch.manual_seed(width)
    return fxmerge.capture(net(width).eval(), (x,), task=f"w{width}", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("net", "shape", "inputs"), [(Places, (8, 4, 5), 1), (Time, (8, 1), 2)])
def test_parents_of_two_widths_that_compute_waves(net: type[nn.Module], shape: tuple[int, ...], inputs: int) -> None:
    x = torch.rand(shape)
    parents = [captured(net, width, x) for width in (8, 12)]
    held = hold_constants(parents[0])
    torch.testing.assert_close(held.run(held.samples), parents[0].run(parents[0].samples))
    assert held.tensors.keys() - parents[0].tensors.keys() == {"constant0"}
    merged = fxmerge.merge(parents, method="average")
    assert len(merged.program.inputs) == inputs
    said = [note for note in merged.result["notes"] if note.endswith("each task has inputs of its own")]
    assert said == ([] if inputs == 1 else [
        "first.weight has axes that no map brings together, 8 in w8 and 12 in w12: each task has inputs of its own"
    ])  # fmt: skip


def test_what_a_dynamic_size_counts_is_no_table() -> None:
    length = torch.export.Dim("length", min=2, max=16)
    program = captured(Places, 8, torch.rand(8, 4, 5), dynamic_shapes=({0: torch.export.Dim.AUTO, 1: length},))
    held = {name: held.shape for name, held in hold_constants(program).tensors.items() if name.startswith("constant")}
    assert held == {"constant0": (4,)}
