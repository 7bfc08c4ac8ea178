"""Language models write samples: one token at a time where that gives the same, and only if they do not look ahead."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from benchmarks.family_nets import Llama
from benchmarks.models import GPT
from fxmerge.ir.program import Port, Program
from fxmerge.methods.trial import lasting
from fxmerge.samples.continued import Continued, Text
from fxmerge.samples.incremental import Incremental
from fxmerge.samples.pool import PART, READ
from fxmerge.samples.started import started
from fxmerge.samples.written import Writer
from fxmerge.training.pool import Pool, parts


def gpt() -> nn.Module:
    return GPT(20, width=12, heads=2, hidden=16, depth=2, positions=24)


def llama() -> nn.Module:
    return Llama(20, vocabulary=20, width=16, heads=4, groups=2, hidden=16, depth=2)


class Masked(nn.Module):
    """Attention under a mask of its own, and of the padding."""

    def __init__(self, ahead: bool = False) -> None:
        super().__init__()
        self.table, self.places, self.head = nn.Embedding(20, 8), nn.Embedding(24, 8), nn.Linear(8, 20)
        self.ahead = ahead

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        length = ids.shape[1]
        x = self.table(ids) + self.places(torch.arange(length))
        seen = torch.ones(length, length, dtype=torch.bool)
        seen = (seen if self.ahead else seen.tril()) & (mask[:, None, :] != 0)
        x = x + nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], seen[:, None])[:, 0]
        return self.head(x)


class Shifts(nn.Module):
    """Mixes neighbours without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x + nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])


def captured(net: nn.Module, *more: Tensor) -> Program:
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return fxmerge.capture(net.eval(), (torch.randint(0, 20, (4, 9)), *more), task="a")


@pytest.mark.parametrize("net", [gpt, llama])
def test_a_token_at_a_time_gives_what_the_whole_row_gives(net: Any) -> None:
    program = captured(net())
    each = Incremental(program, program.inputs[0].name, program.outputs[0].name)
    assert each.agrees(torch.randint(0, 20, (1, 17)))
    rows = torch.randint(0, 20, (5, 12))
    whole = program.run({program.inputs[0].name: rows})[program.outputs[0].name]
    parts = torch.stack([each.step(rows, place) for place in range(12)], 1)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_masks_are_read_at_their_last_row() -> None:
    program = captured(Masked(), torch.ones(4, 9, dtype=torch.long))
    assert Incremental(program, "ids", program.outputs[0].name).agrees(torch.randint(0, 20, (1, 11)))


def test_what_it_cannot_do_it_says() -> None:
    program = captured(Shifts())
    assert not Incremental(program, "ids", program.outputs[0].name).agrees(torch.randint(0, 20, (1, 11)))


def writer(net: nn.Module, data: dict[str, Tensor], *more: Tensor) -> Writer | None:
    programs = [captured(net, *more), fxmerge.capture(net.eval(), (torch.randint(0, 20, (4, 9)), *more), task="b")]
    kept: list[Any] = []

    def keep(self: Any, job: Any) -> Any:
        kept.append(job.supernet)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxmerge.methods.average.Average.__call__", keep)
        with pytest.raises(KeyboardInterrupt):
            fxmerge.merge(programs, method="average", data={"a": data, "b": data})
    return Writer.of(kept[0], 0, data)


@pytest.mark.parametrize("net", [gpt, Shifts])
def test_rows_begin_as_given_ones_do_and_go_on_as_the_model_says(net: Any) -> None:
    name = "input_ids" if net is gpt else "ids"
    data = {name: torch.randint(0, 5, (3, 12))}
    found = writer(net(), data)
    assert found is not None
    first, again = (found.write(data, 40, seed=3)[name] for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (40, 12)
    assert bool((first[:, 0] < 5).all()), "prompts are of the given rows"
    assert int(first.max()) >= 5, "and what follows is the model's"


def test_who_looks_ahead_does_not_write() -> None:
    mask = torch.ones(4, 9, dtype=torch.long)
    data = {"ids": torch.randint(0, 20, (6, 9)), "mask": torch.ones(6, 9, dtype=torch.long)}
    assert writer(Masked(ahead=True), data, mask) is None
    assert writer(Masked(), data, mask) is not None


def test_language_models_need_no_samples() -> None:
    bare = [captured(gpt()).evolve(samples={}, task=task) for task in "ab"]
    merged = fxmerge.merge(bare, steps=3)
    assert "no samples for a: it wrote 128 rows itself" in merged.result["notes"]
    assert merged.result["tasks"][0]["samples"] == 128
    ahead = captured(Masked(ahead=True), torch.ones(4, 9, dtype=torch.long)).evolve(samples={})
    assert not started(ahead)


def test_one_row_is_enough_for_language_models() -> None:
    few = [captured(gpt()).evolve(samples={"input_ids": torch.randint(0, 20, (1, 12))}, task=task) for task in "ab"]
    merged = fxmerge.merge(few, steps=3)
    assert merged.result["training"]["steps"] == 3


class Copier:
    """Writes its own number, the part's seed, and how often it was asked."""

    def __init__(self, token: int) -> None:
        self.token, self.seeds = token, list[int]()

    def incremental(self, samples: dict[str, Tensor]) -> None:
        return None

    def write(self, samples: dict[str, Tensor], rows: int, seed: int, *, each: None) -> dict[str, Tensor]:
        self.seeds.append(seed)
        return {"ids": torch.full((rows, 6), self.token)}


def texts(size: int = 40) -> tuple[Text, ...]:
    given = {"ids": torch.zeros(4, 6, dtype=torch.long)}
    return tuple(Text(Copier(token), given, lambda own: own, size, token, lambda done, rows: None) for token in (7, 8))  # type: ignore[arg-type]


def continued(given: tuple[Text, ...], stretches: int) -> Continued:
    samples = {"ids": torch.arange(10)[:, None].expand(10, 6).contiguous()}
    graph = torch.fx.Graph()
    graph.output((graph.placeholder("ids"),))
    port = (Port("ids", ("batch", 6), torch.long),)
    program = Program(graph=graph, tensors={}, inputs=port, outputs=port, parameters=frozenset(), task="both")
    return Continued(samples, given, stretches, program, block=15, seed=0)


def test_only_as_much_is_written_as_is_read() -> None:
    given = texts()
    table = continued(given, 5)
    assert table.rows == 10 + 2 * 5 * 40
    pool = Pool((table,))
    for part in parts(pool, 0, 30, seed=1):
        table.read(part.number)
    assert [len(text.parts) for text in given] == [1, 1], "the first time through begins with the first stretch"
    whole = [table.read(number)[0] for number in range(-(-table.rows // 15))]
    assert [len(text.parts) for text in given] == [5, 5]
    assert [len(set(text.writer.seeds)) for text in given] == [5, 5]  # type: ignore[attr-defined]
    assert torch.equal(table.read(0)[0], whole[0])
    counts = torch.cat(whole)[:, 0].bincount().tolist()
    assert sorted(counts) == sorted([*[1] * 7, 1 + 200, 1 + 200, 1]), "every sample once, and every row of both texts"


def test_a_longer_run_reads_more_of_the_same_text() -> None:
    given = texts()
    short, long = (continued(given, stretches) for stretches in (1, 3))
    short.read(0), long.read(0)
    assert [len(text.writer.seeds) for text in given] == [1, 1]  # type: ignore[attr-defined]
    assert long.rows == 10 + 3 * 80


def test_the_pool_has_rows_for_its_steps() -> None:
    data = {"input_ids": torch.randint(0, 20, (9, 12))}
    kept: list[Any] = []

    def keep(self: Any, job: Any) -> Any:
        kept.append(job)
        raise KeyboardInterrupt

    programs = [captured(gpt()).evolve(samples=data, task=task) for task in "ab"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxmerge.methods.distill.Distill.__call__", keep)
        with pytest.raises(KeyboardInterrupt):
            fxmerge.merge(programs, method="distill", steps=1500, batch_size=32)
    job = kept[0]
    assert job.pool.rows == 18 + 2 * PART * math.ceil(1500 * 32 / READ / 2 / PART)
    short, trial = lasting(job, 30), job.pools.trial("written", 0.1)
    assert (short.settings.steps, short.pool.rows) == (30, 18 + 2 * PART)
    assert trial.rows == 2 * (9 - 2) + 2 * PART, "a trial of 150 steps: held-back samples are not in it"
    assert not any(text.parts for text in job.pools.written), "and nothing is written before it is read"
