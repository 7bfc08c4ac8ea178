"""Small networks as people write them: sizes as Python numbers, dicts of outputs, gates, experts, odd layouts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, INNER, CLASSES = 6, 8, 3

Inputs = Callable[[int], Any]
"""Inputs of a network for a number of rows, as the network takes them."""


@dataclass(frozen=True)
class Kind:
    """A kind of network: what builds one, and its inputs."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    group: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `fxmerge.save`."""
    fixed: int | None = None
    """The only number of rows that the network takes."""
    turned: tuple[int, ...] = ()
    """The batch axis of each input, and then of each output, where it is not the first."""


KINDS: list[Kind] = []


def kind(name: str, group: str, inputs: Inputs | None = None, **more: Any) -> Callable[[type], type]:
    """Registers a class of networks as a kind."""

    def register(cls: type) -> type:
        KINDS.append(Kind(name, cls, inputs or rows_of_floats, group, **more))
        return cls

    return register


def rows_of_floats(rows: int) -> Any:
    return (torch.randn(rows, WIDTH),)


class Base(nn.Module):
    """A hidden layer, another one, and a head."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.enter, self.middle, self.head = nn.Linear(width, INNER), nn.Linear(INNER, INNER), nn.Linear(INNER, CLASSES)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.middle(torch.relu(self.enter(x))))


SIZES = "sizes as Python numbers"


@kind("len(x)", SIZES)
class Length(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).view(len(x), -1))


@kind("int(x.size(0))", SIZES)
class IntSize(Base):
    def forward(self, x: Tensor) -> Tensor:
        rows = int(x.size(0))
        return self.head(self.hidden(x).reshape(rows, -1)) + torch.zeros(rows, 1)


@kind("x.shape[0] in arithmetic", SIZES, lambda rows: (torch.randn(rows, 2, WIDTH),))
class Arithmetic(Base):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(int(x.shape[0]) * x.shape[1], WIDTH)
        return self.head(self.hidden(flat).view(flat.shape[0] // 2, 2, INNER).mean(1))


@kind("view(b, -1)", SIZES, lambda rows: (torch.randn(rows, 2, 3),))
class View(Base):
    def forward(self, x: Tensor) -> Tensor:
        b = x.size(0)
        return self.head(self.hidden(x.view(b, -1)).view(b, -1))


@kind("new_zeros of len(x)", SIZES)
class NewZeros(Base):
    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), INNER)
        for _ in range(2):
            state = torch.tanh(self.enter(x) + self.middle(state))
        return self.head(state)


@kind("int sizes of tokens", SIZES, lambda rows: (torch.randint(0, 20, (rows, 7)),))
class TokenSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle, self.head = nn.Embedding(20, INNER), nn.Linear(INNER, INNER), nn.Linear(INNER, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        rows, length = int(ids.size(0)), int(ids.size(1))
        x = torch.relu(self.middle(self.table(ids.reshape(rows * length)))).view(rows, length, INNER)
        return self.head(x.mean(1))


@kind("batch written into the model", SIZES, lambda rows: (torch.randn(rows, 2, 3),), fixed=4)
class Written(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x.view(4, 6)).view(4, INNER))


@kind("number made of the batch", SIZES, fixed=5)
class Scaled(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x) / len(x) ** 0.5)


OUTPUTS = "outputs"


@kind("dict", OUTPUTS)
class Dict(Base):
    def __init__(self) -> None:
        super().__init__()
        self.box = nn.Linear(INNER, 4)

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return {"logits": self.head(h), "box": self.box(h)}


@kind("nested dict and None", OUTPUTS)
class Nested(Dict):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return {"logits": self.head(h), "aux": {"box": self.box(h), "mask": None}}


@kind("tuple", OUTPUTS)
class Tuple(Dict):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.head(h), None, self.box(h)


@dataclass
class Answer:
    logits: Tensor
    box: Tensor | None = None


@kind("dataclass", OUTPUTS)
class Dataclass(Dict):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return Answer(self.head(h), self.box(h))


class Pair(NamedTuple):
    logits: Tensor
    box: Tensor


@kind("named tuple", OUTPUTS)
class Named(Dict):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return Pair(self.head(h), self.box(h))


@kind("ModelOutput", OUTPUTS)
class Library(Dict):
    def forward(self, x: Tensor) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        h = self.hidden(x)
        return SequenceClassifierOutput(logits=self.head(h), hidden_states=(torch.sigmoid(self.box(h)),))


@kind("squeezed scalar beside classes", OUTPUTS)
class Squeezed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(INNER, 1)

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return {"policy": self.head(h), "value": self.value(h).squeeze(-1)}


@kind("inner feature", OUTPUTS)
class InnerFeature(Base):
    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.enter(x))
        return {"logits": self.head(torch.relu(self.middle(h))), "feature": h}


@kind("different ranks", OUTPUTS, lambda rows: (torch.randn(rows, 5, WIDTH),))
class Ranks(Base):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return {"steps": self.head(h), "whole": self.head(h.mean(1)), "total": h.sum((1, 2))}


GATES = "gates and bottlenecks"


@kind("highway", GATES)
class Highway(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(INNER, INNER)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        g = torch.sigmoid(self.gate(x))
        return self.head(g * torch.relu(self.middle(x)) + (1 - g) * x)


@kind("autoencoder", GATES)
class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Linear(INNER, 3))
        self.decode = nn.Sequential(nn.Linear(3, INNER), nn.ReLU(), nn.Linear(INNER, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Experts(Base):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(INNER, 3)
        self.experts = nn.ModuleList(nn.Linear(INNER, INNER) for _ in range(3))


@kind("experts by stack", GATES)
class Stacked(Experts):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        weight = self.router(x).softmax(-1)
        given = torch.stack([torch.relu(expert(x)) for expert in self.experts], 1)
        return self.head((weight.unsqueeze(-1) * given).sum(1))


@kind("experts by einsum", GATES)
class Einsum(Base):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.weight = nn.Linear(INNER, 3), nn.Parameter(torch.randn(3, INNER, INNER) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        given = torch.relu(torch.einsum("bi,eij->bej", x, self.weight))
        return self.head(torch.einsum("be,bej->bj", self.router(x).softmax(-1), given))


@kind("experts by topk and scatter", GATES)
class TopK(Experts):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        best, place = self.router(x).topk(2, -1)
        weight = torch.zeros(x.shape[0], 3).scatter(1, place, best.softmax(-1))
        given = torch.stack([torch.relu(expert(x)) for expert in self.experts], 1)
        return self.head((weight.unsqueeze(-1) * given).sum(1))


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
