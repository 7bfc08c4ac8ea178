"""Small networks as people write them: odd layouts, nested inputs, slices written over, recurrent, computed parts."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.kind import CLASSES, INNER, WIDTH, Base, Kind, kinds

KINDS: list[Kind] = []
kind = kinds(KINDS)

LAYOUT = "layouts"


class Mixer(nn.Module):
    """Attention over axis 0, or over axis 1."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(WIDTH, INNER), nn.Linear(INNER, CLASSES)
        self.attention = nn.MultiheadAttention(INNER, 2, batch_first=batch_first)


@kind("attention, time first", LAYOUT, lambda rows: (torch.randn(5, rows, WIDTH),), turned=(1, 1))
class TimeFirst(Mixer):
    def __init__(self) -> None:
        super().__init__(batch_first=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        return self.head(x + self.attention(x, x, x)[0])


@kind("nn.Transformer, time first", LAYOUT,
      lambda rows: (torch.randn(5, rows, WIDTH), torch.randn(4, rows, WIDTH)), turned=(1, 1, 1))  # fmt: skip
class Seq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(WIDTH, INNER), nn.Linear(INNER, CLASSES)
        with warnings.catch_warnings(action="ignore"):  # it warns that time first is slower
            self.body = nn.Transformer(INNER, 2, 1, 1, 16)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.body(self.enter(source), self.enter(target)))


@kind("time said by dynamic_shapes", LAYOUT, lambda rows: (torch.randn(5, rows, WIDTH),), turned=(1, 0),
      options={"dynamic_shapes": {"x": {1: torch.export.Dim("batch")}}})  # fmt: skip
class TimeSaid(TimeFirst):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        return self.head((x + self.attention(x, x, x)[0]).mean(0))


@kind("any height and width", LAYOUT, lambda rows: (torch.randn(rows, 3, 8, 8),),
      options={"dynamic": ("height", "width")})  # fmt: skip
class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, INNER, 3, padding=1), nn.ReLU(), nn.Conv2d(INNER, INNER, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Conv2d(INNER, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


NESTED = "nested inputs"


@kind("list", NESTED, lambda rows: ([torch.randn(rows, WIDTH), torch.randn(rows, WIDTH)],))
class ListOf(Base):
    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.head(torch.relu(self.middle(torch.relu(self.enter(maps[0]) - self.enter(maps[1])))))


@kind("dict of tensors", NESTED,
      lambda rows: ({"image": torch.randn(rows, WIDTH), "scale": torch.rand(rows, 1), "power": 2},))  # fmt: skip
class DictOf(Base):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.head(self.hidden(batch["image"] * batch["scale"] ** batch["power"]))


@kind("tuple and keyword", NESTED,
      lambda rows: {"pair": (torch.randn(rows, WIDTH), torch.randn(rows, WIDTH)), "shift": 0.5})  # fmt: skip
class TupleOf(Base):
    def forward(self, *, pair: tuple[Tensor, Tensor], shift: float = 0.0) -> Tensor:
        return self.head(self.hidden(pair[0] + pair[1] + shift))


ASSIGN = "slice assignment"


@kind("shift by slices", ASSIGN, lambda rows: (torch.randn(rows, 5, WIDTH),))
class Shifted(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.enter(x))
        moved = h.clone()
        moved[:, 1:] = h[:, :-1]
        return self.head(torch.relu(self.middle(moved)).mean(1))


@kind("mask by slices", ASSIGN, lambda rows: (torch.randn(rows, 5, WIDTH),))
class MaskedOut(Base):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1])
        mask[:, 3:] = 0
        mask[3:] = 0
        h = torch.relu(self.enter(x))
        scores = (h @ h.transpose(1, 2)).masked_fill(mask == 0, -1e4)
        return self.head(torch.relu(self.middle(F.softmax(scores, -1) @ h)).mean(1))


@kind("padding by slices", ASSIGN, lambda rows: (torch.randn(rows, WIDTH),))
class Padded(Base):
    def __init__(self) -> None:
        super().__init__(WIDTH + 2)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.zeros(x.shape[0], WIDTH + 2)
        wide[:, 1:-1] = x
        return self.head(self.hidden(wide))


RECURRENT = "recurrent layers"


@kind("LSTM, last state", RECURRENT, lambda rows: (torch.randn(rows, 5, WIDTH),))
class LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(WIDTH, INNER, 2, batch_first=True), nn.Linear(INNER, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[1][0][-1])


@kind("GRU, time first, both directions", RECURRENT, lambda rows: (torch.randn(5, rows, WIDTH),), turned=(1, 1))
class BothWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(WIDTH, INNER, bidirectional=True), nn.Linear(2 * INNER, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0])


COMPUTED = "computed weights"


@kind("weight norm", COMPUTED)
class WeightNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.middle)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


@kind("low-rank adapter", COMPUTED)
class Adapter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, INNER)), nn.Parameter(torch.randn(INNER, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        return self.head(torch.relu(F.linear(x, self.middle.weight + self.up @ self.down, self.middle.bias)))
