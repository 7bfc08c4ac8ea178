"""An operator that an extension adds with one rule takes part in every stage, not in the merge alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
import passes
from fxmerge.coupling import Call, Rule, couples, moves
from fxmerge.ir.program import Program
from fxmerge.methods.student import groups
from fxmerge.rewrite import apply, operator
from passes.rewrites import REWRITES
from passes.rewrites.other_code_bases import index_as_embedding
from passes.rules import BUILTIN

MINE = "fxmerge_test_every_stage"
SEEDED = (torch.Tag.nondeterministic_seeded,)


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    """Operators that nobody knows."""
    with torch.library._scoped_library(MINE, "FRAGMENT") as library:

        def define(schema: str, function: Any, tags: tuple[torch.Tag, ...] = ()) -> None:
            library.define(schema, tags=tags)
            library.impl(schema.partition("(")[0], function, "CompositeExplicitAutograd")

        define("turn(Tensor x) -> Tensor", lambda x: x.t().clone())
        define("kept(Tensor x) -> Tensor", lambda x: x.clone())
        define("noise(Tensor x) -> Tensor", torch.rand_like, SEEDED)
        define("before(Tensor a, Tensor b) -> Tensor", lambda a, b: a <= b)
        define("near(Tensor a, Tensor b) -> Tensor", lambda a, b: (a - b).abs() <= 1e-5 * b)
        define("corner(Tensor x, SymInt size) -> Tensor", lambda x, size: x[:size, :size].clone())
        define("unit(Tensor x, Tensor scale) -> Tensor", lambda x, scale: torch.rms_norm(x, scale.shape, scale))
        define("even(Tensor x) -> Tensor", lambda x: torch.layer_norm(x, x.shape[-1:]))
        define("plus(Tensor a, Tensor b) -> Tensor", lambda a, b: a + b)
        define("total(Tensor x) -> Tensor", lambda x: x.sum(-2))
        define("pick(Tensor table, Tensor rows) -> Tensor", lambda table, rows: table[rows])
        define("bend(Tensor x) -> Tensor", lambda x: x.clamp_min(0))
        define("damp(Tensor x, float gain) -> Tensor", lambda x, gain: x / gain)
        define(
            "parted(Tensor x, SymInt[] split_sizes, int dim) -> Tensor[]",
            lambda x, split_sizes, dim: [part.clone() for part in x.split(split_sizes, dim)],
        )
        define(
            "seen(Tensor x, SymInt lead, SymInt rest) -> Tensor", lambda x, lead, rest: x.reshape(lead, rest).clone()
        )
        yield


@moves(f"{MINE}.turn.default")
def turn(move: Any) -> Sequence[Any]:
    return move.held("x")[::-1]


@moves(f"{MINE}.kept.default")
def kept(move: Any) -> Sequence[Any]:
    return move.held("x")


@moves(f"{MINE}.corner.default")
def corner(move: Any) -> Sequence[Any]:
    return move.narrow(move.narrow(move.held("x"), 0, 0, move["size"]), 1, 0, move["size"])


@moves(f"{MINE}.parted.default")
def parted(move: Any) -> Sequence[Any]:
    axes, starts = move.held("x"), [0, *accumulate(move["split_sizes"])]
    return [move.narrow(axes, move["dim"], a, b) for a, b in pairwise(starts)]


@moves(f"{MINE}.seen.default", sizes=("lead", "rest"))
def seen(move: Any) -> Sequence[Any]:
    return move.reshape(move.held("x"), move.result)


def bend_onnx(x: Any) -> Any:
    from onnxscript import opset20

    return opset20.Relu(x)


bend = couples(f"{MINE}.bend.default", "... -> ...", "positive(x)", onnx=bend_onnx)
RULES: tuple[Rule, ...] = (
    turn,
    kept,
    corner,
    parted,
    seen,
    couples(f"{MINE}.before.default", "..., ... -> ...", "rigid(a + b)"),
    couples(f"{MINE}.unit.default", "... d, d -> ... d", "isotropic(x, d) * scale"),
    couples(f"{MINE}.even.default", "... d -> ... d", "isotropic(centred(x, d), d)"),
    couples(f"{MINE}.plus.default", "..., ... -> ...", "a + b"),
    couples(f"{MINE}.total.default", "... t d -> ... d", "x"),
    couples(f"{MINE}.pick.default", "_ d, ... -> ... d", "table", exact=True),
    couples(f"{MINE}.damp.default", "... -> ...", "x / gain"),
    couples(f"{MINE}.near.default", "..., ... -> ...", "rigid(a + b)"),
)
KNOWN = sum(RULES, BUILTIN)
MY: Any = torch.ops.fxmerge_test_every_stage


class Net(nn.Module):
    """A function of inputs and of one weight, as a net."""

    def __init__(self, function: Callable[..., Any], *sizes: int) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(sizes or (4, 4)))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.weight, *inputs)


def program(function: Callable[..., Any], *inputs: Tensor) -> Program:
    return fxmerge.capture(Net(function).eval(), inputs, task="t")


def called(of: Program) -> list[str]:
    return [str(node.target) for node in of.graph.nodes if node.op == "call_function"]


X = torch.randn(3, 4)


# -- spelling ------------------------------------------------------------------------------------------------


def test_a_call_that_does_nothing_goes() -> None:
    before = program(lambda w, x: MY.kept(x @ w).relu(), X)
    assert f"{MINE}.kept.default" in called(passes.normalize(before))
    after = passes.normalize(before, rules=KNOWN)
    assert f"{MINE}.kept.default" not in called(after)
    assert torch.equal(after(X), before(X))


def test_a_rewrite_sees_a_weight_behind_its_moves() -> None:
    before = program(lambda w, x: x @ MY.turn(w), X)
    assert "aten.linear.default" not in called(passes.normalize(before))
    after = passes.normalize(before, REWRITES, rules=KNOWN)
    assert "aten.linear.default" in called(after)
    torch.testing.assert_close(after(X), before(X))


def test_rows_are_looked_up_whatever_moves_their_numbers() -> None:
    before = program(lambda w, ids: w[MY.turn(MY.kept(ids))], torch.randint(0, 4, (5, 3)))
    assert apply(before, [index_as_embedding]) is before
    after = apply(before, [index_as_embedding], rules=KNOWN)
    assert "aten.embedding.default" in called(after)


@pytest.mark.parametrize(
    ("name", "more", "calls"),
    [
        (f"{MINE}.noise.default", (), 2),
        ("aten.poisson.default", (), 2),
        ("aten.dropout.default", (0.5, True), 2),
        ("aten.dropout.default", (0.5, False), 1),
        ("aten.rrelu.default", (0.1, 0.2, True), 2),
        ("aten.rrelu.default", (0.1, 0.2, False), 1),
        ("aten.relu.default", (), 1),
    ],
)
def test_what_draws_numbers_is_not_said_once(name: str, more: tuple[Any, ...], calls: int) -> None:
    of = program(lambda w, x: MY.kept(x) - MY.kept(x), X)
    graph, _ = of.copy_graph()
    for node in graph.nodes:
        if str(node.target) == f"{MINE}.kept.default":
            node.target, node.args = operator(name), (*node.args, *more)
    assert called(passes.cleanup(of.evolve(graph=graph))).count(name) == calls


@pytest.mark.parametrize(
    ("mask", "causal"),
    [
        (lambda w, t: MY.before(torch.arange(t)[None, :], torch.arange(t)[:, None]), True),
        (lambda w, t: MY.corner(torch.ones(8, 8, dtype=torch.bool).tril(), t), True),
        (lambda w, t: MY.before(torch.arange(t)[:, None], torch.arange(t)[None, :]), False),
        (lambda w, t: MY.near(torch.arange(t)[None, :], torch.arange(t)[:, None]), False),
    ],
    ids=["compared", "cut", "the future alone", "as far as numbers are small"],
)
def test_a_mask_is_known_whatever_computes_it(mask: Callable[..., Tensor], causal: bool) -> None:
    attention = torch.nn.functional.scaled_dot_product_attention
    before = program(lambda w, x: attention(x @ w, x, x, mask(w, x.shape[-2])), torch.randn(2, 3, 5, 4))
    after = passes.normalize(before, rules=KNOWN)
    (call,) = (n for n in after.graph.nodes if str(n.target) == "aten.scaled_dot_product_attention.default")
    assert (Call.of(call)["is_causal"], Call.of(call)["attn_mask"] is None) == (causal, causal)


# -- streams -------------------------------------------------------------------------------------------------


class Stream(nn.Module):
    """A residual stream whose norms, sums and means are an extension's."""

    def __init__(self, width: int, norm: str, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.start, self.scale = nn.Linear(6, width), nn.Parameter(torch.ones(width))
        self.up, self.down, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Linear(width, 3)
        self.norm: Callable[[Tensor], Tensor] = (lambda x: MY.unit(x, self.scale)) if norm == "unit" else MY.even
        self.post, self.end = norm == "post", end

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        if self.post:
            x = MY.even(x)
        x = MY.plus(x, self.down(self.up(x if self.post else self.norm(x)).relu()))
        return self.head(self.end(self.norm(x)))


@pytest.mark.parametrize(
    ("norm", "end", "found"),
    [
        ("unit", lambda x: MY.total(x), (False, 2, 0)),
        ("even", lambda x: MY.total(x), (True, 2, 0)),
        ("post", lambda x: MY.total(x), (True, 2, 1)),
        ("unit", lambda x: MY.plus(x, x.sigmoid()).sum(-2), None),
        ("unit", lambda x: x.sum(-1, keepdim=True) + x[..., :1] * x, None),
    ],
    ids=["no mean taken", "the mean taken", "norms that go on", "a sigmoid on it", "summed along it"],
)
def test_a_stream_may_be_turned_whatever_norms_it(norm: str, end: Any, found: tuple[bool, int, int] | None) -> None:
    parents = []
    for k in (0, 1):
        torch.manual_seed(k)
        parents.append(fxmerge.capture(Stream(8, norm, end).eval(), (torch.randn(5, 4, 6),), task=f"t{k}"))
    net = passes.insert_merge([passes.normalize(each, rules=KNOWN) for each in parents], KNOWN)
    streams = [(each.centred, len(each.norms), len(each.post)) for each in net.streams.values()]
    assert streams == ([] if found is None else [found])


# -- training ------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Parameter(torch.randn(9, 8)), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(MY.pick(self.table, ids)).relu().sum(-2))


def test_a_table_is_trained_as_one_whatever_looks_it_up() -> None:
    parents = [fxmerge.capture(Tokens().eval(), (torch.randint(0, 9, (5, 4)),), task=f"t{k}") for k in (0, 1)]
    net = passes.insert_merge(parents, KNOWN)
    student = passes.fold_merge(passes.hoist(net.program), net.tasks, 0)
    names = {id(p.requires_grad_()): name for name, p in student.module.named_parameters()}
    matrices, tables, _ = ({names[id(p)] for p in group.parameters} for group in groups(student, net))
    assert (len(matrices), len(tables), len(student.parameters)) == (3, 1, 7)
    assert "table" in tables.pop()


# -- constants -----------------------------------------------------------------------------------------------


class Damped(nn.Module):
    """A linear map, a sum and a constant of an extension, another linear map and a head."""

    def __init__(self, inner: Callable[[Tensor, float], Tensor], gain: float) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(6, 8), nn.Linear(6, 8)
        self.second, self.head, self.inner, self.gain = nn.Linear(8, 8), nn.Linear(8, 3), inner, gain

    def forward(self, x: Tensor) -> Tensor:
        y = MY.plus(self.first(x), self.other(x).relu())
        return self.head(self.second(self.inner(y, self.gain)).sigmoid())


@pytest.mark.parametrize(
    "inner",
    [lambda y, c: MY.damp(y, c).tanh(), lambda y, c: MY.damp(y.tanh(), c), lambda y, c: (y * c).tanh()],
    ids=["behind a sum", "in front of a linear map", "through a sum of the extension"],
)
def test_a_factor_of_an_extension_goes_into_the_weights(inner: Callable[[Tensor, float], Tensor]) -> None:
    x, parents = torch.randn(5, 6, dtype=torch.float64), []
    for k, gain in enumerate((2.0, 30.0)):
        torch.manual_seed(k)
        parents.append(fxmerge.capture(Damped(inner, gain).eval().double(), (x,), task=f"t{k}"))
    net = passes.insert_merge([passes.normalize(each, rules=KNOWN) for each in parents], KNOWN).start([0.0, 1.0])
    merged = passes.fold_merge(passes.hoist(net.program.only(net.output_names)), net.tasks, 0)
    second = merged.run({port.name: x for port in merged.inputs})[net.output_names[1]]
    torch.testing.assert_close(second, parents[1](x), rtol=1e-10, atol=1e-10)
    assert any("the weights of t1 the rest" in note for note in net.program.notes)


# -- sizes ---------------------------------------------------------------------------------------------------


class Parted(nn.Module):
    """Halves of a hidden layer, taken apart and viewed by an extension that is told their sizes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.first, self.second, self.head = nn.Linear(6, 2 * width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = MY.parted(self.first(x), [self.width, self.width], 1)
        hidden = MY.seen(a.relu() * b.sigmoid(), 5, self.width)
        return self.head(self.second(hidden).relu())


@pytest.mark.parametrize("scale", [None, 1.5], ids=["as it is", "wider"])
def test_parents_differ_in_sizes_that_an_extension_spells_out(scale: float | None) -> None:
    parents = [fxmerge.capture(Parted(w).eval(), (torch.randn(5, 6),), task=f"t{w}") for w in (8, 12)]
    net = passes.insert_merge(parents, KNOWN, 0, scale)
    merged = passes.fold_merge(passes.hoist(net.program.only(net.output_names)), net.tasks, 0)
    assert merged.tensors["second.weight"].shape == ((8, 8) if scale is None else (12, 12))
    assert all(value.isfinite().all() for value in merged.run({"x": torch.randn(5, 6)}).values())


# -- all of it, from the command line's side ------------------------------------------------------------------


class Bent(nn.Module):
    """A causal attention whose activation and whose mask are computed by an operator of an extension."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.turned = seed == 1
        self.embed, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden, place = self.embed(x), torch.arange(x.shape[1])
        hidden = MY.bend(hidden.transpose(1, 2)).transpose(1, 2) if self.turned else MY.bend(hidden)
        seen = MY.bend((place[:, None] - place[None, :] + 1).float()) > 0
        read = torch.nn.functional.scaled_dot_product_attention(
            self.query(hidden)[:, None], self.key(hidden)[:, None], self.value(hidden)[:, None], attn_mask=seen
        )
        return self.head(hidden + read[:, 0]).mean(1)


@pytest.mark.parametrize("scale", [None, 2.0], ids=["as it is", "wider"])
def test_one_rule_is_all_that_any_stage_asks_for(scale: float | None, tmp_path: Path) -> None:
    """Analysis, check, line-up of two spellings, masks, sizes, merge, fold and ONNX."""
    own, out = tmp_path / "own.py", tmp_path / "merged.onnx"
    own.write_text(
        "from fxmerge import Extension\nfrom tests.passes.test_every_stage import bend\n"
        "extension = Extension(rules=bend)\n"
    )
    extensions = [f"{own}:extension"]
    parents = [fxmerge.capture(Bent(k, 8 + 4 * k).eval(), (torch.randn(9, 5, 6),), task=f"t{k}") for k in (0, 1)]
    found = fxmerge.inspect(parents[0], extensions=extensions)
    assert found["coverage"] == found["free_axes"] == 1.0 and not found["opaque"]
    assert fxmerge.check(parents[0], extensions=extensions).ok
    merged = fxmerge.merge(parents, method="average", extension=extensions, width_scale=scale, out=out)
    assert merged.result["merged"]["averaged"] == merged.result["merged"]["opaque_axes"] == 0
    names = [str(node.target) for node in merged.program.graph.nodes]
    assert names.count(f"{MINE}.bend.default") == 1, "the mask is computed no more"
    assert merged.program.tensors["embed.weight"].shape[0] == (8 if scale is None else 16)
    assert merged.result["checks"]["onnx_max_abs"] < 1e-5 and out.is_file()
