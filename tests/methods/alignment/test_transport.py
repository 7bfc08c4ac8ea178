"""Soft matches: the plans are those of optimal transport, and unequal widths have both normalisations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import ot
import pytest
import torch

import fxmerge
from fxmerge.methods.alignment.layout import Site
from fxmerge.methods.transport import Plan, barycentre, distances, transport_plan
from tests.methods.test_condense import parent

DRAW = torch.Generator().manual_seed(0)


def features(rows: int, *widths: int) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    values = [torch.randn(rows, n, generator=DRAW, dtype=torch.float64) for n in widths]
    values = [(x - x.mean(0)) / x.std(0, correction=0) / rows**0.5 for x in values]
    return values, [[a.T @ b for b in values] for a in values]


def test_distances_are_those_between_standardized_features() -> None:
    values, similarity = features(40, 5, 7)
    expected = torch.cdist(values[0].T, values[1].T)
    torch.testing.assert_close(distances(similarity, 0, 1), expected / expected.max())


@pytest.mark.parametrize("reg", [0.0, 0.05, 0.08])
def test_ways_there_and_back_are_normalised_plans_of_the_library(reg: float) -> None:
    """U = the rows of the plan over their sums, M = its columns over theirs (Imfeld et al. 2024), widths 6 and 4."""
    values, similarity = features(40, 6, 4)
    cost = torch.cdist(values[0].T, values[1].T).numpy()
    masses = np.full(6, 1 / 6), np.full(4, 1 / 4)
    plan = ot.sinkhorn(*masses, cost / cost.max(), reg, stopThr=1e-12) if reg else ot.emd(*masses, cost / cost.max())
    carriers = Plan(0, reg)(Site("s", "mlp", 6, (6, 4), "permutation", None), similarity, owner=False)
    expected = torch.from_numpy(plan / plan.sum(1, keepdims=True)), torch.from_numpy((plan / plan.sum(0)).T)
    torch.testing.assert_close(carriers.to[1], expected[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(carriers.back[1], expected[1], atol=1e-6, rtol=1e-6)


def test_exact_plans_are_the_cheapest_orders() -> None:
    cost = torch.rand(5, 5, generator=DRAW, dtype=torch.float64)
    plan = transport_plan(cost, 0.0)
    best = min(sum(float(cost[i, j]) for i, j in enumerate(order)) for order in permutations(range(5)))
    assert float((plan * cost).sum() * 5) == pytest.approx(best)


@pytest.mark.parametrize("reg", [0.02, 0.08, 1.0])
def test_plans_keep_the_masses_and_are_those_of_entropy(reg: float) -> None:
    cost = torch.rand(6, 4, generator=DRAW, dtype=torch.float64)
    plan = transport_plan(cost, reg)
    torch.testing.assert_close(plan.sum(1), torch.full((6,), 1 / 6, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.sum(0), torch.full((4,), 1 / 4, dtype=torch.float64), atol=1e-6, rtol=0)
    scaled = (plan.log() + cost / reg).double()  # u_i + v_j at the optimum
    flat = scaled - scaled.mean(1, keepdim=True) - scaled.mean(0) + scaled.mean()
    assert float(flat.abs().max()) < 1e-4


def test_unequal_widths_have_rows_that_sum_to_one_there_and_back() -> None:
    _, similarity = features(40, 6, 4)
    carriers = Plan(0, 0.08)(Site("s", "mlp", 6, (6, 4), "permutation", None), similarity, owner=False)
    for each in (*carriers.to, *carriers.back):
        torch.testing.assert_close(each.sum(1), torch.ones(len(each), dtype=torch.float64))
    assert [tuple(each.shape) for each in carriers.to] == [(6, 6), (6, 4)]


@pytest.mark.parametrize("reg", [0.08, 0.3])
def test_soft_merges_are_averages(reg: float) -> None:
    """A parent merged with itself is near itself, the nearer the harder the plan is."""
    first, x = parent("mlp", 3, "a")
    both = [first, first.evolve(task="b")]
    merged = fxmerge.merge(both, data={"a": x, "b": x}, method=f"transport{{reg={reg}}}")
    assert merged.result["checks"]["fold_max_abs"] < 1e-5
    assert any(note.startswith("transport: free") for note in merged.result["notes"])


def test_the_barycentre_of_three_orders_of_one_parent_is_that_parent_from_anywhere() -> None:
    values, _ = features(40, 6)
    orders = [torch.eye(6, dtype=torch.float64)[torch.randperm(6, generator=DRAW)] for _ in range(3)]
    sides = [values[0] @ order.T for order in orders]
    similarity = [[a.T @ b for b in sides] for a in sides]
    start = [torch.eye(6, dtype=torch.float64) / 6, *(transport_plan(distances(similarity, 0, k), 0.0) for k in (1, 2))]
    plans = [plan * 6 for plan in barycentre(similarity, start, 0.0)]
    middle = sum(side @ plan.T for side, plan in zip(sides, plans, strict=True)) / 3
    torch.testing.assert_close(middle, sides[0])


def test_a_barycentre_is_nearer_to_all_parents_than_the_template_is() -> None:
    """Of three noisy orders of the same units."""
    base = torch.randn(40, 12, generator=DRAW, dtype=torch.float64)
    sides = [base[:, torch.randperm(12, generator=DRAW)] for _ in range(3)]
    sides = [side + 2.0 * torch.randn(side.shape, generator=DRAW, dtype=torch.float64) for side in sides]
    sides = [(x - x.mean(0)) / x.std(0, correction=0) / 40**0.5 for x in sides]
    similarity = [[a.T @ b for b in sides] for a in sides]
    start = [torch.eye(12, dtype=torch.float64) / 12]
    start += [transport_plan(distances(similarity, 0, k), 0.0) for k in (1, 2)]
    assert cost_of(similarity, barycentre(similarity, start, 0.0)) < 0.99 * cost_of(similarity, start)


def cost_of(similarity: list[list[torch.Tensor]], plans: list[torch.Tensor]) -> float:
    """Squared distances of the parents' units from the mean of those that the plans put together."""
    ways = [plan / plan.sum(1, keepdim=True) / 3 for plan in plans]
    own = sum(a @ similarity[i][j] @ b.T for i, a in enumerate(ways) for j, b in enumerate(ways)).diagonal()
    total = 0.0
    for k, plan in enumerate(plans):
        common = sum(a @ similarity[i][k] for i, a in enumerate(ways))
        square = own[:, None] + similarity[k][k].diagonal()[None, :] - 2 * common
        total += float((square * plan).sum())
    return total
