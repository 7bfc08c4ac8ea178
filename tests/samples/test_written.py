"""Language models write samples: one token at a time where that gives the same, and only if they do not look ahead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from benchmarks.family_nets import Llama
from benchmarks.models import GPT
from fxmerge.ir.program import Program
from fxmerge.samples.incremental import Incremental
from fxmerge.samples.started import started
from fxmerge.samples.written import Writer


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
