"""Categories stay in their columns; token ids, which may stand anywhere, do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.errors import OptionError
from fxmerge.samples.places import columns
from passes.rules import BUILTIN
from passes.supernet.insert_merge import insert_merge

SIZES = (4, 7, 3)


class Table(nn.Module):
    """Numbers beside categories, which have tables of their own, or rows of one table."""

    def __init__(self, width: int, *, one: bool = False, numbers: bool = True) -> None:
        super().__init__()
        sizes = (sum(SIZES),) if one else SIZES
        self.tables = nn.ModuleList(nn.Embedding(size, 4) for size in sizes)
        self.register_buffer("starts", torch.tensor([0, 4, 11]))
        self.first, self.head = nn.Linear(12 + 2 * numbers, width), nn.Linear(width, 3)

    def forward(self, categories: Tensor, numbers: Tensor | None = None) -> Tensor:
        if len(self.tables) == 1:
            x = self.tables[0](categories + self.starts).flatten(1)
        else:
            x = torch.cat([table(categories[:, i]) for i, table in enumerate(self.tables)], 1)
        x = x if numbers is None else torch.cat((x, numbers), 1)
        found: Tensor = self.head(self.first(x).relu())
        return found


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.head = nn.Embedding(9, 4), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.first(self.table(ids).flatten(1)).relu())
        return found


def captured(net: nn.Module, *x: Tensor, task: str) -> fxmerge.Program:
    return fxmerge.capture(net.eval(), x, task=task)


def categories(rows: int) -> Tensor:
    return torch.stack([torch.arange(rows) % size for size in SIZES], 1)


@pytest.mark.parametrize("one", [False, True])
def test_a_table_of_categories_and_numbers_merges(one: bool) -> None:
    torch.manual_seed(0)
    x = categories(24), torch.randn(24, 2)
    parents = [captured(Table(8 + 2 * k, one=one), *x, task="ab"[k]) for k in range(2)]
    merged = fxmerge.merge(parents, method="condense{balance=[1 1]}")
    assert all(task["feature_r2"] > 0.3 for task in merged.result["tasks"])
    with pytest.raises(OptionError, match="no input is of kind 'tokens'"):
        fxmerge.merge(parents, method="distill", steps=1, augment="tokens")


def test_columns_are_told_from_tokens() -> None:
    torch.manual_seed(0)
    ids = torch.randint(9, (12, 3))
    tables = [captured(Table(8, numbers=False), categories(12), task=task) for task in "ab"]
    words = [captured(Words(), ids, task=task) for task in "ab"]
    assert columns(insert_merge(tables, BUILTIN), [p.samples for p in tables]) == {"categories"}
    assert columns(insert_merge(words, BUILTIN), [p.samples for p in words]) == frozenset()
    with pytest.raises(OptionError, match="all are integers that belong to their columns"):
        fxmerge.merge(tables, method="distill", steps=1, augment="tokens")
