"""The closed form: exact where there is nothing to lose, far from the average elsewhere, and a start for training."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from benchmarks.models import BERT, GPT, MLP, ViT
from fxmerge.errors import OptionError
from fxmerge.ir.program import Program
from fxmerge.methods.regress import Rows


class Residual(nn.Module):
    """A small ResNet: a block around an identity, then one around a strided projection."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 8, 3, 2), (8, 8, 3, 1), (8, 8, 3, 1), (8, 12, 3, 2), (12, 12, 3, 1), (8, 12, 1, 2))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, k, s, k // 2, bias=False) for a, b, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in sizes)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        stem, a, b, c, d, short = (nn.Sequential(*pair) for pair in zip(self.convs, self.norms, strict=True))
        x = F.relu(stem(x))
        x = F.relu(b(F.relu(a(x))) + x)
        x = F.relu(d(F.relu(c(x))) + short(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Dense(nn.Module):
    """What was there stands beside what is new, and both are normed together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow = nn.Conv2d(1, 6, 3, bias=False), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in (6, 10))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat((x, self.grow(F.relu(self.norms[0](x)))), 1)
        logits: Tensor = self.head(F.relu(self.norms[1](x)).mean((2, 3)))
        return logits


class Narrow(nn.Module):
    """Maps that read one another, with nothing in between."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(a, b) for a, b in ((8, 12), (12, 6), (6, 12), (12, 4)))

    def forward(self, x: Tensor) -> Tensor:
        first, down, up, head = self.maps
        logits: Tensor = head(F.relu(up(down(F.relu(first(x))))))
        return logits


class Biased(nn.Module):
    """Every head has a row of its own in a table of what it adds to the scores of two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.asks, self.out, self.head = (nn.Linear(*s) for s in ((5, 12), (12, 36), (12, 12), (12, 4)))
        self.table = nn.Parameter(torch.randn(7, 3))
        self.register_buffer("apart", torch.arange(4)[:, None] - torch.arange(4) + 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.asks(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / 2 + self.table[self.apart.flatten()].view(4, 4, 3).permute(2, 0, 1)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        logits: Tensor = self.head(x.mean(1))
        return logits


class Compared(nn.Module):
    """Units that say yes or no."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second((self.first(x) > 0).to(x.dtype)).relu())
        return logits


class Codes(nn.Module):
    """The row of a table that is nearest to what was written, which nothing else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(6, 4)
        self.codes = nn.Parameter(torch.randn(10, 6))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(self.second(self.first(x).relu()), self.codes).argmin(-1)
        logits: Tensor = self.head(self.codes[nearest])
        return logits


class Queries(nn.Module):
    """Learnt queries that are normed before they have read anything."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 12))
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(2))
        self.ask, self.key, self.value, self.up = (nn.Linear(n, 12) for n in (12, 4, 4, 12))
        self.down, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, x = self.queries.unsqueeze(0).repeat(x.shape[0], 1, 1), x.unflatten(-1, (2, 4))
        q = q + F.scaled_dot_product_attention(self.ask(self.norms[0](q)), self.key(x), self.value(x))
        q = q + self.down(F.gelu(self.up(self.norms[1](q))))
        logits: Tensor = self.head(q.mean(1))
        return logits


class ByHead(nn.Module):
    """Attention whose weights have heads as an axis of their own; `written` says how they meet data."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4)
        self.qkv = nn.ParameterList(torch.randn(2, 8, 4) / 2 for _ in range(3))
        self.out = nn.Parameter(torch.randn(2, 4, 8) / 2)
        self.shift = nn.Parameter(torch.randn(2, 4))
        self.written = written
        if written == "linear":
            self.qkv = nn.ParameterList(w.detach().mT.reshape(8, 8).clone() for w in self.qkv)
            self.out = nn.Parameter(self.out.detach().reshape(8, 8).T.clone())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.unflatten(-1, (2, 4)))
        y = self.norm(x)
        if self.written == "linear":
            q, k, v = (F.linear(y, w).unflatten(-1, (2, 4)).transpose(1, 2) for w in self.qkv)
        elif self.written == "letters":
            q, k, v = (torch.einsum("bsd,hde->bhse", y, w) for w in self.qkv)
        else:
            q, k, v = (y[:, None] @ w for w in self.qkv)
        y = F.scaled_dot_product_attention(q + self.shift[:, None], k, v)
        if self.written == "linear":
            x = x + F.linear(y.transpose(1, 2).flatten(2), self.out)
        else:
            x = x + (torch.einsum("bhse,hed->bsd", y, self.out) if self.written == "letters" else (y @ self.out).sum(1))
        logits: Tensor = self.head(x.mean(1))
        return logits


Inputs = dict[str, Tensor]

FAMILIES: Mapping[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "mlp": lambda: (MLP(8, (12, 10), 4), {"x": torch.randn(96, 8)}),
    "vit": lambda: (ViT(**VIT, depth=2), {"x": torch.randn(96, 1, 8, 8)}),
    "vit-fused": lambda: (ViT(**VIT, depth=1, fused=True), {"x": torch.randn(96, 1, 8, 8)}),
    "gpt": lambda: (
        GPT(20, width=12, heads=2, hidden=16, depth=2, positions=16),
        {"input_ids": torch.randint(0, 20, (96, 9))},
    ),
    "bert": lambda: (BERT(20, 4, width=12, heads=2, hidden=16, depth=2, positions=16, drop=0.1), sentences(96, 9)),
    "resnet": lambda: (settled(Residual(), torch.randn(96, 1, 12, 12)), {"x": torch.randn(96, 1, 12, 12)}),
    "biased": lambda: (Biased(), {"x": torch.randn(96, 4, 5)}),
    "dense": lambda: (settled(Dense(), torch.randn(96, 1, 8, 8)), {"x": torch.randn(96, 1, 8, 8)}),
}
EQUAL = "condense{rows=200,balance=[1 1]}"
VIT: dict[str, Any] = {"image": 8, "patch": 4, "width": 12, "heads": 2, "hidden": 16, "classes": 4}


FAMILIES_AS_WRITTEN: Mapping[str, Callable[[], nn.Module]] = {"compared": Compared, "codes": Codes, "queries": Queries}


def sentences(rows: int, length: int) -> Inputs:
    """Token ids, padded, and the mask that says where."""
    ids = torch.randint(4, 20, (rows, length))
    mask = (torch.arange(length) < torch.randint(3, length + 1, (rows, 1))).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """A model whose running statistics are those of a batch."""
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.5)
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def parent(family: str, seed: int, task: str) -> tuple[Program, Inputs]:
    torch.manual_seed(seed)
    model, x = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * parameter.std().nan_to_num(1.0))
    return fxmerge.capture(model.eval(), tuple(value[:4] for value in x.values()), task=task), x


def merged(parents: list[tuple[Program, Inputs]], method: str) -> Any:
    data = {program.task: x for program, x in parents}
    return fxmerge.merge([program for program, _ in parents], data=data, method=method, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_parent_merged_with_itself_is_itself(family: str) -> None:
    first, x = parent(family, 3, "a")
    both = merged([(first, x), (dataclasses.replace(first, task="b"), x)], EQUAL)
    assert not any("no closed form" in note for note in both.result["notes"])
    some = {name: value[:32] for name, value in x.items()}
    given = first.run(some)["logits"]
    for found in both(*some.values()).values():
        miss = float((found - given).square().mean().sqrt() / given.std())
        assert miss < (0.05 if family == "bert" else 5e-3), "behind a norm, a sum is told up to its size"


@pytest.mark.parametrize("family", ["mlp", "gpt", "bert", "resnet"])
def test_it_is_far_better_than_the_average(family: str) -> None:
    parents = [parent(family, seed, task) for seed, task in ((3, "a"), (4, "b"))]
    scores = {
        method: [task["feature_r2"] for task in merged(parents, method).result["tasks"]]
        for method in ("average", EQUAL)
    }
    assert min(scores[EQUAL]) > max(scores["average"]) + 0.1


@pytest.mark.parametrize("family", FAMILIES_AS_WRITTEN)
def test_what_no_map_is_told_from_stops_nothing(family: str) -> None:
    parents = []
    for seed, task in ((3, "a"), (4, "b")):
        torch.manual_seed(seed)
        x = torch.randn(96, 8)
        parents.append((fxmerge.capture(FAMILIES_AS_WRITTEN[family]().eval(), (x[:4],), task=task), {"x": x}))
    found = merged(parents, EQUAL)
    assert found.result["init"] == "condense"
    assert not any("no closed form for what none" in note for note in found.result["notes"])


def test_weights_with_heads_as_an_axis_are_solved_like_matrices() -> None:
    def figures(*styles: str) -> list[float]:
        parents = []
        for seed, style in enumerate(styles):
            torch.manual_seed(seed)
            x = torch.randn(96, 8)
            parents.append((fxmerge.capture(ByHead(style).eval(), (x[:4],), task="ab"[seed]), {"x": x}))
        model = merged(parents, EQUAL)
        found, shifts = model.result, torch.cat([program.tensors["shift"] for program, _ in parents])
        assert (torch.cdist(model.state_dict()["shift"], shifts).amin(1) < 1e-5).all(), "of one parent's head, whole"
        assert found["checks"]["fold_max_abs"] < 1e-5
        assert not any("no closed form" in note for note in found["notes"])
        return [task["feature_r2"] for task in found["tasks"]]

    assert figures("letters", "products") == pytest.approx(figures("linear", "linear"), abs=1e-4)


def test_maps_that_read_one_another_are_solved() -> None:
    parents = []
    for seed, task in ((3, "a"), (4, "b")):
        torch.manual_seed(seed)
        x = torch.randn(96, 8)
        parents.append((fxmerge.capture(Narrow().eval(), (x[:4],), task=task), {"x": x}))
    found = merged(parents, EQUAL).result
    assert not any("no closed form" in note for note in found["notes"])
    assert min(task["feature_r2"] for task in found["tasks"]) > 0.4


def test_padding_takes_no_part() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    values = torch.arange(12.0).reshape(2, 3, 2)
    rows = Rows([[mask]])
    assert rows.of(values, -1, 0).tolist() == [[0, 1], [2, 3], [6, 7]]
    assert rows.of(values.transpose(1, 2), 1, 0).tolist() == [[0, 1], [2, 3], [6, 7]]
    assert len(rows.of(values[:, 0], -1, 0)) == 2
    assert len(Rows([[mask]], most=2).of(values, -1, 0)) == 2


def test_a_parent_counts_for_more_where_that_is_better_on_held_back_inputs() -> None:
    parents = [parent("vit", seed, task) for seed, task in ((3, "a"), (4, "b"))]
    notes = merged(parents, "condense{rows=200}").result["notes"]
    (told,) = (note for note in notes if note.startswith("condense: parents at "))
    assert re.search(r"1 : 1 -?\d\.\d+, 1\.3 : 1 -?\d", told)
    assert not any("parents at" in note for note in merged(parents, EQUAL).result["notes"])


@pytest.mark.parametrize("family", ["dense", "biased"])
def test_units_bring_what_is_theirs_in_norms_beside_each_other_and_in_tables(family: str) -> None:
    parents = [parent(family, seed, task) for seed, task in ((3, "a"), (4, "b"))]
    assert not any("plain average" in note for note in merged(parents, EQUAL).result["notes"])


def test_training_starts_from_it() -> None:
    parents = [parent("vit", seed, task) for seed, task in ((3, "a"), (4, "b"))]
    plain = merged(parents, EQUAL).result["tasks"]
    found = merged(parents, 'distill{init=condense,steps=20,lr=0.001,augment="none"}').result
    assert found["init"] == "condense"
    assert all(a["feature_r2"] > b["feature_r2"] - 0.05 for a, b in zip(found["tasks"], plain, strict=True))


def test_kernels_and_norms_are_solved_for_those_who_start_from_it_too() -> None:
    parents = [parent("resnet", seed, task) for seed, task in ((3, "a"), (4, "b"))]
    x = parents[0][1]["x"]
    alone, begun = merged(parents, "condense"), merged(parents, "auto{init=condense,polish=0}")
    assert all(
        torch.allclose(one, two, atol=1e-4) for one, two in zip(alone(x).values(), begun(x).values(), strict=True)
    )
    assert not any("plain average" in note for note in alone.result["notes"])


def test_what_it_cannot_do_is_said() -> None:
    parents = [parent("mlp", seed, task) for seed, task in ((3, "a"), (4, "b"))]
    with pytest.raises(OptionError, match="maps of rank 2 cannot hold what condense gives"):
        merged(parents, "foldable{init=condense,rank=2,steps=5}")
    with pytest.raises(OptionError, match="3 numbers to balance 2 parents"):
        merged(parents, "condense{balance=[1, 1, 2]}")
