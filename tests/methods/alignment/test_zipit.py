"""ZipIt's groups against all groupings of a few units, and units that never vary."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fxmerge.methods.zipit import still_alike, zipped


def groupings(units: list[int], count: int) -> Iterator[list[list[int]]]:
    """All ways to put units into so many groups."""
    if not units:
        if count == 0:
            yield []
        return
    first, rest = units[0], units[1:]
    for found in groupings(rest, count - 1):
        yield [[first], *found]
    for found in groupings(rest, count):
        for i in range(len(found)):
            yield [*found[:i], [first, *found[i]], *found[i + 1 :]]


def worst(common: Tensor, groups: list[list[int]]) -> float:
    """The sum over groups of the least correlation inside."""
    return sum(float(common[g][:, g].min()) for g in groups)


def correlations(parents: int, units: int, seed: int, noise: float) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(60, units, generator=draw, dtype=torch.float64)
    orders = [torch.randperm(units, generator=draw) for _ in range(parents)]
    sides = [base[:, o] + noise * torch.randn(base.shape, generator=draw, dtype=torch.float64) for o in orders]
    return torch.corrcoef(torch.cat(sides, 1).T), torch.arange(parents).repeat_interleave(units)


@pytest.mark.parametrize(("parents", "units"), [(2, 3), (2, 4), (3, 2), (3, 3)])
def test_units_of_one_meaning_meet_and_no_other_grouping_is_better(parents: int, units: int) -> None:
    common, whose = correlations(parents, units, seed=units, noise=0.1)
    found = zipped(common, whose, units, 0.125, 0.3)
    best = max(groupings(list(range(parents * units)), units), key=lambda groups: worst(common, groups))
    assert sorted(map(sorted, found)) == sorted(map(sorted, best))
    assert all(len({int(whose[i]) for i in group}) == parents for group in found)


def test_units_of_one_parent_join_only_within_the_budget() -> None:
    common, whose = correlations(2, 4, seed=0, noise=5.0)
    for budget, most in ((0.0, 0), (0.5, 2)):
        groups = zipped(common, whose, 4, budget, 1.0)
        inside = sum(len(g) - len({int(whose[i]) for i in g}) for g in groups)
        assert len(groups) == 4
        assert inside <= most


def test_units_that_never_vary_do_not_push_others_together() -> None:
    common, whose = correlations(3, 4, seed=1, noise=0.0)
    dead = [i for i in range(12) if float(common[i, 0]) > 0.999]  # one unit of each parent
    common[dead] = 0.0
    common[:, dead] = 0.0
    found = zipped(still_alike(common), whose, 4, 0.125, 0.3)
    assert sorted(dead) in map(sorted, found)
    assert all(len({int(whose[i]) for i in group}) == 3 for group in found)
