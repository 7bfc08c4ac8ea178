"""Parameters that meet data in less usual ways: what is planted in them is undone all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
import passes
from benchmarks.planted import plant
from passes.spaces.fixed_tables import tables


class HeadsInTheWeight(nn.Module):
    """Projections of three axes, as einsum takes them: the weight writes heads and their inner space at once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(12, 3, n) / 3) for n in (4, 4, 6))
        self.shift, self.out = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 6, 12) / 3)
        self.places = nn.Parameter(torch.randn(7, 3, 4))  # read inside every head by itself
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.norm(x)
        q, k, v = (torch.einsum("btd,dnh->btnh", y, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("btnh,bsnh->bnts", q + self.shift, k) + torch.einsum("btnh,snh->bnts", q, self.places)
        mixed = torch.einsum("bnts,bsnh->btnh", scores.softmax(-1), v)
        return self.head(x + torch.einsum("btnh,nhd->btd", mixed, self.out))


class Numbers(nn.Module):
    """(batch, 5, 6) to class scores, beside a number or two a row: what is squeezed, or shares of the places."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, two = kind, kind in ("split", "picked")
        self.body, self.scores, self.number = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1 + two)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).relu()
        if self.kind == "squeezed":
            return self.scores(h.mean(1)), self.number(h.mean(1)).squeeze(-1)
        if self.kind == "split":
            start, end = self.number(h).split(1, -1)
            return start.squeeze(-1), end.squeeze(-1)
        if self.kind == "picked":
            return self.scores(h.mean(1)), self.number(h)[..., 1]
        return self.scores((h * self.number(h).softmax(1)).sum(1)), h.new_zeros(len(h))


@pytest.mark.parametrize("kind", ["squeezed", "split", "picked", "shares"])
def test_a_number_that_nothing_merged_follows_is_a_head(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 5, 6)
    merged = fxmerge.merge([fxmerge.capture(Numbers(kind), (x,)).evolve(task=task) for task in "ab"], method="average")
    own = sum("number.weight" in name for name in merged.program.tensors)
    assert own == (1 if kind == "shares" else 2)


ANSWERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a class": lambda scores, _: scores.argmax(-1),
    "a sum": lambda scores, _: scores.sum(-1),
    "a norm": lambda scores, _: scores.norm(dim=-1),
    "the largest": lambda scores, _: scores.amax(-1),
    "a likeness": lambda scores, others: (scores * others).sum(-1),
    "pairs": lambda scores, others: scores @ others.T,
}


class Answering(nn.Module):
    """Scores of which an answer is made that has no axis of theirs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body = kind, nn.Linear(6, 8)
        self.middle, self.head, self.other = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self.body(x).relu()).relu()
        return ANSWERS[self.kind](self.head(h), self.other(h))


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_in_no_space_of_the_trunk_is_each_tasks_own(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 6)
    nets = [Answering(kind).eval(), Answering(kind).eval()]
    nets[1].body, nets[1].middle = nets[0].body, nets[0].middle
    programs = [fxmerge.capture(net, (x,), task=task) for net, task in zip(nets, "ab", strict=True)]
    merged = fxmerge.merge(programs, method="average")
    assert {"a.head.weight", "b.head.weight", "middle.weight"} <= merged.state_dict().keys()
    for net, found in zip(nets, merged(x).values(), strict=True):
        torch.testing.assert_close(found, net(x))


class Registers(nn.Module):
    """Learnt tokens beside those of the input: their order is a space that only tensors write."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tokens = nn.Linear(5, 12), nn.Parameter(torch.randn(1, 4, 12))
        self.norm, self.qkv, self.head = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.cat((x[:, :1], self.tokens.expand(len(x), -1, -1), x[:, 1:]), dim=1)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return self.head((x + F.scaled_dot_product_attention(q, k, v))[:, 0])


class Tables(nn.Module):
    """Tables side by side, computed from parameters alone and then read by a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(5, 12), nn.Embedding(9, 4), nn.Embedding(9, 6)
        self.mix, self.norm, self.head = nn.Linear(14, 12), nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(7)
        places = torch.cat((self.a(rows), self.b(rows), self.a(rows + 2)), dim=-1)
        return self.head(self.norm(self.first(x) + self.mix(places)))


class CrossAttention(nn.Module):
    """A fused projection of which queries of the one stream and keys and values of the other take their parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(5, 12), nn.Linear(5, 12)
        self.norm, self.mix, self.head = (
            nn.LayerNorm(12),
            nn.MultiheadAttention(12, 3, batch_first=True),
            nn.Linear(12, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        memory = F.relu(self.other(x))
        x = self.first(x)
        return self.head(x + self.mix(self.norm(x), memory, memory, need_weights=False)[0])


class Sinusoids(nn.Module):
    """Fixed positions, added; and as fixed a table that multiplies, so that one space stays where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down = nn.Linear(5, 12), nn.Linear(12, 9), nn.Linear(9, 12)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)
        angles = torch.arange(20)[:, None] * 0.3 ** torch.arange(6)
        self.register_buffer("places", torch.cat((angles.sin(), angles.cos()), dim=-1)[None])
        self.register_buffer("gates", torch.rand(1, 9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * 3.5 + self.places[:, : x.shape[1]]
        return self.head(x + self.down(F.relu(self.up(self.norm(x))) * self.gates))


NETS: dict[str, tuple[Callable[[], nn.Module], set[int]]] = {
    "heads in the weight": (HeadsInTheWeight, {3, 4, 6, 12}),
    "registers": (Registers, {4, 12}),
    "cross attention": (CrossAttention, {3, 4, 12}),
    "sinusoids": (Sinusoids, {12}),
    "tables": (Tables, {4, 6, 12}),
}
"""Networks, and the sizes of the spaces that they are expected to move."""


@pytest.mark.parametrize("name", NETS)
def test_what_is_planted_is_undone(name: str) -> None:
    torch.manual_seed(3)
    make, sizes = NETS[name]
    program = fxmerge.capture(make().eval(), (torch.randn(3, 7, 5),), task="own")
    spaces = program.get(passes.SpacesOf(tables=True))
    assert {space.size for space in spaces.spaces.values() if space.movable} == sizes
    found = plant(program)
    assert max(found.twin, found.undone, found.weights, found.outputs) < 1e-10, found
    assert found.plain > 1e-3


def test_a_fixed_table_holds_its_space_still_outside_a_merge() -> None:
    program = fxmerge.capture(Sinusoids().eval(), (torch.randn(3, 7, 5),), task="own")
    assert not any(space.movable for space in passes.spaces(program).spaces.values())


class Shifted(nn.Module):
    """A fixed table, of positions or of the batch's own size, added to what parameters compute."""

    def __init__(self, rows: int, *, behind: bool = False) -> None:
        super().__init__()
        self.first, self.head, self.behind = nn.Linear(5, 12), nn.Linear(12, 4), behind
        self.register_buffer("shift", torch.randn(rows, 4 if behind else 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x) + self.shift if self.behind else self.head(F.relu(x + self.shift))


@pytest.mark.parametrize(
    ("behind", "shape", "table"), [(False, (3, 7, 5), "shift"), (False, (3, 5), "shift"), (True, (3, 5), "a.shift")]
)
def test_a_fixed_table_is_a_buffer_of_the_merged_model_too(behind: bool, shape: tuple[int, ...], table: str) -> None:
    torch.manual_seed(3)
    x = torch.randn(shape)
    first, other = (fxmerge.capture(Shifted(shape[-2], behind=behind).eval(), (x,), task=task) for task in "ab")
    merged = fxmerge.merge([first, other], method="average")
    assert table in merged.program.tensors
    assert table not in merged.program.parameters
    itself = fxmerge.merge([first, first.evolve(task="b")], method="average")
    torch.testing.assert_close(itself(x)["a"], first(x), atol=1e-5, rtol=1e-5)


def test_a_table_that_multiplies_by_its_halves_is_no_added_table() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(5, 6), nn.Linear(6, 4)
            self.register_buffer("angles", torch.rand(7, 12))

        def forward(self, x: Tensor) -> Tensor:
            cos, sin = self.angles.chunk(2, dim=-1)
            x = self.first(x)
            return self.head(x * cos + x.flip(-1) * sin)

    program = fxmerge.capture(Turned().eval(), (torch.randn(3, 7, 5),), task="own")
    assert tables(program) == frozenset()
    assert tables(fxmerge.capture(Sinusoids().eval(), (torch.randn(3, 7, 5),), task="own")) == {"places"}


def test_two_written_axes_average_like_one() -> None:
    """The mean of W and 1.2 W is 1.1 W, however many spaces W writes."""
    torch.manual_seed(3)
    x = torch.randn(3, 7, 5)
    first = fxmerge.capture(HeadsInTheWeight().eval(), (x,), task="a")
    longer = first.evolve(tensors={n: 1.2 * t for n, t in first.tensors.items()}, task="b")
    for width in (1.0, 2.0):
        merged = fxmerge.merge([first, longer], method="average", width_scale=width)
        assert merged.result["checks"]["fold_max_abs"] < 1e-4
    net = passes.insert_merge([first, longer], passes.BUILTIN.rules).start([1.0, 1.0])
    folded = passes.cleanup(passes.fold_merge(passes.hoist(net.program), net.tasks, 0))
    for name in ("q", "shift", "places", "out"):
        torch.testing.assert_close(folded.tensors[name], 1.1 * first.tensors[name])


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x)))


def test_parents_with_an_input_that_nothing_reads() -> None:
    inputs = {"x": torch.randn(6, 5), "mask": torch.ones(6, 5)}
    parents = [fxmerge.capture(Unused().eval(), inputs, task=task) for task in "ab"]
    merged = fxmerge.merge(parents, method="average")
    assert merged.result["checks"]["fold_max_abs"] < 1e-5
