"""Every method on parents that are one function in other coordinates: what its group holds is undone, and nothing else.

B = g·A for g in the method's group gives A back; for any other g neither that nor a group that holds g is claimed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
from benchmarks.family_nets import Llama, RMSNorm
from benchmarks.models import MLP
from fxmerge.coupling.elements import Kind
from fxmerge.installed import known
from fxmerge.ir.program import Program
from tests.methods.alignment.planted import planted
from tests.methods.alignment.test_planted import miss
from tests.methods.test_condense import parent

ORDERS: tuple[Kind, ...] = ("permutation",)
SIGNS: tuple[Kind, ...] = ("permutation", "sign")
SCALES: tuple[Kind, ...] = ("permutation", "scale")
TURNS: tuple[Kind, ...] = ("permutation", "dense")
EXACT, FITTED = 1e-5, 1e-4
"""Kept: up to rounding; what a ridge of next to nothing leaves."""
SHORT = 'steps=4,augment="none"'
SITES: list[tuple[str, tuple[Kind, ...]]] = [
    ("experts", ORDERS), ("resnet", ORDERS), ("llama", ORDERS), ("vit-fused", TURNS)
]  # fmt: skip
"""Experts and a router, channels, groups of queries with planes and gates, heads that turn."""
CONDENSE = "condense{ridge=1e-8,rows=200,balance=[1 1]}"


class Tanh(nn.Module):
    """Two layers whose signs are free."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.second(self.first(x).tanh()).tanh())
        return found


class Experts(nn.Module):
    """Three experts in one tensor, and a router."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(3, 8, 8) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        given = torch.einsum("bi,eoi->beo", x, self.weight).relu()
        found: Tensor = self.head((given * self.router(x).softmax(-1)[:, :, None]).sum(1))
        return found


class Normed(nn.Module):
    """A block along a stream that is normed by its size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 10), nn.Linear(10, 4, bias=False)
        self.up, self.down = nn.Linear(10, 12), nn.Linear(12, 10)
        self.norms = nn.ModuleList(RMSNorm(10) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(self.norms[0](x))))
        found: Tensor = self.head(self.norms[1](x))
        return found


NETS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": lambda: MLP(6, (8, 7), 3),
    "tanh": Tanh,
    "experts": Experts,
    "normed": Normed,
}


def net(family: str, rows: int = 96) -> tuple[Program, dict[str, Tensor]]:
    if family == "llama":
        return llama()
    if family not in NETS:
        return parent(family, 1, "a")
    torch.manual_seed(1)
    model = NETS[family]()
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, RMSNorm)):
            norm.weight.uniform_(0.5, 1.5)
    x = torch.randn(rows, 6)
    return fxmerge.capture(model.eval(), (x[:4],), task="a"), {"x": x}


KEPT: list[tuple[str, str, tuple[Kind, ...], float]] = [
    ("permute{on=weights}", "bert", ORDERS, EXACT),
    ("permute", "tanh", SIGNS, EXACT),
    ("permute", "experts", ORDERS, EXACT),
    ("permute{on=weights}", "tanh", SIGNS, EXACT),
    ("permute{on=weights}", "experts", ORDERS, EXACT),
    ("rotate", "tanh", SIGNS, EXACT),
    ("align", "tanh", SIGNS, EXACT),
    ("transport{reg=0}", "relu", ORDERS, EXACT),
    ("zipit", "relu", ORDERS, EXACT),
    ("pleas{ridge=0}", "relu", ORDERS, EXACT),
    ("regmean{align=permute}", "relu", ORDERS, EXACT),
    ("regmean{align=rotate}", "vit-fused", TURNS, EXACT),
    (CONDENSE, "relu", SCALES, FITTED),
    ("auto{init=permute,polish=0}", "relu", ORDERS, EXACT),
    ("auto{init=permute,steps=20,augment=vector}", "relu", ORDERS, EXACT),
    *((f"{each}{{init=permute,steps=20,augment=vector}}", "relu", ORDERS, EXACT) for each in ("foldable", "distill")),
    *((f"align{{{SHORT}}}", family, kinds, EXACT) for family, kinds in SITES[:3]),
    *((f"foldable{{init=rotate,{SHORT}}}", family, kinds, EXACT) for family, kinds in SITES),
    (f"distill{{init=rotate,{SHORT}}}", "vit-fused", TURNS, EXACT),
    *((each, "relu", (), EXACT) for each in ("average", "task-arithmetic{scale=0.5}", "ties{density=1}")),
    *((each, "relu", (), EXACT) for each in ("dare{density=1}", "fisher", "regmean")),
]
"""The methods for one base have the identity alone: equal parents."""
LOST: list[tuple[str, str, tuple[Kind, ...]]] = [
    *((each, "relu", ORDERS) for each in ("average", "task-arithmetic", "ties", "dare", "fisher", "regmean")),
    *((each, "relu", SCALES) for each in ("permute", "permute{on=weights}", "rotate", "align{steps=2}")),
    *((each, "tanh", SIGNS) for each in ("transport{reg=0}", "zipit", "pleas{align=transport}")),
]
FREE = ("auto", "condense", "foldable", "distill")
"""Their group holds every g of a space: none is left to them that they might claim wrongly."""
HOLD: Mapping[tuple[Kind, ...], tuple[str, ...]] = {
    ORDERS: ("permutation", "signed", "orthogonal", "free"),
    SIGNS: ("signed", "orthogonal"),
    SCALES: ("free",),
}
"""The groups of which one, for any space, would say that g was undone."""


def names(methods: list[str]) -> set[str]:
    return {each.partition("{")[0] for each in methods}


def test_every_method_is_here() -> None:
    every = {method.name for method in known().methods}
    assert every == names([method for method, *_ in KEPT]) == names([method for method, *_ in LOST]) | {*FREE}


@pytest.mark.parametrize(("method", "family", "kinds", "most"), KEPT)
def test_what_the_group_holds_is_undone(method: str, family: str, kinds: tuple[Kind, ...], most: float) -> None:
    first, x = net(family)
    second = planted(first, kinds, stretched=kinds != TURNS) if kinds else dataclasses.replace(first, task="b")
    assert bool(kinds) == any(not torch.equal(first.tensors[n], second.tensors[n]) for n in first.parameters)
    found, _ = miss([first, second], x, method)
    assert found < most


@pytest.mark.parametrize(("method", "family", "kinds"), LOST)
def test_what_it_does_not_hold_is_neither_undone_nor_claimed(method: str, family: str, kinds: tuple[Kind, ...]) -> None:
    first, x = net(family)
    found, result = miss([first, planted(first, kinds)], x, method)
    assert found > 1e-2
    assert not {*result["merged"]["groups"].values()} & {*HOLD[kinds]}


# -- a stream that is normed by its size --------------------------------------------------------------


def carried(program: Program, to: Tensor, *, folded: bool) -> Program:
    """The same function with its stream carried by `to`; scales of norms in place, or in what reads the norms."""
    tensors = {name: value.detach().double() for name, value in program.tensors.items()}
    scales = [tensors[f"norms.{i}.weight"] for i in range(2)]
    for name in ("stem.weight", "stem.bias", "down.weight", "down.bias"):
        tensors[name] = to @ tensors[name]
    for i, name in enumerate(("up.weight", "head.weight")):
        tensors[name] = (tensors[name] * scales[i] if folded else tensors[name]) @ to.T
        tensors[f"norms.{i}.weight"] = torch.ones(10).double() if folded else (to * to) @ scales[i]
    same = program.evolve(tensors={name: value.float() for name, value in tensors.items()})
    return dataclasses.replace(same, task="b")


@pytest.mark.parametrize(
    ("method", "turned"),
    [("permute", False), ("permute{on=weights}", False), ("rotate", False), ("rotate", True), ("align", True)],
)
def test_a_stream_normed_by_its_size_takes_signs_in_place_and_turns_where_scales_are_folded(
    method: str, turned: bool
) -> None:
    first, x = net("normed")
    draw = torch.Generator().manual_seed(4)
    to = torch.linalg.qr(torch.randn(10, 10, generator=draw, dtype=torch.float64))[0]
    if not turned:
        to = torch.eye(10).double()[torch.randperm(10, generator=draw)] * torch.tensor([1.0, -1.0] * 5).double()
    second = carried(first, to, folded=turned)
    torch.testing.assert_close(second(*x.values()), first(*x.values()), rtol=1e-5, atol=1e-5)
    found, result = miss([first, second], x, method)
    assert found < EXACT
    assert ("orthogonal" if turned else "signed") in result["merged"]["groups"].values()


# -- planes of rotary positions -----------------------------------------------------------------------


def llama() -> tuple[Program, dict[str, Tensor]]:
    torch.manual_seed(1)
    model = Llama(9, vocabulary=9, width=8, heads=2, groups=1, hidden=8, depth=1)
    for weight in (model.layers[0].query.weight, model.layers[0].key.weight):  # attention that looks at places
        nn.init.normal_(weight)
    x = {"input_ids": torch.randint(0, 9, (32, 7))}
    return fxmerge.capture(model.eval(), (x["input_ids"][:4],), task="a"), x


@pytest.mark.parametrize("method", ["rotate", "transport{reg=0}"])
def test_planes_in_another_order_are_no_symmetry_and_stay(method: str) -> None:
    first, x = llama()
    swapped = torch.tensor([1, 0, 3, 2])  # of a head of two planes, halves apart
    tensors = dict(first.tensors)
    for name in ("layers.0.query.weight", "layers.0.key.weight"):
        tensors[name] = tensors[name].reshape(-1, 4, 8)[:, swapped].reshape(-1, 8)
    second = dataclasses.replace(first.evolve(tensors=tensors), task="b")
    mine, other = first(*x.values()), second(*x.values())
    assert float((mine - other).abs().max() / mine.abs().max()) > 1e-2, "it is no symmetry"
    groups: dict[str, Any] = fxmerge.merge([first, second], data=x, method=method).result["merged"]["groups"]
    spaces = fxmerge.inspect(first)["spaces"]
    done = "rotary" if method == "rotate" else "identity"  # turned where they are
    assert {groups[name] for name, space in spaces.items() if space["role"] == "query_key"} == {done}
