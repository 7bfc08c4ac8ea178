"""Regressions in closed form against the equations they solve, and choices of units against trying all."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from fxmerge.methods.regress import Moments, beside_ones, eliminate, principal


def moments(x: torch.Tensor, y: torch.Tensor) -> Moments:
    found = Moments.empty(x.shape[1], y.shape[1])
    for rows in torch.split(torch.arange(len(x)), 7):
        found.add(x[rows], y[rows])
    return found


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(60, 5, dtype=torch.float64) + 2
    return x, x @ torch.randn(5, 3, dtype=torch.float64) + 0.1 * torch.randn(60, 3, dtype=torch.float64) + 1


def test_without_a_penalty_it_is_least_squares(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = data
    matrix, constant = moments(x, y).ridge(0.0, intercept=True)
    wide = torch.cat((x, torch.ones(60, 1, dtype=torch.float64)), 1)
    wanted = torch.linalg.lstsq(wide, y).solution.T
    assert torch.allclose(matrix, wanted[:, :5], atol=1e-6) and torch.allclose(constant, wanted[:, 5], atol=1e-6)
    matrix, constant = moments(x, y).ridge(0.0, intercept=False)
    assert torch.allclose(matrix, torch.linalg.lstsq(x, y).solution.T, atol=1e-6)
    assert not constant.any()


def test_a_penalty_draws_to_nothing(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    sizes = [float(moments(*data).ridge(strength, intercept=True)[0].norm()) for strength in (0.0, 0.1, 10.0)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_penalty_draws_to_what_is_given(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    wanted = torch.arange(15, dtype=torch.float64).reshape(3, 5)
    misses = [float((moments(*data).ridge(strength, True, wanted)[0] - wanted).norm()) for strength in (0.1, 10.0, 1e4)]
    assert misses[0] > misses[1] > misses[2] and misses[2] < 0.01


def test_of_many_copies_one_each_stays() -> None:
    torch.manual_seed(3)
    x = torch.randn(400, 64, dtype=torch.float64)
    y = x @ torch.randn(64, 20, dtype=torch.float64)
    kept = eliminate([moments(torch.cat((x, x), 1), y)], list(torch.arange(128).reshape(128, 1)), 64)
    assert sorted(unit % 64 for unit in kept) == list(range(64))


def test_units_are_kept_as_by_trying_all() -> None:
    torch.manual_seed(1)
    x = torch.randn(200, 8, dtype=torch.float64) * torch.tensor([1, 1, 3, 1, 0.1, 0.1, 2, 2])
    y = x @ torch.randn(8, 4, dtype=torch.float64)
    units = list(torch.arange(8).reshape(4, 2))

    def error(kept: tuple[int, ...]) -> float:
        columns = torch.cat([units[u] for u in kept])
        found = torch.linalg.lstsq(x[:, columns], y).solution
        return float((x[:, columns] @ found - y).square().sum())

    best = min(combinations(range(4), 2), key=error)
    assert sorted(eliminate([moments(x, y)], units, 2, strength=1e-9)) == sorted(best)


def test_a_copy_is_dropped_first() -> None:
    torch.manual_seed(2)
    x = torch.randn(100, 3, dtype=torch.float64)
    x = torch.cat((x, x[:, :1]), 1)
    kept = eliminate([moments(x, x[:, :3])], list(torch.arange(4)[:, None]), 3)
    assert len({0, 3} & set(kept)) == 1


def test_bases_are_orthonormal() -> None:
    beside = beside_ones(6)
    assert (
        torch.allclose(beside.T @ beside, torch.eye(5, dtype=torch.float64))
        and float(beside.sum(0).abs().max()) < 1e-12
    )
    second = torch.diag(torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64))
    assert principal(second, 2).abs().argmax(1).tolist() == [1, 2]
    assert principal(second, 4).shape == (4, 3) and not principal(second, 4)[3].any()
