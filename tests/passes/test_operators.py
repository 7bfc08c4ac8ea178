"""What an operator is follows from its rule; one that an extension adds with one rule is known everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxmerge
import passes
from fxmerge.coupling import Rule, couples, moves
from fxmerge.errors import LineUpError
from fxmerge.testing import Example, one_call
from passes.line_up.pairs import line_up
from passes.operators import Moved, Operators
from passes.rules import BUILTIN
from passes.supernet.sites import SitesOf

MINE = "fxmerge_test_operators"


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    """Four operators that nobody knows: a move, one on single numbers, a linear map with a weight, a reduction."""
    with torch.library._scoped_library(MINE, "FRAGMENT") as library:

        def define(schema: str, function: Any) -> None:
            name = schema.partition("(")[0]
            library.define(schema)
            library.impl(name, function, "CompositeExplicitAutograd")

        define("turn(Tensor x) -> Tensor", lambda x: x.t().clone())
        define("ramp(Tensor x, float knee) -> Tensor", lambda x, knee: x.clamp_min(0) + knee * x.clamp_max(0))
        define("project(Tensor x, Tensor weight) -> Tensor", lambda x, weight: x @ weight)
        define("total(Tensor x) -> Tensor", lambda x: x.sum(-2))
        define("shaped(Tensor x, SymInt[] sizes) -> Tensor", lambda x, sizes: x.reshape(sizes).clone())
        define("swapped(Tensor a, Tensor b) -> Tensor", lambda a, b: a + b)
        yield


@moves(f"{MINE}.turn.default")
def turn(move: Any) -> Sequence[Any]:
    return move.held("x")[::-1]


@moves(f"{MINE}.shaped.default")
def shaped(move: Any) -> Sequence[Any]:
    return move.reshape(move.held("x"), move.result)


RULES: tuple[Rule, ...] = (
    turn,
    shaped,
    couples(f"{MINE}.ramp.default", "... -> ...", "positive(x)"),
    couples(f"{MINE}.project.default", "... i, i o -> ... o", "x * weight"),
    couples(f"{MINE}.total.default", "... t d -> ... d", "x"),
    couples(f"{MINE}.swapped.default", "..., ... -> ...", "a + b", commutes=True),
)
KNOWN = sum(RULES, BUILTIN)


def call(op: str, *args: Any) -> fx.Node:
    """A call of tensors, in a program of its own."""
    program = one_call(Example(op, args))
    for node in program.graph.nodes:
        if node.op == "get_attr":
            node.meta.setdefault("val", program.tensors[str(node.target)])
    return next(node for node in program.graph.nodes if node.op == "call_function")


X, WEIGHT, ROWS = torch.randn(3, 4), torch.randn(4, 5), torch.tensor([0, 2, 1])


@pytest.mark.parametrize(
    ("op", "args", "turned", "reshaped"),
    [
        ("aten.t.default", (X,), (1, 0), False),
        ("aten.permute.default", (torch.randn(2, 1, 4), [2, 0, 1]), (2, 0, 1), False),
        ("aten.reshape.default", (X, [2, 6]), None, True),
        ("aten.unsqueeze.default", (X, 1), None, True),
        ("aten.slice.Tensor", (X, 0, 1, 3), None, False),
        ("aten.flip.default", (X, [0]), None, False),
        ("aten.expand.default", (torch.randn(1, 4), [3, 4]), None, False),
        (f"{MINE}.turn.default", (X,), (1, 0), False),
    ],
)
def test_how_a_call_moves_numbers(op: str, args: Any, turned: Any, reshaped: bool) -> None:
    node = call(op, *args)
    assert Operators(KNOWN).moved(node) == Moved(node.all_input_nodes[0], (), turned, reshaped)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten.glu.default", (X,)),
        ("aten.constant_pad_nd.default", (X, [1, 1])),
        ("aten.relu.default", (X,)),
        ("aten.sum.dim_IntList", (X, [0])),
        ("aten.dropout.default", (X, 0.5, True)),
        ("aten.mm.default", (X, WEIGHT)),
        (f"{MINE}.project.default", (X, WEIGHT)),
    ],
)
def test_what_is_no_move(op: str, args: Any) -> None:
    assert Operators(KNOWN).moved(call(op, *args)) is None


def test_rows_are_picked_by_whole_numbers() -> None:
    for name, args in (("aten.embedding.default", (X, ROWS)), ("aten.index_select.default", (X, 0, ROWS))):
        node = call(name, *args)
        moved = Operators().moved(node)
        assert moved is not None and [moved.source, *moved.by] == node.all_input_nodes
        assert Operators().looks_up(node)
    assert not Operators().looks_up(call("aten.embedding_bag.default", X, ROWS, torch.tensor([0])))


@pytest.mark.parametrize(
    ("op", "args", "is_"),
    [
        ("aten.gelu.default", (X,), True),
        ("aten.where.ScalarOther", (X > 0, X, 1.0), True),
        ("aten.clone.default", (X,), True),
        ("aten.softmax.int", (X, -1), False),
        ("aten.cumsum.default", (X, 0), False),
        ("aten.layer_norm.default", (X, [4]), False),
        (f"{MINE}.ramp.default", (X, 0.1), True),
        (f"{MINE}.total.default", (X,), False),
        (f"{MINE}.turn.default", (X,), False),
    ],
)
def test_what_works_entry_by_entry(op: str, args: Any, is_: bool) -> None:
    assert Operators(KNOWN).pointwise(call(op, *args)) is is_


@pytest.mark.parametrize(
    ("op", "args", "joined"),
    [
        ("aten.add.Tensor", (X, X.clone()), (0, 1)),
        ("aten.cat.default", ([X, X.clone()],), (0, 1)),
        ("aten.where.self", (X > 0, X, X.clone()), (1, 2)),
        ("aten.mul.Tensor", (X, X.clone()), ()),
        ("aten.linear.default", (X, torch.randn(5, 4), torch.randn(5)), (2,)),
        ("aten.select_scatter.default", (X, torch.randn(4), 0, 1), (0, 1)),
        (f"{MINE}.swapped.default", (X, X.clone()), (0, 1)),
    ],
)
def test_what_joins_others_in_one_space(op: str, args: Any, joined: tuple[int, ...]) -> None:
    node = call(op, *args)
    assert Operators(KNOWN).joined(node) == {node.all_input_nodes[i] for i in joined}


def test_what_commutes_is_said_by_the_rule() -> None:
    known = Operators(KNOWN)
    assert known.commutes(call(f"{MINE}.swapped.default", X, X.clone())) and known.sums(
        call(f"{MINE}.swapped.default", X, X.clone())
    )
    assert known.commutes(call("aten.maximum.default", X, X.clone()))
    assert not known.commutes(call("aten.sub.Tensor", X, X.clone()))


class Mine(nn.Module):
    """A net whose inner operators are an extension's, or torch's own that do the same."""

    def __init__(self, seed: int, width: int, own: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.own = own
        self.first = nn.Parameter(torch.randn(6, width) / 3)
        self.inner = nn.Parameter(torch.randn(width, width) / 3)
        self.places, self.head = nn.Parameter(torch.randn(4, width)), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        mine = torch.ops.fxmerge_test_operators
        if not self.own:
            hidden = torch.nn.functional.leaky_relu(x @ self.first + self.places, 0.1)
            return self.head(torch.nn.functional.linear(hidden, self.inner.t()).sum(-2))
        hidden = mine.ramp(mine.swapped(mine.project(x, self.first), self.places), 0.1)
        hidden = mine.shaped(hidden, [len(x), 2, 2, hidden.shape[-1]]).flatten(1, 2)
        return self.head(mine.total(torch.nn.functional.linear(hidden, mine.turn(self.inner))))


def net(own: bool, scale: float | None = None) -> Any:
    """The SuperNet of two parents of different widths."""
    x = torch.randn(5, 4, 6)
    parents = [fxmerge.capture(Mine(k, 8 + 2 * k, own).eval(), (x,), task=f"t{k}") for k in (0, 1)]
    normal = [passes.cleanup(passes.normalize(parent)) for parent in parents]
    return passes.insert_merge(normal, KNOWN, 0, scale)


def blocks(supernet: Any) -> list[tuple[str, int]]:
    return sorted((block.kind, block.size) for _, block in supernet.maps())


@pytest.mark.parametrize("scale", [None, 1.5], ids=["as it is", "wider"])
def test_one_rule_makes_an_operator_a_full_citizen_of_the_merge(scale: float | None) -> None:
    mine, theirs = net(True, scale), net(False, scale)
    assert blocks(mine) == blocks(theirs) and len(blocks(mine)) >= 4
    assert not {"first", "inner", "places"} & set(mine.own), "a weight was averaged, not folded"


def test_a_move_of_an_extension_is_a_move() -> None:
    program = fxmerge.capture(Mine(0, 8, True).eval(), (torch.randn(5, 4, 6),), task="t")
    sites = passes.normalize(program).get(SitesOf(KNOWN))
    found = {operand.root: site.kind for site in sites.sites.values() for operand in site.operands}
    assert found == {"first": "linear", "inner": "linear", "places": "additive", "head.weight": "linear",
                     "head.bias": "linear"}  # fmt: skip


class Swapped(nn.Module):
    def __init__(self, other: bool) -> None:
        super().__init__()
        self.other, self.first, self.second, self.head = other, nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).relu(), self.second(x).tanh()
        add = torch.ops.fxmerge_test_operators.swapped
        return self.head(add(b, a) if self.other else add(a, b))


def test_parents_that_only_an_extension_lets_line_up() -> None:
    """`b + a` beside `a + b`: only the rule says that they commute, and line-up asks it."""
    x = torch.randn(5, 4, 6)
    parents = [passes.normalize(fxmerge.capture(Swapped(k == 1), (x,), task=f"t{k}")) for k in (0, 1)]
    with pytest.raises(LineUpError, match="do not line up"):
        line_up(*parents)
    assert line_up(*parents, Operators(KNOWN))
