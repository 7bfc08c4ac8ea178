"""Small networks as people write them: sizes as Python numbers, dicts of outputs, gates, experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.kind import CLASSES, INNER, WIDTH, Base, Kind, kinds

KINDS: list[Kind] = []
kind = kinds(KINDS)

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
