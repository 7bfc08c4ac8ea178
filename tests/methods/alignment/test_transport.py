"""Soft matches: the plans are those of optimal transport, and unequal widths have both normalisations."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

import fxmerge
from fxmerge.methods.alignment.layout import Site
from fxmerge.methods.transport import Plan, distances, transport_plan
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
