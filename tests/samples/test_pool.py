"""The pool of a merge: made as it is read, the same bits every time, rows padded no further than their block needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.ir.program import Port, Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.samples.pool import Pools, Recipe
from fxmerge.training.pool import Pool

Samples = dict[str, Tensor]


def ports(samples: Samples, free: bool) -> tuple[Port, ...]:
    rest = ("sequence",) if free else ()
    return tuple(
        Port(name, ("batch", *rest, *value.shape[1 + len(rest) :]), value.dtype) for name, value in samples.items()
    )


def program(name: str, inputs: tuple[Port, ...]) -> Program:
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(port.name.replace(".", "_")) for port in inputs]
    graph.output(tuple(nodes))
    return Program(graph=graph, tensors={}, inputs=inputs, outputs=inputs, parameters=frozenset(), task=name)


def supernet(samples: Sequence[Samples], *, apart: bool = False, free: bool = True) -> SuperNet:
    """As much of a SuperNet as a pool looks at: its inputs, and whose they are."""
    parents = tuple(program(f"t{k}", ports(own, free)) for k, own in enumerate(samples))
    names = [tuple(f"{p.task}.{port.name}" if apart else port.name for port in p.inputs) for p in parents]
    named = {
        name: Port(name, tuple(f"{size}_{k}" if isinstance(size, str) else size for size in port.shape), port.dtype)
        for k, parent in enumerate(parents)
        for name, port in zip(names[k], parent.inputs, strict=True)
    }
    joined = tuple(named.values()) if apart else parents[0].inputs
    return SuperNet(program("both", joined), parents, 0, (), {}, {}, tuple(names))


def tokens(rows: int, longest: int, pad: int = 0, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(3, longest + 1, (rows, 1), generator=generator)
    length[0] = longest
    mask = (torch.arange(longest) < length).long()
    ids = torch.randint(5, 99, (rows, longest), generator=generator)
    return {"ids": torch.where(mask == 1, ids, pad), "mask": mask}


def blocks(pool: Pool) -> list[tuple[int, tuple[Tensor, ...]]]:
    return [(t, pool.tables[t].read(number)) for t, number in pool.blocks()]


def pools(samples: Sequence[Samples], kind: str = "auto", batch: int = 8, **how: Any) -> Pools:
    net = supernet(samples, apart=how.pop("apart", False), free=how.pop("free", True))
    return Pools(net, samples, Recipe(kind, how.pop("rows", 100), batch))


@pytest.mark.parametrize("kind", ["tokens", "none"])
def test_rows_of_two_lengths_are_one_table_and_padding_is_marked(kind: str) -> None:
    pool = pools([tokens(20, 12, pad=1), tokens(20, 20, pad=1, seed=1)], kind).pool(kind)
    assert pool.masks == (1,)
    assert [table.rows for table in pool.tables] == [100]
    for _, (ids, mask) in blocks(pool):
        assert int(mask.sum(1).max()) == mask.shape[1], "no block is longer than its longest row"
        assert bool((ids[mask == 0] == 1).all())
        assert bool((ids[mask == 1] >= 5).all())


def test_short_rows_make_short_blocks() -> None:
    samples = tokens(64, 40)
    samples["ids"][1:, 6:], samples["mask"][1:, 6:] = 0, 0
    read = blocks(pools([samples, samples], "none", batch=4).pool("none"))
    assert {ids.shape[1] for _, (ids, _) in read} == {6, 40}


def test_inputs_that_cannot_be_padded_keep_tables_of_their_own() -> None:
    waves = [{"x": torch.randn(10, 2, 30)}, {"x": torch.randn(10, 2, 50)}]
    own = (Port("x", ("batch", 2, "time"), torch.float32),)
    parents = (program("t0", own), program("t1", own))
    net = SuperNet(program("both", own), parents, 0, (), {}, {}, (("x",), ("x",)))
    pool = Pools(net, waves, Recipe("vector", 60, 8)).pool("vector")
    assert [(table.rows, table.read(0)[0].shape[2]) for table in pool.tables] == [(30, 30), (30, 50)]


def test_tasks_with_inputs_of_their_own_stand_row_beside_row() -> None:
    samples = [tokens(12, 9), {"x": torch.randn(30, 7)}]
    made = pools(samples, rows=None, apart=True)
    assert made.kinds == ("tokens+vector", "none")
    pool = made.pool("none")
    assert pool.rows == 30, "the task with fewer samples begins again"
    ids, mask, x = pool.tables[0].read(0)
    assert len(ids) == len(mask) == len(x)
    assert torch.equal(torch.cat([read[2] for _, read in blocks(pool)]).sort(0)[0], samples[1]["x"].sort(0)[0])
    assert pool.masks == (1,)


def test_blocks_have_the_same_bits_whenever_they_are_read() -> None:
    samples = [{"x": torch.randn(20, 1, 9, 9)}, {"x": torch.randn(20, 1, 9, 9)}]
    one, two, other = (
        Pools(supernet(samples, free=False), samples, Recipe("image", 100, 8, seed)).pool("image") for seed in (5, 5, 6)
    )
    first = blocks(one)
    backwards = [one.tables[0].read(number) for number in reversed(range(len(first)))][::-1]
    for (_, a), (_, b), c in zip(first, blocks(two), backwards, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[0], c[0])
    assert not torch.equal(first[0][1][0], blocks(other)[0][1][0])


def test_every_sample_is_in_the_pool_once_and_in_no_order() -> None:
    samples = [{"x": torch.arange(float(10 * k), 10 * k + 10)[:, None].repeat(1, 3)} for k in range(2)]
    x = torch.cat([read[0] for _, read in blocks(pools(samples, "none", rows=None, free=False).pool("none"))])[:, 0]
    assert x.sort()[0].tolist() == list(range(20))
    assert x.tolist() != list(range(20))


def test_a_trial_sees_none_of_what_it_is_judged_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxmerge.samples.pool.TELLING", 10)
    samples = [{"x": torch.arange(float(100 * k), 100 * k + 40)[:, None].repeat(1, 3)} for k in range(2)]
    made = pools(samples, rows=None, free=False)
    assert made.triable
    held = set(torch.cat([read[0] for _, read in blocks(made.held())])[:, 0].tolist())
    trained = set(torch.cat([read[0] for _, read in blocks(made.trial("none", 0.5))])[:, 0].tolist())
    assert len(held) == 20
    assert len(trained) == 30
    assert not held & trained
    assert not pools([{"x": torch.randn(7, 3)}] * 2, free=False).triable


def test_a_task_may_be_judged_by_its_own_samples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxmerge.samples.pool.TELLING", 10)
    samples = [{"x": torch.arange(float(100 * k), 100 * k + 40)[:, None].repeat(1, 3)} for k in range(2)]
    pool = pools(samples, rows=None, free=False).held_of(1)
    assert pool is not None
    assert sorted(torch.cat([read[0] for _, read in blocks(pool)])[:, 0].tolist()) == [100.0 + i for i in range(10)]
    assert pools(samples, apart=True, rows=None, free=False).held_of(1) is None


def test_few_held_back_samples_are_varied() -> None:
    samples = [{"x": torch.arange(float(100 * k), 100 * k + 40)[:, None].repeat(1, 3)} for k in range(2)]
    made = pools(samples, rows=None, free=False)
    assert made.held_back == 10
    held = made.held()
    assert held.rows == 512
    assert held.about["kind"] == "vector"
    firsts = torch.cat([read[0] for _, read in blocks(held)])[:, 0]
    assert float(firsts.min()) > -40 and float(firsts.max()) < 140


class Net(nn.Module):
    def __init__(self, seed: int, size: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 3)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


def test_a_method_without_data_makes_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr("fxmerge.compiler.job.Pools", lambda *args: made.append(args))
    x = torch.randn(8, 3, 16, 16)
    parents = [fxmerge.capture(Net(k, 16), (x,), task=f"t{k}") for k in range(2)]
    fxmerge.merge(parents, data=x, method="average")
    assert not made
